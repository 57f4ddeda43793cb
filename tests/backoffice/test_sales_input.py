"""Input for sales over HTTP: invalid members, limits, ids that do not exist."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from domain.sales import STOCK_MAX, Stock
from tests.backoffice.sale_probes import GOOD, code, stock
from tests.fixtures.fix_backoffice import Staff

UNKNOWN_ID = "0b6b2f3a-7d8e-4c1f-9a2b-3c4d5e6f7a8b"  # fixed: it is part of test ids


def _item(**members: Any) -> dict[str, Any]:
    return {"items": [{**GOOD["items"][0], **members}]}


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": 1}, "/name"),
        ({"starts_at": "yesterday"}, "/starts_at"),
        ({"starts_at": "2026-01-01T00:00:00"}, "/starts_at"),
        ({"starts_at": "1969-01-01T00:00:00Z"}, "/starts_at"),
        ({"starts_at": "0001-01-01T00:00:00+14:00"}, "/starts_at"),
        ({"starts_at": 1700000000}, "/starts_at"),
        ({"starts_at": "1700000000"}, "/starts_at"),
        ({"starts_at": "2026"}, "/starts_at"),
        ({"starts_at": "2026-01-01"}, "/starts_at"),
        ({"starts_at": None}, "/starts_at"),
        ({"ends_at": "4102444800000"}, "/ends_at"),
        ({"starts_at": "2099-01-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "2021-01-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "2019-01-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "10000-01-01T00:00:00Z"}, "/ends_at"),
        ({"hold_seconds": 0}, "/hold_seconds"),
        ({"hold_seconds": 86_401}, "/hold_seconds"),
        ({"hold_seconds": 1.5}, "/hold_seconds"),
        ({"lanes": 0}, "/lanes"),
        ({"lanes": 5}, "/lanes"),  # the cluster has 4
        ({"lanes": 101}, "/lanes"),
        ({"lanes": "2"}, "/lanes"),
        ({"lanes": True}, "/lanes"),
        ({"lanes": None}, "/lanes"),
        ({"expected_buyers": 0}, "/expected_buyers"),
        ({"items": []}, "/items"),
        ({"items": [GOOD["items"][0]] * 2}, ""),
        ({"items": [{**GOOD["items"][0], "sku": f"S{n}"} for n in range(201)]}, "/items"),
        (_item(sku="not a sku"), "/items/0/sku"),
        (_item(sku="UNKNOWN"), "/items/0/sku"),
        (_item(sku="INACTIVE"), "/items/0/sku"),
        (_item(stock=-1), "/items/0/stock"),
        (_item(stock=STOCK_MAX + 1), "/items/0/stock"),
        (_item(stock="5"), "/items/0/stock"),
        (_item(price_minor=-1), "/items/0/price_minor"),
        (_item(price_minor=10**12 + 1), "/items/0/price_minor"),
        (_item(per_user_limit=-1), "/items/0/per_user_limit"),
        (_item(per_user_limit=65_536), "/items/0/per_user_limit"),
        (_item(colour="blue"), "/items/0/colour"),
        ({"state": "open"}, "/state"),
        ({"id": UNKNOWN_ID}, "/id"),
    ],
)
def test_invalid_sales(staff: Staff, members: dict[str, Any], pointer: str) -> None:
    staff.product(sku="SKU-1")
    staff.product(sku="INACTIVE", active=False)
    answer = staff.http.post("/v1/sales", json={**GOOD, **members})
    assert code(answer) == (422, "validation_failed")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert staff.http.get("/v1/sales").json()["items"] == []


def test_one_currency(staff: Staff) -> None:
    skus = [staff.product(currency=currency)["sku"] for currency in ("EUR", "USD")]
    items = [{"sku": sku, "stock": 1, "price_minor": 1, "per_user_limit": 0} for sku in skus]
    answer = staff.http.post("/v1/sales", json={**GOOD, "items": items})
    assert code(answer) == (422, "validation_failed")
    assert answer.json()["errors"] == [
        {"pointer": "/items/1/sku", "detail": "the currency of product SKU-2 is USD, not EUR"}
    ]


def test_the_largest_sale(staff: Staff, redis_client: redis.Redis) -> None:
    skus = [f"SKU-{n}" for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda sku: staff.product(sku=sku), skus))
    items = [{"sku": sku, "stock": STOCK_MAX, "price_minor": 10**12, "per_user_limit": 65_535} for sku in skus]
    members = {**GOOD, "items": items, "hold_seconds": 86_400, "ends_at": "9999-12-31T23:59:59Z"}
    sale = staff.http.post("/v1/sales", json=members).json()
    assert staff.act(sale, "publish").status_code == 200
    assert stock(redis_client, sale, 199) == Stock.fresh(STOCK_MAX)
    assert len(staff.http.get(f"/v1/sales/{sale['id']}/report").json()["items"]) == 200


@pytest.mark.parametrize("sale_id", ["x", UNKNOWN_ID, "01890000-0000-8000-8000-000000000001", "%00"])
def test_sales_that_do_not_exist(staff: Staff, sale_id: str) -> None:
    path = f"/v1/sales/{sale_id}"
    headers = {"Idempotency-Key": "k"}
    for answer in (
        staff.http.get(path),
        staff.http.get(path + "/report"),
        staff.http.patch(path, json={"name": "x"}),
        *(staff.http.post(f"{path}/{verb}") for verb in ("publish", "pause", "resume", "end")),
        staff.http.post(path + "/restock", json={"sku": "S", "quantity": 1}, headers=headers),
    ):
        assert code(answer) == (404, "sale_not_found")
