"""Orders on the staff page of a whole stack: payments and refunds, refunds by line once, cancellations."""

from __future__ import annotations

import secrets
from typing import Any
from uuid import uuid4

import httpx
from playwright.sync_api import Page, expect

from runtime.tokens.keys import load_token_keys, mint_buyer_token
from tests.fixtures.fix_browser import Visit
from tests.fixtures.fix_stack import RunningStack, eventually
from tests.pages.scenes import Shopkeeper, log_in_staff

NARROW: Any = {"width": 320, "height": 640}


def placed(running_stack: RunningStack, sale: Any, *, paid: bool) -> str:
    """An order of a unit of each item of the sale, perhaps paid; its id."""
    stack = running_stack.stack
    keys = load_token_keys(running_stack.folder.token_keys)
    token = mint_buyer_token(keys, user_id=uuid4(), issuer="flashsale", ttl_s=900)
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}
    with httpx.Client(base_url=stack.edge_url, headers=headers, timeout=10) as buyer:
        lines = [{"sku": item["sku"], "quantity": 1} for item in sale["items"]]
        order: dict[str, Any] = buyer.post(f"/v1/sales/{sale['id']}/orders", json={"items": lines}).json()
        if paid:
            url = buyer.post(f"/v1/orders/{order['order_id']}/payment").json()["payment_url"]
            assert httpx.post(url, data={"action": "pay"}).status_code == 303
            eventually(lambda: buyer.get(f"/v1/orders/{order['order_id']}").json()["status"] == "paid")
    return str(order["order_id"])


def opened(page: Page, order_id: str) -> None:
    page.get_by_label("Order", exact=True).fill(order_id)
    page.get_by_role("button", name="Find orders").click()
    expect(page.locator("#order-title")).to_have_text(f"Order {order_id}")
    expect(page.locator("#order-title")).to_be_focused()


def test_refunds(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack = running_stack.stack
    skus = [keeper.product()["sku"] for _ in range(2)]
    sale = keeper.sale(items=[{"sku": sku, "stock": 3, "price_minor": 700, "per_user_limit": 0} for sku in skus])
    order_id = placed(running_stack, sale, paid=True)
    visitor = visit(stack.backoffice_url, viewport=NARROW, color_scheme="dark")
    page = visitor.page
    log_in_staff(page, stack)
    opened(page, order_id)
    expect(page.locator('[data-part="payments"] tbody tr')).to_have_count(1)
    expect(page.locator('[data-part="payments"]')).to_contain_text("€14.00")
    assert visitor.overflow_px == 0
    keys: list[str] = []

    def lose_the_first_answer(route: Any) -> None:
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) == 1:
            route.fetch()
            return route.abort()
        return route.continue_()

    page.route("**/refund", lose_the_first_answer)
    dialog = page.get_by_role("dialog")
    for _ in range(2):
        page.locator("#order-refund").click()
        dialog.get_by_label(skus[1]).uncheck()
        dialog.get_by_label("Put the units back on sale").check()
        dialog.get_by_role("button", name="Refund", exact=True).dblclick(no_wait_after=True)
        expect(page.locator("#orders-message")).to_be_visible()
        expect(page.locator("#order-refund")).to_be_enabled()
    expect(page.locator("#orders-message")).to_contain_text("The refund is")
    assert len(keys) == 2 and keys[0] == keys[1]
    refunds = page.locator('[data-part="refunds"] tbody tr')
    expect(refunds).to_have_count(1)
    expect(refunds).to_contain_text("€7.00")
    expect(refunds).to_contain_text(f"{skus[0]}, back on sale")
    expect(refunds.locator('[data-label="State"]')).to_have_text("done")  # the page looks again by itself
    expect(page.locator("#orders-message")).to_have_text("The refund is done")
    eventually(lambda: keeper.counters(sale)[skus[0]]["available"] == 3)
    assert keeper.counters(sale)[skus[1]]["available"] == 2
    page.locator("#order-refund").click()
    expect(dialog.get_by_label(skus[0])).to_have_count(0)
    dialog.get_by_role("button", name="Cancel").click()
    page.locator("#order-refund").click()
    dialog.get_by_role("button", name="Refund", exact=True).click()
    expect(refunds).to_have_count(2)
    expect(page.locator("#order-refund")).to_have_count(0)
    assert len(keys) == 3 and keys[2] != keys[0]
    assert visitor.overflow_px == 0


def test_a_cancellation_and_the_verdict_on_money(visit: Visit, running_stack: RunningStack, keeper: Shopkeeper) -> None:
    stack, sale = running_stack.stack, keeper.sale()
    order_id = placed(running_stack, sale, paid=False)
    page = visit(stack.backoffice_url).page
    log_in_staff(page, stack)
    page.get_by_label("Sale", exact=True).fill(sale["id"])
    page.get_by_role("button", name="Find orders").click()
    row = page.locator(f'#orders [data-order="{order_id}"]')
    row.get_by_role("button", name="Show").click()
    expect(page.locator("#order-status")).to_have_text("reserved")
    expect(page.locator("#order-refund")).to_have_count(0)
    page.locator("#order-cancel").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel order").click()
    expect(page.locator("#order-status")).to_have_text("cancelled")
    expect(row.locator(".badge")).to_have_text("cancelled")
    expect(page.locator("#order-cancel")).to_have_count(0)
    assert keeper.report(sale)["available"] == 5
    page.get_by_label("Order", exact=True).fill("no-such-order")
    page.get_by_role("button", name="Find orders").click()
    expect(page.locator("#orders-message")).to_contain_text("Order no-such-order:")
    expect(page.locator("#order")).to_be_hidden()
    verdict = page.locator(f'[data-running="{sale["id"]}"] [data-fact="verdict-g"]')
    expect(verdict).to_have_text("holds")
    # Without figures the page knows no verdict: an old one proves nothing.
    page.evaluate(
        """async () => {
          const {Live} = await import('/static/live.js');
          Live.prototype.show = () => { throw new Error("the connection was lost"); };
        }"""
    )
    expect(verdict).to_have_text("unknown")
