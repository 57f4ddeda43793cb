"""A client of the backoffice for staff: log in, create products and sales. Only for samples and the demo."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime.process.errors import OperatorError

ANSWER_S_MAX = 30.0


class ShopError(OperatorError):
    """A request to the backoffice failed; the message has its status, code and detail."""


@dataclass(slots=True)
class Shop:
    """A logged-in member of staff."""

    url: str
    token: str = field(repr=False)

    @classmethod
    def log_in(cls, url: str, *, email: str, password: str) -> Shop:
        """Log in at the backoffice at `url`."""
        tokens = call("POST", f"{url}/v1/auth/login", body={"email": email, "password": password})
        return cls(url, tokens["access_token"])

    def create_product(self, *, sku: str, name: str, price_minor: int) -> dict[str, Any]:
        """Create a product; returns it."""
        product = {"sku": sku, "name": name, "description": name, "price_minor": price_minor, "currency": "EUR"}
        return self._call("POST", "/v1/products", product)

    def create_draft_sale(
        self,
        *,
        name: str,
        stock: dict[str, int],
        price_minor: int,
        hours: float = 2,
        hold_s: int = 600,
        per_user_limit: int = 0,
        lanes: int = 1,
    ) -> dict[str, Any]:
        """Create a sale that opens as soon as it is published; returns it.

        `stock` maps a SKU to its units. A `per_user_limit` of 0 means no limit.
        """
        now = datetime.now(UTC)
        return self._call(
            "POST",
            "/v1/sales",
            {
                "name": name,
                "starts_at": (now - timedelta(minutes=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "ends_at": (now + timedelta(hours=hours)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "hold_seconds": hold_s,
                "lanes": lanes,
                "items": [
                    {"sku": sku, "stock": units, "price_minor": price_minor, "per_user_limit": per_user_limit}
                    for sku, units in stock.items()
                ],
            },
        )

    def publish(self, sale_id: str) -> dict[str, Any]:
        """Publish a draft; returns the sale. Repeating it changes nothing."""
        return self._call("POST", f"/v1/sales/{sale_id}/publish")

    def create_open_sale(
        self,
        *,
        name: str,
        stock: dict[str, int],
        price_minor: int,
        hours: float = 2,
        hold_s: int = 600,
        per_user_limit: int = 0,
        lanes: int = 1,
    ) -> dict[str, Any]:
        """Create and publish a sale that is open now; arguments as of `create_draft_sale`."""
        draft = self.create_draft_sale(
            name=name, stock=stock, price_minor=price_minor, hours=hours, hold_s=hold_s, per_user_limit=per_user_limit,
            lanes=lanes,
        )  # fmt: skip
        return self.publish(draft["id"])

    def report(self, sale_id: str) -> dict[str, Any]:
        """The report of a sale, with its verdicts."""
        return self._call("GET", f"/v1/sales/{sale_id}/report")

    def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return call(method, self.url + path, token=self.token, body=body)


def call(method: str, url: str, *, token: str | None = None, body: Any = None) -> dict[str, Any]:
    """Send one request; returns the JSON answer. Raises ShopError for any status other than 2xx."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - our own service
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as answer:  # noqa: S310 - as above
            document: dict[str, Any] = json.loads(answer.read() or b"{}")
            return document
    except urllib.error.HTTPError as error:
        raise ShopError(f"{method} {url}: {error.code} {error.read(2000).decode(errors='replace')}") from error
    except (urllib.error.URLError, OSError) as error:
        raise ShopError(f"{method} {url}: no answer: {getattr(error, 'reason', error)}") from error
