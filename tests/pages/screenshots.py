"""`python -m tests.pages.screenshots` writes pictures of the pages on a selling stack to docs/screenshots/."""

from __future__ import annotations

import json
import random
import secrets
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright

from devstack.state import StateFolder
from ops.stack_file import Stack
from runtime.tokens.keys import TokenKeys, load_token_keys, mint_buyer_token
from tests.fixtures.fix_browser import CHROMIUM, PHONE
from tests.fixtures.fix_stack import flashsale
from tests.pages.scenes import Shopkeeper, log_in_staff, register, shop_url

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "screenshots"
BYTES_MAX = 300_000
SELLING_S = 25


def main() -> None:
    """Start a stack, sell on it, take the pictures, stop the stack."""
    if CHROMIUM is None:
        sys.exit("chromium is not installed (Debian package chromium)")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = StateFolder(Path(place))
        flashsale(folder, "up", "--detach", "--edge-port", "0", "--backoffice-port", "0")
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            _take_all(browser, folder.require_stack(), load_token_keys(folder.token_keys))
        finally:
            browser.close()
            flashsale(folder, "down", "--destroy")


def _take_all(browser: Browser, stack: Stack, keys: TokenKeys) -> None:
    keeper = Shopkeeper(stack)
    items = [
        {"sku": keeper.product(name=name, sku=sku)["sku"], "stock": stock, "price_minor": price, "per_user_limit": 2}
        for sku, name, stock, price in (
            ("LAMP-BRASS", "Brass lamp", 900, 4900),
            ("TEAPOT-1L", "Teapot, one litre", 600, 1900),
            ("CHAIR-OAK", "Oak chair", 60, 8900),
        )
    ]
    sale = keeper.sale(name="Friday at noon", items=items)
    keeper.sale(name="Saturday morning", starts_in_s=6 * 3600, ends_at="2099-01-01T00:00:00Z")
    keeper.sale(name="Spring clearance", publish=False)
    staff = _page(browser, stack.backoffice_url)
    phone = _page(browser, stack.backoffice_url, viewport=PHONE, color_scheme="dark", is_mobile=True)
    for page in (staff, phone):
        log_in_staff(page, stack)
    selling = threading.Thread(target=_sell, args=(stack, keys, sale), daemon=True)
    selling.start()
    staff.wait_for_timeout(SELLING_S * 1000)
    _take(staff, "staff.png")
    _take(phone, "staff-phone.png")
    shop = _page(browser, shop_url(stack, sale), viewport={"width": 760, "height": 900})
    register(shop)
    expect(shop.get_by_text("Brass lamp")).to_be_visible()
    shop.get_by_label("Brass lamp").fill("1")
    shop.get_by_role("button", name="Buy", exact=True).click()
    expect(shop.locator("#history-rows tr")).to_have_count(1)
    _take(shop, "shop.png")
    buyer = _page(browser, shop_url(stack, sale), viewport=PHONE, color_scheme="dark", is_mobile=True)
    register(buyer)
    buyer.get_by_label("Brass lamp").fill("1")
    buyer.get_by_role("button", name="Buy", exact=True).click()
    buyer.get_by_role("button", name="Pay now").click()
    buyer.get_by_role("button", name="Pay 49").click()
    expect(buyer.locator("#order-state")).to_have_text("Paid. Thank you!")
    _take(buyer, "order-phone.png")


def _page(browser: Browser, url: str, **options: Any) -> Page:
    options = {"viewport": {"width": 1200, "height": 1000}, "color_scheme": "light", **options}
    page = browser.new_context(locale="en-GB", timezone_id="UTC", reduced_motion="reduce", **options).new_page()
    page.goto(url)
    return page


def _take(page: Page, name: str) -> None:
    path = FOLDER / name
    page.screenshot(path=path)
    size = path.stat().st_size
    assert size < BYTES_MAX, f"{name} has {size} bytes"
    print(f"{name}: {size} bytes")  # noqa: T201 - a program's output


def _sell(stack: Stack, keys: TokenKeys, sale: Any) -> None:
    """Orders in waves, each of another buyer."""
    rng = random.Random(7)
    skus = [item["sku"] for item in sale["items"]]
    with httpx.Client(base_url=stack.edge_url, timeout=10) as client:
        for wave in range(SELLING_S * 4):
            for _ in range(rng.randint(1, 6 + 10 * (wave % 40 > 25))):
                token = mint_buyer_token(keys, user_id=uuid4(), issuer="flashsale", ttl_s=900)
                body = {"items": [{"sku": rng.choice(skus), "quantity": rng.randint(1, 2)}]}
                headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}
                client.post(
                    f"/v1/sales/{sale['id']}/orders",
                    content=json.dumps(body),
                    headers={**headers, "Content-Type": "application/json"},
                )
            threading.Event().wait(0.2)


if __name__ == "__main__":
    main()
