"""Paying: from the shop page over the provider's page to the order page, and every state that it tells of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from playwright.sync_api import Page, expect

from domain.orders import OrderStatus
from ops.stack_file import Stack
from runtime.tokens.keys import load_token_keys, mint_buyer_token
from tests.backoffice.test_preferences import SUBSCRIPTIONS, new_subscription
from tests.fixtures.fix_browser import Visit, Visitor
from tests.fixtures.fix_stack import RunningStack
from tests.pages.scenes import PASSWORD, Shopkeeper, control_provider, orders_of, register, shop_url
from tests.pages.test_push import FAKE

NARROW: Any = {"width": 320, "height": 640}
RESERVED, PAID = "Reserved for you.", "Paid. Thank you!"


@pytest.fixture(autouse=True)
def well_behaved(running_stack: RunningStack) -> Iterator[None]:
    yield
    control_provider(running_stack.stack)


def shopper(visit: Visit, stack: Stack, sale: Any, **options: Any) -> tuple[Visitor, str]:
    """A new buyer with an order, and the buyer's address."""
    visitor = visit(shop_url(stack, sale), also=[stack.edge_url, str(stack.payment_url)], **options)
    email = register(visitor.page)
    visitor.page.get_by_role("button", name="Buy", exact=True).click()
    expect(visitor.page.locator("#order-state")).to_have_text(RESERVED)
    return visitor, email


def to_provider(page: Page) -> None:
    page.get_by_role("button", name="Pay now").click()
    expect(page.get_by_role("heading", name="Pay for your order")).to_be_visible()


def log_in(page: Page, email: str) -> None:
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()


def state(page: Page, text: str) -> None:
    expect(page.locator("#order-state")).to_have_text(text)


def test_to_the_provider_and_back(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    visitor, email = shopper(visit, stack, sale, viewport=NARROW, is_mobile=True, color_scheme="dark")
    page = visitor.page
    expect(page.locator("#order-countdown")).to_contain_text("Held for")
    expect(page.locator("#order-total")).to_have_text("Total: €15.00")
    assert visitor.overflow_px == 0
    to_provider(page)
    page.get_by_role("button", name="Decline").click()
    expect(page.get_by_text("The payment was declined.")).to_be_visible()
    page.get_by_role("link", name="Back to the shop").click()
    state(page, "Your payment is being confirmed …")
    expect(page.locator("#order-notes")).to_contain_text("If you have not paid, you can still do so.")
    expect(page.locator("#order-countdown")).to_contain_text("Held for")
    assert visitor.overflow_px == 0
    to_provider(page)
    page.get_by_role("button", name="Pay 15.00 EUR").click()
    state(page, PAID)
    order = urlsplit(page.url).path.rpartition("/")[2]
    assert page.url == f"{stack.backoffice_url}/shop/orders/{order}"
    expect(page.get_by_role("button", name="Pay now")).to_be_hidden()
    expect(page.locator("#order-countdown")).to_be_hidden()
    assert visitor.overflow_px == 0
    page.reload()
    state(page, PAID)
    tab = page.context.new_page()
    tab.goto(page.url)
    state(tab, PAID)
    assert [(one["status"], one["payment"]) for one in orders_of(page, stack)] == [("paid", "captured")]
    assert keeper.report(sale)["paid"] == 1
    # The link of a letter, in a browser without a login.
    fresh = visit(page.url, also=[stack.edge_url], viewport=NARROW)
    expect(fresh.page.get_by_role("heading", name="Log in to see your orders")).to_be_visible()
    log_in(fresh.page, email)
    state(fresh.page, PAID)
    fresh.page.get_by_role("link", name="All your orders").click()
    expect(fresh.page.locator("#history-rows tr")).to_have_count(1)
    assert fresh.overflow_px == 0
    fresh.page.get_by_role("link", name="Show").click()
    state(fresh.page, PAID)
    fresh.page.get_by_role("link", name="To the sale").click()
    expect(fresh.page.get_by_text("The sale is open.")).to_be_visible()


def test_a_payment_that_comes_after_the_hold(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(hold_s=4)
    visitor, _ = shopper(visit, stack, sale)
    page = visitor.page
    to_provider(page)
    page.get_by_text("For tests").click()
    page.get_by_role("button", name="Pay late").click()
    state(page, "Your payment is being confirmed …")
    state(page, "Expired: the hold ran out and the units are on sale again.")
    expect(page.locator("#order-notes")).to_contain_text("A payment arrived after the hold had run out.")
    expect(page.locator("#order-notes")).to_contain_text("€15.00 went back to you.")
    page.reload()
    expect(page.locator("#order-notes")).to_contain_text("€15.00 went back to you.")
    (order,) = orders_of(page, stack)
    assert (order["status"], order["payment"], order["refunded_minor"]) == ("expired", "refunded", 1500)


def test_while_the_provider_is_down(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    control_provider(stack, down_s=600)
    visitor, _ = shopper(visit, stack, sale)
    page = visitor.page
    page.get_by_role("button", name="Pay now").click()
    expect(page.locator("#order-message")).to_contain_text("The payment provider is not available at the moment.")
    expect(page.locator("#order-message")).to_contain_text("Your order stays reserved until the hold ends.")
    shown = page.locator("#order-countdown").inner_text()
    expect(page.locator("#order-countdown")).not_to_have_text(shown)
    expect(page.locator("#order-countdown")).to_contain_text("Held for")
    page.reload()
    state(page, RESERVED)
    page.get_by_role("button", name="Pay now").click()
    expect(page.locator("#order-message")).to_contain_text("Please try again.")
    control_provider(stack)
    to_provider(page)


def test_a_double_click_asks_once(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    visitor, _ = shopper(visit, stack, sale)
    page = visitor.page
    asked: list[str] = []

    def slowly(route: Any) -> None:
        asked.append(route.request.url)
        page.wait_for_timeout(300)
        route.continue_()

    page.route("**/payment", slowly)
    page.evaluate("() => { const pay = document.querySelector('#pay'); pay.click(); pay.click(); }")
    page.locator("#pay").dblclick(force=True, no_wait_after=True)
    expect(page.get_by_role("heading", name="Pay for your order")).to_be_visible()
    assert len(asked) == 1
    # Back without paying: the page asks on, and the buyer can pay.
    page.go_back()
    expect(page.get_by_role("button", name="Pay now")).to_be_enabled()
    to_provider(page)


def test_cancelled_and_a_stranger(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    visitor, _ = shopper(visit, stack, sale)
    page = visitor.page
    page.locator("#order-link").click()
    expect(page).to_have_url(re.compile("/shop/orders/"))
    state(page, RESERVED)
    page.get_by_role("button", name="Cancel order").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel order").click()
    state(page, "Cancelled.")
    expect(page.locator("#order-title")).to_be_focused()
    expect(page.get_by_role("button", name="Pay now")).to_be_hidden()
    page.reload()
    state(page, "Cancelled.")
    other = visit(shop_url(stack, sale), also=[stack.edge_url]).page
    register(other)
    other.goto(page.url)
    expect(other.get_by_text("This account has no such order.")).to_be_visible()
    expect(other.locator("#order")).to_be_hidden()


def test_the_list_in_pages(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale(stock=30)
    page = visit(f"{stack.backoffice_url}/shop/orders", also=[stack.edge_url]).page
    user_id = uuid4()
    token = mint_buyer_token(
        load_token_keys(running_stack.folder.token_keys), user_id=user_id, issuer="flashsale", ttl_s=900
    )
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=stack.edge_url, headers=headers, timeout=10) as client:
        placed = 0
        while placed < 21:
            body = {"items": [{"sku": sale["items"][0]["sku"], "quantity": 1}]}
            answer = client.post(
                f"/v1/sales/{sale['id']}/orders", json=body, headers={"Idempotency-Key": f"order-{placed}"}
            )
            placed += answer.status_code == 202
    log_in_as(page, token)
    expect(page.locator("#history-rows tr")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#history-rows tr")).to_have_count(21)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert len(set(page.locator("#history-rows tr").evaluate_all("rows => rows.map(row => row.dataset.order)"))) == 21


def log_in_as(page: Page, token: str) -> None:
    """Put a login into the storage of the page, as `session.js` keeps it."""
    page.evaluate(
        """(access) => localStorage.setItem('flashsale.buyer', JSON.stringify(
          {access, refresh: '', renewAt: Date.now() + 600000, email: 'b@example.com', login: 'test'}))""",
        token,
    )
    page.reload()


EXPIRED = "Expired: the hold ran out and the units are on sale again."
# status, payment, due, refunded, currency -> state, and parts of the notes
TOLD: list[tuple[str, str, int, int, str, str, tuple[str, ...]]] = [
    ("reserved", "none", 0, 0, "EUR", RESERVED, ("Pay before the hold ends.",)),
    ("reserved", "captured", 0, 0, "EUR", "Your payment is being confirmed …", ()),
    ("reserved", "refund_due", 1600, 0, "EUR", RESERVED, ("did not match this order", "€16.00 goes back to you.")),
    ("reserved", "refunded", 0, 1600, "EUR", RESERVED, ("did not match this order", "€16.00 went back to you.")),
    ("paid", "captured", 0, 0, "EUR", PAID, ()),
    ("paid", "captured", 1500, 0, "EUR", PAID, ("€15.00 goes back to you.",)),
    ("paid", "captured", 500, 700, "EUR", PAID, ("€7.00 went back to you. Another €5.00 goes back to you.",)),
    ("paid", "captured", 0, 700, "JPY", PAID, ("JP¥700 went back to you.",)),
    ("paid", "refund_due", 1500, 0, "KWD", "Your money goes back to you.", ("1.500 goes back to you.",)),
    ("paid", "refunded", 0, 1500, "RSD", "Refunded.", ("15.00 went back to you.",)),
    ("cancelled", "none", 0, 0, "EUR", "Cancelled.", ()),
    ("cancelled", "refund_due", 1500, 0, "EUR", "Cancelled.", ("although the order is cancelled", "€15.00 goes back")),
    ("cancelled", "refunded", 0, 1500, "EUR", "Cancelled.", ("although the order is cancelled", "€15.00 went back")),
    ("expired", "none", 0, 0, "EUR", EXPIRED, ()),
    ("expired", "refund_due", 1500, 0, "EUR", EXPIRED, ("after the hold had run out", "€15.00 goes back")),
    ("expired", "refunded", 0, 1500, "EUR", EXPIRED, ("after the hold had run out", "€15.00 went back")),
    ("rejected", "none", 0, 0, "EUR", "We are sorry, this order could not be fulfilled.", ("You will not be charged.",)),
    ("rejected", "refund_due", 9, 0, "EUR", "We are sorry, this order could not be fulfilled.", ("€0.09 goes back",)),
]  # fmt: skip


def test_every_state_is_told(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    """Also the rare ones: the edge's answers are put in its place."""
    stack, sale = running_stack.stack, keeper.sale()
    order_id = UUID(int=7 << 76 | 1 << 63)
    visitor = visit(f"{stack.backoffice_url}/shop/orders/{order_id}", also=[stack.edge_url], viewport=NARROW)
    page = visitor.page
    order: dict[str, Any] = {
        "order_id": str(order_id), "sale_id": sale["id"], "total_minor": 1500,
        "items": [{"sku": "SKU-1", "quantity": 1, "unit_price_minor": 1500}],
        "reserved_at": "2026-01-01T00:00:00.000Z", "expires_at": "2098-01-01T00:00:00.000Z",
    }  # fmt: skip
    assert {row[0] for row in TOLD} == {status.label for status in OrderStatus}
    for status, payment, due, refunded, currency, text, notes in TOLD:
        order |= {"status": status, "payment": payment, "currency": currency}
        order |= {"refund_due_minor": due, "refunded_minor": refunded}
        told = page.evaluate(
            "async (order) => (await import('/static/order-words.js')).told(order, {visited: false, confirming: false})",
            order,
        )
        assert told["text"] == text
        assert all(note in " ".join(told["notes"]).replace("\xa0", " ") for note in notes), told
        assert bool(told["notes"]) == bool(notes)
    order |= {"status": "reserved", "payment": "none", "refund_due_minor": 0}
    for status, confirming, note in (
        ("reserved", True, "This takes a few seconds."),
        ("reserved", False, "No payment has arrived so far."),
        ("expired", False, "your money goes back to you"),
        ("cancelled", False, "your money goes back to you"),
    ):
        order |= {"status": status}
        told = page.evaluate(
            """async ([order, confirming]) =>
              (await import('/static/order-words.js')).told(order, {visited: true, confirming})""",
            [order, confirming],
        )
        assert note in told["notes"][0]
    cors = {"Access-Control-Allow-Origin": stack.backoffice_url, "Access-Control-Allow-Headers": "Authorization"}
    page.route(f"{stack.edge_url}/v1/orders/*", lambda route: route.fulfill(json=order, headers=cors))
    for status, payment in (("reserved", "refunded"), ("paid", "refund_due"), ("rejected", "none")):
        order |= {"status": status, "payment": payment, "refund_due_minor": 0, "refunded_minor": 0}
        log_in_as(page, "a token")
        expect(page.locator("#order-state")).to_have_attribute("data-status", status)
        expect(page.locator("#pay")).to_be_visible(visible=status == "reserved")
        expect(page.locator("#cancel")).to_be_visible(visible=status == "reserved")
        assert visitor.overflow_px == 0


def test_a_free_order_with_the_keyboard(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    item = {"sku": keeper.product()["sku"], "stock": 3, "price_minor": 0, "per_user_limit": 0}
    visitor, email = shopper(visit, running_stack.stack, keeper.sale(items=[item]))
    page = visitor.page
    expect(page.locator("#order-title")).to_be_focused()
    page.keyboard.press("Tab")  # the link of the order page
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Confirm the free order")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/shop/orders/"))
    expect(page.get_by_role("status").filter(has_text=PAID)).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#order")).to_be_hidden()
    log_in(page, email)
    state(page, PAID)


def test_notices_are_offered_after_an_order(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    visitor = visit(shop_url(stack, keeper.sale()), also=[stack.edge_url])
    page = visitor.page
    visitor.context.grant_permissions(["notifications"], origin=stack.backoffice_url)
    page.evaluate(FAKE, new_subscription())
    register(page)
    page.get_by_role("button", name="Buy", exact=True).click()
    page.get_by_role("button", name="Notify me").click()
    expect(page.get_by_text("You get messages about your orders on this device.")).to_be_visible()
    expect(page.locator("#notices")).to_be_hidden()
    token = page.evaluate("JSON.parse(localStorage.getItem('flashsale.buyer')).access")
    with httpx.Client(base_url=stack.backoffice_url, headers={"Authorization": f"Bearer {token}"}) as buyer:
        assert len(buyer.get(SUBSCRIPTIONS).json()["items"]) == 1
    with page.expect_response(lambda seen: seen.request.method == "DELETE" and SUBSCRIPTIONS in seen.url) as forgotten:
        page.get_by_role("button", name="Log out").click()
    assert forgotten.value.status == 204
    register(page)
    page.get_by_role("button", name="Buy", exact=True).click()
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#order-title")).to_be_focused()
    page.get_by_role("button", name="Buy more").click()
    page.get_by_role("button", name="Buy", exact=True).click()
    state(page, RESERVED)
    assert page.evaluate("sessionStorage.getItem('flashsale.notices.later')") == "yes"
    expect(page.locator("#notices")).to_be_hidden()
