"""Restocks and reports over HTTP, also of sales that Redis has lost or forgotten."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import redis

from domain import topology
from domain.sales import STOCK_MAX, Stock
from reservation.verdicts import VERDICT_AGE_MS_MAX
from tests.backoffice.sale_probes import code, document, lane_of, ledger, restock, stock
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases


def test_restock_once_per_key(staff: Staff, redis_client: redis.Redis, databases: Databases) -> None:
    sale = staff.open_sale(stock=10)
    sku = sale["items"][0]["sku"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: restock(staff, sale, "more-1"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert (stock(redis_client, sale).available, ledger(databases, sale)) == (15, {sku: 15})
    assert sorted(answer.headers.get("idempotency-replayed", "") for answer in answers) == [""] + ["true"] * 7
    assert restock(staff, sale, "more-2", quantity=1).status_code == 200
    assert (stock(redis_client, sale).allotted, ledger(databases, sale)) == (16, {sku: 16})
    assert code(restock(staff, sale, "more-1", quantity=6)) == (422, "idempotency_key_reused")
    assert code(restock(staff, sale, None)) == (400, "idempotency_key_missing")
    assert code(restock(staff, sale, "k", sku="OTHER")) == (404, "sku_not_found")
    assert code(restock(staff, sale, "k", quantity=STOCK_MAX)) == (422, "validation_failed")
    for quantity in (0, -1, "5", 1.5, None, True, STOCK_MAX + 1):
        assert code(restock(staff, sale, "k", quantity=quantity)) == (422, "validation_failed"), quantity
    assert ledger(databases, sale) == {sku: 16}
    staff.act(sale, "end")
    assert restock(staff, sale, "more-1").status_code == 200  # a lost reply, asked again
    assert code(restock(staff, sale, "more-3")) == (409, "sale_state_conflict")
    assert code(restock(staff, staff.draft(), "k")) == (409, "sale_state_conflict")
    assert stock(redis_client, sale).available == 16


def test_a_repeated_restock_succeeds_after_redis_has_forgotten_the_sale(
    staff: Staff, redis_client: redis.Redis, databases: Databases
) -> None:
    sale = staff.open_sale(stock=10)
    assert restock(staff, sale, "more").status_code == 200
    staff.act(sale, "end")
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute(
            "UPDATE sales SET starts_at = now() - interval '3 days', ends_at = now() - interval '25 hours'"
        )
    redis_client.flushall()
    again = restock(staff, sale, "more")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true"), again.text
    assert again.json()["state"] == "ended"
    assert code(restock(staff, sale, "more", quantity=6)) == (422, "idempotency_key_reused")
    assert ledger(databases, sale) == {sale["items"][0]["sku"]: 15}
    assert not redis_client.exists(topology.lane_state_key(lane_of(sale)))


def test_report(staff: Staff, redis_client: redis.Redis) -> None:
    draft = staff.draft(stock=10, skus=2)
    skus = [item["sku"] for item in draft["items"]]
    path = f"/v1/sales/{draft['id']}/report"
    empty = {"restocked": 0, "reserved": 0, "paid": 0, "rejected": 0}
    assert staff.http.get(path).json() == {
        "sale_id": draft["id"],
        "state": "draft",
        "items": [{"sku": sku, "initial": 10, "available": 10, **empty} for sku in skus],
        "refused": {},
        "invariants": {"A": None, "B": None},
        "deep_look_at": None,
    }
    staff.act(draft, "publish")
    restock(staff, draft, "r", quantity=3)
    field = topology.stock_field(UUID(draft["id"]), 1)
    packed = Stock(available=4, reserved=3, paid=2, rejected=1, allotted=12, borrowed=0, lent=2).pack()
    redis_client.hset(topology.lane_state_key(lane_of(draft)), field, packed)
    redis_client.hset(topology.REFUSED_KEY_PREFIX + draft["id"], mapping={"sold_out": 12, "rate_limited": 3})
    set_verdict(redis_client, draft, age_ms=VERDICT_AGE_MS_MAX // 2)
    assert staff.http.get(path).json() == {
        "sale_id": draft["id"],
        "state": "open",
        "items": [
            {"sku": skus[0], "initial": 10, "available": 13, **empty, "restocked": 3},
            {"sku": skus[1], "initial": 10, "restocked": 0, "available": 6, "reserved": 3, "paid": 2, "rejected": 1},
        ],
        "refused": {"rate_limited": 3, "sold_out": 12},
        "invariants": {"A": True, "B": None},
        "deep_look_at": "2027-01-15T08:00:00.123Z",
    }
    for age_ms in (VERDICT_AGE_MS_MAX + 5_000, -VERDICT_AGE_MS_MAX - 5_000):
        set_verdict(redis_client, draft, age_ms=age_ms)
        answer = staff.http.get(path).json()
        assert answer["invariants"] == {"A": None, "B": None}, "an old verdict proves nothing"
        assert answer["deep_look_at"] is None


def set_verdict(client: redis.Redis, sale: dict[str, Any], *, age_ms: int) -> None:
    seconds, microseconds = client.time()
    at_ms = seconds * 1000 + microseconds // 1000 - age_ms
    verdict = {"sale_id": sale["id"], "at_ms": at_ms, "A": True, "B": None, "detail": []}
    verdict["deep_at_ms"] = 1_800_000_000_123
    client.hset(topology.VERDICTS_KEY, sale["id"], json.dumps(verdict))


def test_report_after_redis_has_forgotten_the_sale(
    staff: Staff, redis_client: redis.Redis, databases: Databases
) -> None:
    sale = staff.open_sale()
    restock(staff, sale, "r", quantity=3)
    assert staff.act(sale, "end").json()["state"] == "ended"
    path = f"/v1/sales/{sale['id']}/report"
    sku = sale["items"][0]["sku"]
    for shard, sold in ((0, 2), (3, 1)):
        with psycopg.connect(databases.shard_dsns[shard]) as connection:
            connection.execute(
                "INSERT INTO quota (sale_id, sku, granted, seq, sold) VALUES (%s, %s, 4, 1, %s)",
                (sale["id"], sku, sold),
            )
    redis_client.hdel(topology.lane_state_key(lane_of(sale)), topology.stock_field(UUID(sale["id"]), 0))
    assert code(staff.http.get(path)) == (503, "dependency_unavailable"), "Redis lost it"
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute(
            "UPDATE sales SET starts_at = now() - interval '3 days', ends_at = now() - interval '25 hours'"
        )
    redis_client.flushall()
    answer = staff.http.get(path).json()
    initial = sale["items"][0]["stock"]
    assert answer["state"] == "ended" and answer["refused"] == {} and answer["invariants"] == {"A": None, "B": None}
    assert answer["items"] == [
        {
            "sku": sku, "initial": initial, "restocked": 3, "available": initial, "reserved": 0, "paid": 3, "rejected": 0,
        }
    ]  # fmt: skip
    # Nothing brings it back to Redis.
    for verb in ("end", "publish"):
        assert staff.act(sale, verb).json()["state"] == "ended"
    assert not redis_client.exists(topology.sale_key(UUID(sale["id"])), topology.SALES_KEY)


def test_a_lane_that_lost_the_sale_is_never_loaded_again(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale()
    redis_client.flushall()
    for answer in (
        staff.act(sale, "publish"),
        staff.act(sale, "pause"),
        restock(staff, sale, "k"),
        staff.http.get(f"/v1/sales/{sale['id']}/report"),
    ):
        assert code(answer) == (503, "dependency_unavailable")
        assert "retry-after" in answer.headers
    assert not redis_client.exists(topology.lane_state_key(lane_of(sale)))
    # Edges learn of it, so that they do not say that there is no such sale.
    assert document(redis_client, sale).sale_id == UUID(sale["id"])
