"""A buyer's own orders: one, the list, cancelling. From Redis, from the shards, and from both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb

from devstack.servers import RedisServer
from domain import ids, topology
from domain.orders import OrderEntry, OrderLine, OrderStatus, decode_value, encode_value
from domain.sales import SaleDefinition
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import TOPOLOGY, Buyers, EdgeProcess, Publisher


@pytest.fixture
def buyer() -> UUID:
    return uuid4()


@pytest.fixture
def headers(buyers: Buyers, buyer: UUID) -> dict[str, str]:
    return {"Authorization": f"Bearer {buyers.token(buyer)}"}


def place(client: httpx.Client, buyers: Buyers, sale: SaleDefinition, buyer: UUID, quantity: int = 1) -> dict[str, Any]:
    body = {"items": [{"sku": "SKU-1", "quantity": quantity}]}
    answer = client.post(f"/v1/sales/{sale.sale_id}/orders", headers=buyers.headers(buyer), json=body)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


def held(publisher: Publisher, order_id: str) -> OrderEntry:
    value = publisher.redis.get(topology.order_key(UUID(order_id)))
    assert isinstance(value, bytes)
    # Any key of its own: the value has none.
    return replace(decode_value(UUID(order_id), value), idempotency_key=f"of {order_id}")


def made_up(buyer: UUID, *, status: OrderStatus = OrderStatus.PAID, age_s: int = 3600, version: int = 2) -> OrderEntry:
    """An order as the shard stores it, of a sale that is not published here."""
    at_ms = int(time.time() * 1000) - age_s * 1000
    bucket = topology.bucket_of_user(buyer)
    return OrderEntry(
        order_id=ids.order_id(unix_ms=at_ms, lane=1, bucket=bucket, random=uuid4().int),
        user_id=buyer,
        sale_id=uuid4(),
        idempotency_key=uuid4().hex,
        currency="EUR",
        lines=(OrderLine(0, "OLD-1", 2, 500), OrderLine(1, "OLD-2", 1, 1)),
        status=status,
        version=version,
        epoch=1,
        reserved_at_ms=at_ms,
        expires_at_ms=at_ms + 600_000,
        changed_at_ms=at_ms + 1000,
    )


def store(databases: Databases, entry: OrderEntry) -> None:
    """Insert the row that the shard writer makes of an entry."""

    def at(ms: int) -> datetime:
        return datetime.fromtimestamp(ms / 1000, UTC)

    lines = [{"sku": i.sku, "quantity": i.quantity, "unit_price_minor": i.unit_price_minor} for i in entry.lines]
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_user(entry.user_id)]) as connection:
        connection.execute(
            """INSERT INTO orders (id, user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency,
                   total_minor, lines, reserved_at, expires_at, changed_at, lane, charged)
               VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",
            (
                *(entry.order_id, entry.user_id, entry.sale_id, ids.bucket_of(entry.order_id), entry.idempotency_key),
                *(int(entry.status), entry.version, entry.epoch, entry.currency, entry.total_minor, Jsonb(lines)),
                *(at(entry.reserved_at_ms), at(entry.expires_at_ms), at(entry.changed_at_ms)),
                *(ids.lane_of(entry.order_id), entry.status in (OrderStatus.RESERVED, OrderStatus.PAID)),
            ),
        )


@pytest.fixture
def databases(migrated: Databases) -> Iterator[Databases]:
    yield migrated
    migrated.empty()


def test_an_own_order_right_after_it_was_placed(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, buyer: UUID, headers: dict[str, str]
) -> None:
    sale = publisher.publish()
    placed = place(client, buyers, sale, buyer, 2)
    answer = client.get(f"/v1/orders/{placed['order_id']}", headers=headers)
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert answer.json() == {**placed, "payment": "none"}
    capitals = client.get(f"/v1/orders/{placed['order_id'].upper()}", headers=headers)
    assert capitals.json() == answer.json()


def test_another_buyers_order_and_ids_that_cannot_exist(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, buyer: UUID, headers: dict[str, str]
) -> None:
    placed = place(client, buyers, publisher.publish(), uuid4())
    far_lane = ids.order_id(unix_ms=1, lane=99, bucket=0, random=0)
    unknown = ids.order_id(unix_ms=1, lane=0, bucket=topology.bucket_of_user(buyer), random=7)
    for order_id in (placed["order_id"], uuid4(), far_lane, unknown, "x"):
        for method, path in (("GET", f"/v1/orders/{order_id}"), ("POST", f"/v1/orders/{order_id}/cancel")):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "order_not_found")
    for method, path in (
        ("GET", f"/v1/orders/{unknown}"),
        ("POST", f"/v1/orders/{unknown}/cancel"),
        ("GET", "/v1/orders"),
    ):
        assert client.request(method, path).json()["code"] == "token_missing"


def test_an_order_that_only_its_shard_knows(
    client: httpx.Client, buyer: UUID, headers: dict[str, str], databases: Databases
) -> None:
    entry = made_up(buyer)
    store(databases, entry)
    answer = client.get(f"/v1/orders/{entry.order_id}", headers=headers)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["status"], document["payment"], document["total_minor"]) == ("paid", "captured", 1001)
    assert document["items"] == [
        {"sku": "OLD-1", "quantity": 2, "unit_price_minor": 500},
        {"sku": "OLD-2", "quantity": 1, "unit_price_minor": 1},
    ]


def test_a_hold_past_its_time_reads_as_expired(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, buyer: UUID, headers: dict[str, str]
) -> None:
    sale = publisher.publish(hold_s=0.05)
    placed = place(client, buyers, sale, buyer)
    time.sleep(0.06)
    assert client.get(f"/v1/orders/{placed['order_id']}", headers=headers).json()["status"] == "expired"
    answer = client.post(f"/v1/orders/{placed['order_id']}/cancel", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "order_state_conflict")


def test_cancelling(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, buyer: UUID, headers: dict[str, str]
) -> None:
    sale = publisher.publish(stock=3, limit=2)
    placed = place(client, buyers, sale, buyer, 2)
    assert publisher.stock(sale).available == 1
    first = client.post(f"/v1/orders/{placed['order_id']}/cancel", headers=headers)
    again = client.post(f"/v1/orders/{placed['order_id']}/cancel", headers=headers, json={"any": "body"})
    for answer in (first, again):
        assert answer.status_code == 200
        assert answer.json() == {**placed, "status": "cancelled", "payment": "none"}
    stock = publisher.stock(sale)
    assert (stock.available, stock.reserved) == (3, 0) and stock.is_balanced
    # The units no longer count against the purchase limit.
    place(client, buyers, sale, buyer, 2)
    assert client.get(f"/v1/orders/{placed['order_id']}", headers=headers).json()["status"] == "cancelled"


@pytest.mark.parametrize("status", [OrderStatus.PAID, OrderStatus.EXPIRED, OrderStatus.REJECTED])
def test_cancelling_what_is_final(
    client: httpx.Client,
    buyers: Buyers,
    publisher: Publisher,
    buyer: UUID,
    headers: dict[str, str],
    status: OrderStatus,
) -> None:
    placed = place(client, buyers, publisher.publish(), buyer)
    entry = held(publisher, placed["order_id"])
    publisher.redis.set(
        topology.order_key(entry.order_id), encode_value(entry.becoming(status, at_ms=entry.reserved_at_ms + 1))
    )
    answer = client.post(f"/v1/orders/{placed['order_id']}/cancel", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "order_state_conflict")
    assert status.label in answer.json()["detail"]


def test_cancelling_what_only_the_shard_knows(
    client: httpx.Client, buyer: UUID, headers: dict[str, str], databases: Databases
) -> None:
    expected = {
        OrderStatus.CANCELLED: (200, None),
        OrderStatus.PAID: (409, "order_state_conflict"),
        OrderStatus.EXPIRED: (409, "order_state_conflict"),
        OrderStatus.RESERVED: (409, "order_state_conflict"),  # its hold is over
    }
    for status, (http, code) in expected.items():
        entry = made_up(buyer, status=status)
        store(databases, entry)
        answer = client.post(f"/v1/orders/{entry.order_id}/cancel", headers=headers)
        assert (answer.status_code, answer.json().get("code")) == (http, code), status
    # Redis lost this hold: it has not ended, and Redis does not have it.
    entry = made_up(buyer, status=OrderStatus.RESERVED, age_s=1)
    store(databases, entry)
    answer = client.post(f"/v1/orders/{entry.order_id}/cancel", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")


def test_the_list_unites_redis_and_the_shard(
    client: httpx.Client,
    buyers: Buyers,
    publisher: Publisher,
    buyer: UUID,
    headers: dict[str, str],
    databases: Databases,
) -> None:
    old = [made_up(buyer, age_s=5000 + n) for n in range(3)]
    for entry in old:
        store(databases, entry)
    store(databases, made_up(uuid4()))
    sales = [publisher.publish() for _ in range(3)]
    placed = [place(client, buyers, sale, buyer) for sale in sales for _ in range(2)]
    place(client, buyers, sales[0], uuid4())
    # One order is stored already, but Redis has a newer version.
    both = held(publisher, placed[0]["order_id"])
    store(databases, both)
    newer = replace(both, status=OrderStatus.CANCELLED, version=2)
    publisher.redis.set(topology.order_key(both.order_id), encode_value(newer))
    # Another is stored and final, and so old that Redis has only its apply-once record.
    gone = held(publisher, placed[1]["order_id"])
    store(databases, gone.becoming(OrderStatus.EXPIRED, at_ms=gone.expires_at_ms))
    publisher.redis.delete(topology.order_key(gone.order_id))

    whole = client.get("/v1/orders", headers=headers).json()
    expected = sorted([entry["order_id"] for entry in placed] + [str(entry.order_id) for entry in old], reverse=True)
    assert [item["order_id"] for item in whole["items"]] == expected and whole["next_cursor"] is None
    by_id = {item["order_id"]: item for item in whole["items"]}
    assert by_id[placed[0]["order_id"]]["status"] == "cancelled"
    assert by_id[placed[1]["order_id"]]["status"] == "expired"
    assert by_id[placed[2]["order_id"]] == {**placed[2], "payment": "none"}

    for limit in (1, 2, 4, 9):
        seen, cursor = [], ""
        while True:
            query = {"limit": str(limit)} | ({"cursor": cursor} if cursor else {})
            page = client.get("/v1/orders", headers=headers, params=query).json()
            assert 1 <= len(page["items"]) <= limit
            seen += [item["order_id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = page["next_cursor"]
        assert seen == expected


def test_more_records_than_one_scan_returns(
    client: httpx.Client, buyers: Buyers, publisher: Publisher, buyer: UUID, headers: dict[str, str]
) -> None:
    """A user hash of nearly as many records as are read; records without an order are skipped."""
    sale = publisher.publish()
    placed = place(client, buyers, sale, buyer)
    key = topology.user_key(sale.lanes[0], sale.sale_id, buyer)
    records = {f"older-{n}": ids.order_id(unix_ms=n, lane=0, bucket=0, random=n).bytes + bytes(10) for n in range(1900)}
    publisher.redis.hset(key, mapping=records)
    page = client.get("/v1/orders", headers=headers).json()
    assert [item["order_id"] for item in page["items"]] == [placed["order_id"]]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "limit=1&limit=2", "limit=%31%30%30%30"),
        *("cursor=", "cursor=x", "cursor=bm9uc2Vuc2U", "cursor=%ff", "cursor=b01", "cursor=" + "A" * 23),
    ],
)
def test_bad_pages(client: httpx.Client, headers: dict[str, str], query: str) -> None:
    answer = client.get(f"/v1/orders?{query}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed"), query
    assert answer.json()["errors"][0]["pointer"] == "/" + query.partition("=")[0]


def test_postgres_down(
    own_edge: Any, edge_redis: RedisServer, buyers: Buyers, publisher: Publisher, buyer: UUID, headers: dict[str, str]
) -> None:
    """Redis takes and reads orders. Only orders that are not in Redis are unavailable."""
    nowhere = ",".join(["postgresql://flashsale@127.0.0.1:1/shard"] * 4)
    edge: EdgeProcess = own_edge(redis_url=edge_redis.url, shard_dsns=nowhere)
    with httpx.Client(base_url=edge.url, timeout=20) as client:
        placed = place(client, buyers, publisher.publish(), buyer)
        assert client.get(f"/v1/orders/{placed['order_id']}", headers=headers).status_code == 200
        for path in (f"/v1/orders/{made_up(buyer).order_id}", "/v1/orders"):
            answer = client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
            assert answer.headers["retry-after"] == "1"
