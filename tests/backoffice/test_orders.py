"""Orders for staff: lists over all shards, filters, one order with its history."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis

from domain import ids, topology
from domain.orders import OrderEntry, OrderLine, OrderStatus, encode_value
from domain.topology import Topology
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases

SALE = uuid4()
T0_MS = 1_700_000_000_000
TOPOLOGY = Topology()
_INSERT = """
INSERT INTO orders (id, user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency, total_minor, lines,
                    reserved_at, expires_at, changed_at, lane, charged)
VALUES (%s, %s, %s, %s, %s, %s, %s, 1, 'EUR', 1000, %s, %s, %s, %s, 0, %s)
"""


def moment(unix_ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms)


def entry(n: int, user: UUID, *, status: OrderStatus = OrderStatus.RESERVED, version: int = 1) -> OrderEntry:
    order_id = ids.order_id(unix_ms=T0_MS + n, lane=0, bucket=topology.bucket_of_user(user), random=n)
    now_ms = int(time.time() * 1000)
    return OrderEntry(
        order_id,
        user,
        SALE,
        f"key-{n}",
        "EUR",
        (OrderLine(0, "SKU-1", 2, 500),),
        status,
        version,
        1,
        T0_MS + n,
        now_ms + 600_000,
        T0_MS + n,
    )


def store(
    databases: Databases, order: OrderEntry, *, sale: UUID = SALE, expired: bool = False, history: int = 1
) -> dict[str, Any]:
    """Store an order in its shard, as the shard writer does."""
    expires = moment(T0_MS) if expired else moment(order.expires_at_ms)
    lines = json.dumps([{"sku": "SKU-1", "quantity": 2, "unit_price_minor": 500}])
    reserved = moment(order.reserved_at_ms)
    shard = databases.shard_dsns[TOPOLOGY.shard_of_order(order.order_id)]
    with psycopg.connect(shard, autocommit=True) as connection:
        charged = order.status in (OrderStatus.RESERVED, OrderStatus.PAID)
        bucket = ids.bucket_of(order.order_id)
        row = (order.order_id, order.user_id, sale, bucket, order.idempotency_key, int(order.status), order.version)
        connection.execute(_INSERT, (*row, lines, reserved, expires, reserved, charged))
        for version in range(1, history + 1):
            status = 0 if version < order.version else int(order.status)
            step = (order.order_id, version, status, reserved + timedelta(seconds=version), version)
            connection.execute("INSERT INTO order_transitions VALUES (%s, %s, %s, %s, 0, %s)", step)
    return {"order_id": str(order.order_id), "user_id": str(order.user_id), "sale_id": str(sale)}


def listed(staff: Staff, **query: Any) -> list[str]:
    answer = staff.http.get("/v1/orders", params=query)
    assert answer.status_code == 200, answer.text
    return [item["order_id"] for item in answer.json()["items"]]


def test_over_all_shards_newest_first(staff: Staff, databases: Databases) -> None:
    users = [uuid4() for _ in range(40)]
    assert len({TOPOLOGY.shard_of_user(user) for user in users}) == 4
    made = [store(databases, entry(n, user))["order_id"] for n, user in enumerate(users)][::-1]
    assert listed(staff) == made
    pages: list[str] = []
    cursor: str | None = None
    for _ in range(6):
        page = staff.http.get("/v1/orders", params={"limit": "7", **({"cursor": cursor} if cursor else {})}).json()
        pages += [item["order_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        store(databases, entry(1000 + len(pages), uuid4()))  # newer orders do not change the pages
    assert pages == made
    assert cursor is None


def test_filters(staff: Staff, databases: Databases) -> None:
    user, other_sale = uuid4(), UUID(staff.open_sale(starts_at="2023-11-14T22:00:00Z")["id"])
    reserved = store(databases, entry(1, user))["order_id"]
    paid = store(databases, entry(2, uuid4(), status=OrderStatus.PAID, version=2), sale=other_sale)["order_id"]
    lapsed = store(databases, entry(3, user), expired=True)["order_id"]
    expired = store(databases, entry(4, uuid4(), status=OrderStatus.EXPIRED, version=2), expired=True)["order_id"]
    assert listed(staff, user_id=user) == [lapsed, reserved]
    assert listed(staff, sale_id=other_sale) == [paid]
    assert listed(staff, status="reserved") == [reserved]
    assert listed(staff, status="expired") == [expired, lapsed]
    assert listed(staff, status="paid", sale_id=other_sale) == [paid]
    assert listed(staff, status="rejected") == []
    assert listed(staff, user_id=uuid4()) == []


def test_no_shard_is_read_for_a_sale_that_does_not_exist(staff: Staff, databases: Databases) -> None:
    user = uuid4()
    store(databases, entry(1, user), sale=SALE)
    locked = [psycopg.connect(dsn) for dsn in databases.shard_dsns]
    try:
        for connection in locked:
            connection.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        assert listed(staff, sale_id=SALE) == listed(staff, sale_id=SALE, user_id=user) == []
    finally:
        for connection in locked:
            connection.close()


def test_orders_of_a_sale_are_found_by_window_in_spite_of_clock_errors(staff: Staff, databases: Databases) -> None:
    sale = staff.open_sale(starts_at="2023-11-14T22:00:00Z", ends_at="2099-01-01T00:00:00Z")
    sale_id = UUID(sale["id"])
    minute_ms = 60_000
    made = [
        store(databases, entry(minutes * minute_ms, uuid4()), sale=sale_id)["order_id"]
        for minutes in (-70, -60, 0, 600)
    ]
    assert listed(staff, sale_id=sale_id) == made[::-1]
    # The end is moved to before existing orders.
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("UPDATE sales SET ends_at = '2023-11-14T22:13:20Z' WHERE id = %s", (sale_id,))
    assert listed(staff, sale_id=sale_id) == made[::-1]
    # Ids outside the window are not read: this order has the id of another day.
    store(databases, entry(-86_400_000, uuid4()), sale=sale_id)
    assert listed(staff, sale_id=sale_id) == made[::-1]


@pytest.mark.parametrize("query", ["user_id=x", "sale_id=1", "status=lost", "status=", "cursor=zzz", "limit=1000"])
def test_filters_that_are_not_valid(staff: Staff, query: str) -> None:
    answer = staff.http.get(f"/v1/orders?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


def test_one_order_with_history(staff: Staff, databases: Databases) -> None:
    order = entry(5, uuid4(), status=OrderStatus.PAID, version=2)
    members = store(databases, order, history=2)
    answer = staff.http.get(f"/v1/orders/{order.order_id}").json()
    assert {name: answer[name] for name in members} == members
    assert (answer["status"], answer["total_minor"], answer["currency"]) == ("paid", 1000, "EUR")
    assert answer["items"] == [{"sku": "SKU-1", "quantity": 2, "unit_price_minor": 500}]
    assert answer["reserved_at"] == "2023-11-14T22:13:20.005Z"
    assert [(step["version"], step["status"]) for step in answer["history"]] == [(1, "reserved"), (2, "paid")]


def test_an_order_that_is_not_stored_yet(staff: Staff, databases: Databases, redis_client: redis.Redis) -> None:
    order = entry(6, uuid4())
    redis_client.set(topology.order_key(order.order_id), encode_value(order))
    answer = staff.http.get(f"/v1/orders/{order.order_id}").json()
    assert answer["status"] == "reserved"
    assert [step["version"] for step in answer["history"]] == [1]
    # Stored, and then cancelled in Redis.
    store(databases, order)
    later = order.becoming(OrderStatus.CANCELLED, at_ms=T0_MS + 5000)
    redis_client.set(topology.order_key(order.order_id), encode_value(later))
    answer = staff.http.get(f"/v1/orders/{order.order_id}").json()
    assert answer["status"] == "cancelled"
    assert [step["status"] for step in answer["history"]] == ["reserved", "cancelled"]
    # A malformed value in Redis does not hide the stored order.
    redis_client.set(topology.order_key(order.order_id), b"rubbish")
    assert staff.http.get(f"/v1/orders/{order.order_id}").json()["status"] == "reserved"


def test_orders_that_do_not_exist(staff: Staff) -> None:
    far_lane = ids.order_id(unix_ms=1, lane=4095, bucket=1, random=1)
    for order_id in (uuid4(), ids.new_uuid7(), entry(7, uuid4()).order_id, far_lane, "x", "null"):
        answer = staff.http.get(f"/v1/orders/{order_id}")
        assert (answer.status_code, answer.json()["code"]) == (404, "order_not_found")
