"""Steps of staff and buyers on the pages of a running stack, shared by tests and screenshots."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from playwright.sync_api import Page, expect

from ops.stack_file import Stack
from tests.fixtures.fix_browser import Visit

PASSWORD = "a buyer's password"


@dataclass
class Shopkeeper:
    """Staff over HTTP: prepares products and sales."""

    stack: Stack
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.stack.backoffice_url, timeout=20)
        tokens = self._ask("POST", "/v1/auth/login", self.stack.admin)
        self.http.headers["Authorization"] = f"Bearer {tokens['access_token']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def product(self, **members: Any) -> Any:
        body = {"sku": f"P-{secrets.token_hex(4)}", "name": "A lamp", "price_minor": 1999, "currency": "EUR", **members}
        return self._ask("POST", "/v1/products", body)

    def sale(
        self,
        *,
        stock: int = 5,
        limit: int = 0,
        starts_in_s: float = -60,
        hold_s: int = 600,
        publish: bool = True,
        **members: Any,
    ) -> Any:
        """A sale of one fresh product."""
        now = datetime.now(UTC)
        body = {
            "name": "Lamps",
            "starts_at": (now + timedelta(seconds=starts_in_s)).isoformat(),
            "ends_at": (now + timedelta(hours=2)).isoformat(),
            "hold_seconds": hold_s,
            "items": [{"sku": self.product()["sku"], "stock": stock, "price_minor": 1500, "per_user_limit": limit}],
            **members,
        }
        sale = self._ask("POST", "/v1/sales", body)
        return self.act(sale, "publish") if publish else sale

    def act(self, sale: Any, verb: str) -> Any:
        return self._ask("POST", f"/v1/sales/{sale['id']}/{verb}")

    def report(self, sale: Any) -> Any:
        """Counters of the sale's only item."""
        (item,) = self.counters(sale).values()
        return item

    def counters(self, sale: Any) -> dict[str, Any]:
        """Counters of each item of the sale by SKU."""
        items = self._ask("GET", f"/v1/sales/{sale['id']}/report")["items"]
        return {item["sku"]: item for item in items}


def log_in_staff(page: Page, stack: Stack) -> None:
    page.get_by_label("E-mail address").fill(stack.admin["email"])
    page.get_by_label("Password").fill(stack.admin["password"])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Running sales")).to_be_visible()


def shop_url(stack: Stack, sale: Any) -> str:
    return f"{stack.backoffice_url}/shop/{sale['id']}"


def register(page: Page) -> str:
    """Create an account on the shop page and log in; the address."""
    email = f"buyer-{secrets.token_hex(6)}@example.com"
    page.get_by_role("button", name="Create an account").click()
    page.get_by_label("Name", exact=True).fill("A Buyer")
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Register and log in").click()
    expect(page.get_by_role("heading", name="Buy", exact=True)).to_be_visible()
    return email


def buyer_at(visit: Visit, stack: Stack, sale: Any, **options: Any) -> Page:
    """A new, registered buyer on the page of a sale."""
    page = visit(shop_url(stack, sale), also=[stack.edge_url], **options).page
    register(page)
    return page


def log_in_buyer(page: Page, email: str) -> None:
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.get_by_role("heading", name="Your orders")).to_be_visible()


def orders_of(page: Page, stack: Stack) -> list[Any]:
    """The orders of the buyer, read from the edge with the token of the page."""
    token = page.evaluate("JSON.parse(localStorage.getItem('flashsale.buyer')).access")
    answer = httpx.get(f"{stack.edge_url}/v1/orders", headers={"Authorization": f"Bearer {token}"}, timeout=10)
    assert answer.status_code == 200, answer.text
    items: list[Any] = answer.json()["items"]
    return items


def control_provider(stack: Stack, **behaviour: Any) -> None:
    """Make the simulated payment provider behave like this, in all else well."""
    url, headers = f"{stack.payment_url}/v1/control", {"Authorization": f"Bearer {stack.payment_secret}"}
    assert httpx.delete(url, headers=headers, timeout=10).is_success
    if behaviour:
        assert httpx.post(url, headers=headers, json=behaviour, timeout=10).is_success
