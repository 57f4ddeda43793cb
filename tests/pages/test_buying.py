"""Buying on the shop page of a whole stack: orders, retries, refusals, holds; staff see each order live."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import Shopkeeper, buyer_at, log_in_staff, orders_of, register, shop_url


def count(page: Page, sale_id: str, name: str) -> Any:
    return page.locator(f'[data-running="{sale_id}"] [data-count="{name}"]')


def test_from_a_draft_to_an_order_seen_live(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    product = keeper.product(name="A teapot", price_minor=2500)
    staff = visit(stack.backoffice_url).page
    log_in_staff(staff, stack)
    staff.get_by_label("Name", exact=True).fill("Teapots at noon")
    staff.get_by_label("SKU").fill(product["sku"])
    staff.get_by_label("Stock").fill("7")
    staff.get_by_label("Price").fill("1250")
    staff.get_by_role("button", name="Create a draft").click()
    row = staff.locator("#sales tr", has_text="Teapots at noon")
    expect(row.get_by_text("draft", exact=True)).to_be_visible()
    row.get_by_role("button", name="Publish").click()
    staff.get_by_role("dialog").get_by_role("button", name="Publish").click()
    expect(row.get_by_text("open", exact=True)).to_be_visible()
    sale_id = row.get_attribute("data-sale")
    assert sale_id is not None
    expect(count(staff, sale_id, "available")).to_have_text("7")

    shop = visit(f"{stack.backoffice_url}/shop/{sale_id}", also=[stack.edge_url]).page
    expect(shop.get_by_text("The sale is open.")).to_be_visible()
    register(shop)
    expect(shop.get_by_text(f"A teapot ({product['sku']})")).to_be_visible()
    expect(shop.get_by_text("€12.50 · available")).to_be_visible()
    shop.get_by_label("A teapot").fill("2")
    shop.get_by_role("button", name="Buy", exact=True).click()
    expect(shop.locator("#order-state")).to_have_text("Reserved for you.")
    expect(shop.locator("#order-total")).to_have_text("Total: €25.00")
    expect(shop.locator("#order-countdown")).to_contain_text("Held for 9:")
    expect(shop.locator("#history-rows tr")).to_have_count(1)

    expect(count(staff, sale_id, "available")).to_have_text("5")
    expect(count(staff, sale_id, "reserved")).to_have_text("2")
    card = staff.locator(f'[data-running="{sale_id}"]')
    expect(card.locator('[data-fact="accepted"]')).to_have_text("1")
    expect(card.locator("svg.chart path")).to_have_count(2)

    shop.get_by_role("button", name="Cancel order").click()
    shop.get_by_role("dialog").get_by_role("button", name="Cancel order").click()
    expect(shop.locator("#order-state")).to_have_text("Cancelled.")
    expect(count(staff, sale_id, "available")).to_have_text("7")
    expect(count(staff, sale_id, "reserved")).to_have_text("0")


def test_a_double_click_buys_once(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=10)
    page = buyer_at(visit, stack, sale)
    buy = page.get_by_role("button", name="Buy", exact=True)
    expect(buy).to_be_enabled()
    buy.dblclick()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    assert len(orders_of(page, stack)) == 1
    assert keeper.report(sale)["reserved"] == 1
    # The buyer can buy again.
    page.get_by_role("button", name="Buy more").click()
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#history-rows tr")).to_have_count(2)
    assert keeper.report(sale)["reserved"] == 2


def test_a_reload_continues_the_same_order(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=10)
    page = buyer_at(visit, stack, sale)
    keys: list[str] = []

    def lose_the_first_answer(route: Any) -> None:
        if route.request.method != "POST":
            return route.continue_()
        keys.append(route.request.headers["idempotency-key"])
        # The first order is placed, but its answer never arrives.
        return route.fetch() if len(keys) == 1 else route.continue_()

    page.route("**/orders", lose_the_first_answer)
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.get_by_role("button", name="Buying …")).to_be_disabled()
    while keeper.report(sale)["reserved"] == 0:
        page.wait_for_timeout(50)
    page.reload()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    assert len(keys) == 2 and keys[0] == keys[1]
    page.reload()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    expect(page.locator("#history-rows tr")).to_have_count(1)
    assert len(keys) == 2
    assert len(orders_of(page, stack)) == 1
    assert keeper.report(sale)["reserved"] == 1


def test_temporary_refusals_are_retried_with_the_same_key(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=10)
    page = buyer_at(visit, stack, sale)
    keys: list[str] = []
    cors = {"Access-Control-Allow-Origin": stack.backoffice_url, "Access-Control-Expose-Headers": "Retry-After"}

    def first_fail(route: Any) -> None:
        if route.request.method != "POST":
            return route.continue_()
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            return route.abort()
        if len(keys) == 2:
            return route.fulfill(status=503, headers={**cors, "Retry-After": "1"}, json={"code": "overloaded"})
        if len(keys) == 3:
            return route.fulfill(status=504, headers=cors, json={"code": "outcome_unknown"})
        return route.continue_()

    page.route("**/orders", first_fail)
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#buy-message")).to_contain_text("The shop is very busy. Trying again in")
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    assert len(keys) == 4 and len(set(keys)) == 1
    assert keeper.report(sale)["reserved"] == 1


def test_refusals_are_explained(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=2, limit=1)
    page = buyer_at(visit, stack, sale)
    page.locator("#items input").fill("2")
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#buy-message")).to_contain_text("You have reached the limit")
    keeper.act(sale, "pause")
    expect(page.get_by_text("The sale is paused.")).to_be_visible()
    expect(page.get_by_role("button", name="Buy", exact=True)).to_be_disabled()
    keeper.act(sale, "resume")
    expect(page.get_by_text("The sale is open.")).to_be_visible()
    page.locator("#items input").fill("1")
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    other = buyer_at(visit, stack, sale)
    other.get_by_role("button", name="Buy", exact=True).click()
    expect(other.locator("#order-state")).to_have_text("Reserved for you.")
    late = buyer_at(visit, stack, sale)
    expect(late.locator("#sale-state")).to_contain_text("Sold out.")
    expect(late.get_by_role("button", name="Sold out")).to_be_disabled()
    keeper.act(sale, "end")
    expect(late.get_by_text("The sale has ended.")).to_be_visible()


def test_too_many_items_for_one_order(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    items = [{"sku": keeper.product()["sku"], "stock": 3, "price_minor": 100, "per_user_limit": 0} for _ in range(9)]
    page = buyer_at(visit, stack, keeper.sale(items=items))
    units = page.locator("#items input")
    for place in range(9):
        units.nth(place).fill("1")
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#buy-message")).to_contain_text("One order takes at most 8 different items")
    assert orders_of(page, stack) == []
    units.nth(8).fill("0")
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-lines li")).to_have_count(8)
    assert len(orders_of(page, stack)) == 1


def test_waiting_for_the_start(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(starts_in_s=6)
    page = buyer_at(visit, stack, sale)
    expect(page.locator("#countdown")).to_contain_text("Opens in 0:0")
    expect(page.get_by_role("button", name="Buy", exact=True)).to_be_disabled()
    expect(page.get_by_text("The sale is open.")).to_be_visible()
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")


def test_a_hold_that_expires(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(hold_s=2)
    page = buyer_at(visit, stack, sale)
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("Expired: the hold ran out and the units are on sale again.")
    expect(page.get_by_role("button", name="Cancel order")).to_be_hidden()


def test_names_are_not_loaded_again_soon_from_a_busy_shop(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    stack = running_stack.stack
    items = [{"sku": keeper.product()["sku"], "stock": 3, "price_minor": 100, "per_user_limit": 0} for _ in range(3)]
    page = visit(f"{stack.backoffice_url}/docs", also=[stack.edge_url]).page
    asked: list[str] = []

    def busy_at_first(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"code": "overloaded"})
        else:
            route.continue_()

    page.route("**/v1/products?*", busy_at_first)
    page.clock.install()
    page.goto(shop_url(stack, keeper.sale(items=items)))
    register(page)  # the page works without names
    page.clock.fast_forward(5_000)
    while not asked:
        page.wait_for_timeout(50)
    page.clock.fast_forward(20_000)
    page.wait_for_timeout(500)
    assert len(asked) == 1
    page.clock.fast_forward(180_000)
    expect(page.locator("#items [data-name]", has_text="A lamp")).to_have_count(3)
    assert len(asked) == 4
    page.reload()
    expect(page.locator("#items [data-name]", has_text="A lamp")).to_have_count(3)
    page.clock.fast_forward(10_000)
    page.wait_for_timeout(500)
    assert len(asked) == 4  # the tab keeps the names
