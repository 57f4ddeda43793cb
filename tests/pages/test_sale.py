"""Staff and buyers around one sale, each in a browser of their own, on a whole stack."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import httpx
import jwt
import pytest
from playwright.sync_api import Page, expect

from runtime.tokens.keys import load_token_keys, mint_buyer_token
from tests.fixtures.fix_browser import PHONE, Visit
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import PASSWORD, Shopkeeper, log_in_buyer, log_in_staff, orders_of, register, shop_url


@pytest.fixture(scope="package")
def keeper(running_stack: RunningStack) -> Shopkeeper:
    return Shopkeeper(running_stack.stack)


def buyer_at(visit: Visit, stack: Any, sale: Any, **options: Any) -> Page:
    """A new, registered buyer on the sale's page."""
    page = visit(shop_url(stack, sale), also=[stack.edge_url], **options).page
    register(page)
    return page


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

    shop.get_by_role("button", name="Cancel the order").click()
    shop.get_by_role("dialog").get_by_role("button", name="Cancel the order").click()
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
    # Buying once more is a step of its own.
    page.get_by_role("button", name="Buy more").click()
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#history-rows tr")).to_have_count(2)
    assert keeper.report(sale)["reserved"] == 2


def test_a_reload_in_the_middle_goes_on_with_the_same_order(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=10)
    page = buyer_at(visit, stack, sale)
    keys: list[str] = []

    def stay_silent_at_first(route: Any) -> None:
        if route.request.method != "POST":
            return route.continue_()
        keys.append(route.request.headers["idempotency-key"])
        # The first order is made, and its answer never comes.
        return route.fetch() if len(keys) == 1 else route.continue_()

    page.route("**/orders", stay_silent_at_first)
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


def test_what_is_refused_for_a_moment_is_asked_again_with_the_same_key(
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
    expect(page.locator("#buy-message")).to_contain_text("Very many are buying right now. Trying again in")
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    assert len(keys) == 4 and len(set(keys)) == 1
    assert keeper.report(sale)["reserved"] == 1


def test_refusals_in_plain_words(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=2, limit=1)
    page = buyer_at(visit, stack, sale)
    page.locator("#items input").fill("2")
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#buy-message")).to_contain_text("You have reached the limit")
    keeper.act(sale, "pause")
    expect(page.get_by_text("The sale is paused for a moment.")).to_be_visible()
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
    expect(late.get_by_text("The sale is over.")).to_be_visible()


def test_more_items_than_an_order_takes(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    items = [{"sku": keeper.product()["sku"], "stock": 3, "price_minor": 100, "per_user_limit": 0} for _ in range(9)]
    page = buyer_at(visit, stack, keeper.sale(items=items))
    units = page.locator("#items input")
    for place in range(9):
        units.nth(place).fill("1")
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#buy-message")).to_contain_text("One order takes up to 8 different items")
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


def test_a_hold_that_runs_out(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(hold_s=2)
    page = buyer_at(visit, stack, sale)
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("The hold ran out: the units are back on sale.")
    expect(page.get_by_role("button", name="Cancel the order")).to_be_hidden()


def test_an_expired_token_is_renewed(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    before = page.evaluate("JSON.parse(sessionStorage.getItem('flashsale.buyer'))")
    expired = _expired(running_stack, before["access"])
    # As if the clock of this machine were wrong: the page believes in a token that the edge does not accept any more.
    page.evaluate(
        """(token) => {
          const kept = JSON.parse(sessionStorage.getItem('flashsale.buyer'));
          sessionStorage.setItem('flashsale.buyer', JSON.stringify({...kept, access: token}));
        }""",
        expired,
    )
    page.reload()
    page.get_by_role("button", name="Buy", exact=True).click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    after = page.evaluate("JSON.parse(sessionStorage.getItem('flashsale.buyer'))")
    assert after["access"] != expired and after["refresh"] != before["refresh"]
    assert keeper.report(sale)["reserved"] == 1


def _expired(running_stack: RunningStack, token: str) -> str:
    user_id = UUID(jwt.decode(token, options={"verify_signature": False})["sub"])
    keys = load_token_keys(running_stack.folder.token_keys)
    return mint_buyer_token(keys, user_id=user_id, issuer="flashsale", ttl_s=60, now_s=int(time.time()) - 3600)


def test_a_login_that_was_ended_asks_for_another(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    email = register(page)
    page.evaluate(
        """() => {
          const kept = JSON.parse(sessionStorage.getItem('flashsale.buyer'));
          sessionStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: 0, refresh: 'A'.repeat(107)}));
        }"""
    )
    page.reload()
    expect(page.get_by_text("Your login has ended: please log in again")).to_be_visible()
    log_in_buyer(page, email)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('flashsale.buyer')") is None


def test_a_renewal_that_is_answered_after_the_log_out_logs_nobody_in(
    visit: Visit, running_stack: RunningStack, keeper: Shopkeeper
) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = buyer_at(visit, stack, sale)
    held: list[Any] = []
    page.route("**/v1/auth/refresh", lambda route: held.append((route, route.fetch())))
    page.evaluate(
        """() => {
          const kept = JSON.parse(sessionStorage.getItem('flashsale.buyer'));
          sessionStorage.setItem('flashsale.buyer', JSON.stringify({...kept, renewAt: 0}));
        }"""
    )
    page.reload()
    while not held:
        page.wait_for_timeout(50)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    ((route, answer),) = held
    renewed = answer.json()["refresh_token"]
    with page.expect_response(lambda seen: seen.url.endswith("/logout") and renewed in (seen.request.post_data or "")):
        route.fulfill(response=answer)
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('flashsale.buyer')") is None
    again = httpx.post(f"{stack.backoffice_url}/v1/auth/refresh", json={"refresh_token": renewed})
    assert again.status_code == 401


def test_a_shop_that_is_busy_is_not_asked_for_names_again_soon(
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
    register(page)  # the page works without
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
    assert len(asked) == 4  # the tab remembers


def test_with_the_keyboard_alone(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    expect(page.get_by_text("The sale is open.")).to_be_visible()
    email = register(page)
    _tab_to(page, "#logout")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Log in to buy")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    _tab_to(page, "#email")
    page.keyboard.type(email)
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Buy", exact=True)).to_be_visible()
    _tab_to(page, "#items input")
    page.keyboard.press("ArrowUp")
    assert page.locator("#items input").input_value() == "2"
    _tab_to(page, "#buy")
    page.keyboard.press("Enter")
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    expect(page.locator("#order-title")).to_be_focused()
    _tab_to(page, "#cancel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#cancel")).to_be_focused()
    page.keyboard.press("Enter")
    _tab_to(page, "#confirm-yes")
    page.keyboard.press("Enter")
    expect(page.locator("#order-state")).to_have_text("Cancelled.")


def test_a_question_asked_again_at_once(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    """A dialog tells of its closing a moment later: the next question must not take that for its own answer."""
    stack, sale = running_stack.stack, keeper.sale()
    page = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    register(page)
    page.locator("#buy").click()
    expect(page.locator("#order-state")).to_have_text("Reserved for you.")
    page.locator("#cancel").click()
    page.evaluate(
        """() => {
          document.querySelector('#confirm').close('no');
          document.querySelector('#cancel').click();
        }"""
    )
    page.locator("#confirm-yes").click()
    expect(page.locator("#order-state")).to_have_text("Cancelled.")


def _tab_to(page: Page, selector: str) -> None:
    """Press Tab until it has the focus; a place that the keyboard does not reach fails."""
    for _ in range(60):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached")


def test_on_a_phone(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    sale = keeper.sale(
        name="A sale with a name that is rather long, and aVeryLongWordInItThatCannotBeBrokenAnywhere" * 2
    )
    shop = visit(shop_url(stack, sale), also=[stack.edge_url], viewport=PHONE, is_mobile=True, has_touch=True)
    expect(shop.page.get_by_text("The sale is open.")).to_be_visible()
    assert shop.overflow_px == 0
    register(shop.page)
    shop.page.get_by_role("button", name="Buy", exact=True).tap()
    expect(shop.page.locator("#order-state")).to_have_text("Reserved for you.")
    expect(shop.page.locator("#history-rows tr")).to_have_count(1)
    assert shop.overflow_px == 0
    staff = visit(stack.backoffice_url, viewport=PHONE, is_mobile=True, has_touch=True, color_scheme="dark")
    log_in_staff(staff.page, stack)
    expect(staff.page.locator(f'[data-running="{sale["id"]}"] [data-count="reserved"]')).to_have_text("1")
    expect(staff.page.locator(f'#sales [data-sale="{sale["id"]}"]')).to_be_visible()
    assert staff.overflow_px == 0
    docs = visit(f"{stack.backoffice_url}/docs", also=[stack.edge_url], viewport=PHONE)
    expect(docs.page.locator('[data-tag="sales"]')).to_be_visible()
    docs.page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert docs.overflow_px == 0


def test_names_are_text(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    name = "<img src=x onerror=\"document.body.id='in'\">"
    sale = keeper.sale(name=name)
    shop = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    expect(shop.get_by_role("heading", name=name)).to_be_visible()
    staff = visit(stack.backoffice_url).page
    log_in_staff(staff, stack)
    expect(staff.locator(f'[data-running="{sale["id"]}"]').get_by_role("heading", name=name)).to_be_visible()
    expect(staff.locator(f'#sales [data-sale="{sale["id"]}"]').get_by_role("rowheader", name=name)).to_be_visible()
    for page in (shop, staff):
        assert page.locator("img").count() == 0
        assert page.evaluate("document.body.id") == ""


def test_a_sale_that_does_not_exist(visit: Visit, running_stack: RunningStack) -> None:
    stack = running_stack.stack
    page = visit(f"{stack.backoffice_url}/shop/01890000-0000-7000-8000-000000000001", also=[stack.edge_url]).page
    expect(page.get_by_text("There is no such sale.")).to_be_visible()


def test_the_api_is_described_without_other_hosts(visit: Visit, running_stack: RunningStack) -> None:
    stack = running_stack.stack
    page = visit(f"{stack.backoffice_url}/docs", also=[stack.edge_url]).page
    operation = page.locator("details", has_text="POST /v1/sales Make a sale")
    operation.locator("summary").click()
    expect(operation.get_by_text("idempotency_key_reused")).to_be_visible()
    page.get_by_label("Filter").fill("restock")
    expect(page.locator("#operations details:visible")).to_have_count(1)
    page.get_by_label("Filter").fill("")
    page.get_by_label("Service", exact=True).select_option("edge")
    expect(page.locator("details", has_text="POST /v1/sales/{sale_id}/orders")).to_be_visible()
