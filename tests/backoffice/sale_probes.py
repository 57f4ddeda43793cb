"""Requests about sales, and reads of a sale in Redis and the catalogue, shared by the tests of sales."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import psycopg
import redis

from domain import topology
from domain.sales import SaleDefinition, Stock
from domain.topology import Topology
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases

GOOD: dict[str, Any] = {
    "name": "Sale",
    "starts_at": "2020-01-01T00:00:00Z",
    "ends_at": "2099-01-01T00:00:00Z",
    "hold_seconds": 600,
    "items": [{"sku": "SKU-1", "stock": 5, "price_minor": 500, "per_user_limit": 2}],
}


def ahead(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def restock(staff: Staff, sale: dict[str, Any], key: str | None, **members: Any) -> httpx.Response:
    body = {"sku": sale["items"][0]["sku"], "quantity": 5, **members}
    headers = {} if key is None else {"Idempotency-Key": key}
    return staff.http.post(f"/v1/sales/{sale['id']}/restock", json=body, headers=headers)


def document(client: redis.Redis, sale: dict[str, Any]) -> SaleDefinition:
    raw = client.get(topology.sale_key(UUID(sale["id"])))
    assert isinstance(raw, bytes)
    return SaleDefinition.from_document(json.loads(raw))


def lane_of(sale: dict[str, Any]) -> int:
    return Topology().lanes_of_sale(UUID(sale["id"]), count=1)[0]


def stock(client: redis.Redis, sale: dict[str, Any], index: int = 0) -> Stock:
    raw = client.hget(topology.lane_state_key(lane_of(sale)), topology.stock_field(UUID(sale["id"]), index))
    assert isinstance(raw, bytes)
    return Stock.unpack(raw)


def lane_definition(client: redis.Redis, sale: dict[str, Any]) -> bytes:
    raw = client.hget(topology.lane_state_key(lane_of(sale)), topology.definition_field(UUID(sale["id"])))
    assert isinstance(raw, bytes)
    return raw


def ledger(databases: Databases, sale: dict[str, Any]) -> dict[str, int]:
    with psycopg.connect(databases.catalogue_dsn) as connection:
        return dict(
            connection.execute("SELECT sku, stock FROM stock_ledger WHERE sale_id = %s", (sale["id"],)).fetchall()
        )
