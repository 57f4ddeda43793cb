"""The simulator's page in a browser: without JavaScript, on a phone, and back to the shop under its own policy."""

from __future__ import annotations

import time
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import expect

from tests.fixtures.fix_browser import DESKTOP, PHONE, Visit
from tests.fixtures.fix_stack import RunningStack


def page_of(stack: RunningStack, return_url: str, *, hold_ms: int = 600_000) -> str:
    order_id = str(uuid4())
    lines = [
        {"sku": "A_VERY_LONG_SKU_WITHOUT_A_PLACE_TO_BREAK_0123456789_0123456789_A", "quantity": 2, "unit_price_minor": 99_950},
        {"sku": "<i>SHOE</i>", "quantity": 1, "unit_price_minor": 5},
    ]  # fmt: skip
    answer = httpx.post(
        f"{stack.stack.payment_url}/v1/checkouts",
        json={
            "order_id": order_id, "lines": lines, "amount_minor": 199_905, "currency": "EUR",
            "expires_at_ms": int(time.time() * 1000) + hold_ms, "return_url": return_url,
        },
        headers={"Authorization": f"Bearer {stack.stack.payment_api_key}", "Idempotency-Key": order_id},
    )  # fmt: skip
    url: str = answer.json()["url"]
    return url


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_decline_then_pay_and_back_to_the_shop(visit: Visit, running_stack: RunningStack, viewport: object) -> None:
    shop = f"{running_stack.stack.backoffice_url}/livez"  # another origin than the provider's
    visitor = visit(
        page_of(running_stack, shop), also=[shop], viewport=viewport, java_script_enabled=False
    )  # fmt: skip
    page = visitor.page
    expect(page.get_by_role("heading", name="Pay for your order")).to_be_visible()
    expect(page.get_by_text("<i>SHOE</i> × 1")).to_be_visible()
    expect(page.get_by_role("row", name="Total 1,999.05 EUR")).to_be_visible()
    pay = page.get_by_role("button", name="Pay 1,999.05 EUR")
    assert pay.evaluate("button => getComputedStyle(button).backgroundColor") == "rgb(29, 78, 216)"
    assert visitor.overflow_px == 0
    page.get_by_role("button", name="Decline").click()
    expect(page.get_by_role("status")).to_have_text("The payment was declined. No money was taken. You can try again.")
    page.get_by_role("button", name="Pay 1,999.05 EUR").click()
    page.wait_for_url(shop)
    page.go_back()
    page.reload()
    expect(page.get_by_role("heading", name="Paid")).to_be_visible()
    expect(page.get_by_role("button", name="Pay 1,999.05 EUR")).to_have_count(0)
    page.get_by_role("link", name="Back to the shop").click()
    page.wait_for_url(shop)


def test_hold_that_ran_out_says_so(visit: Visit, running_stack: RunningStack) -> None:
    page = visit(page_of(running_stack, running_stack.stack.backoffice_url, hold_ms=0), viewport=PHONE).page
    expect(page.get_by_role("heading", name="Too late")).to_be_visible()
    expect(page.get_by_text("No money was taken.")).to_be_visible()
    expect(page.get_by_role("link", name="Back to the shop")).to_be_visible()
