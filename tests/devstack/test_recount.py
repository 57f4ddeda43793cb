"""The demo's recount fails when one row is lost, doubled, changed, misplaced or sold twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest

from devstack.demo.recount import Promise, Recount, recount, stored_orders
from domain import ids
from domain.topology import Topology, bucket_of_user
from tests.fixtures.fix_databases import Databases

TOPOLOGY = Topology()
SALE = ids.new_uuid7()
STOCK = {"A": 30, "B": 10}
_INSERT = """
INSERT INTO orders (id, user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency, total_minor, lines,
                    reserved_at, expires_at, changed_at, lane, charged)
VALUES (%s, %s, %s, %s, %s, 0, 1, 1, 'EUR', 5, %s, %s, %s, %s, 0, true)
"""


def _promise(place: int) -> Promise:
    user = UUID(int=random.Random(place).getrandbits(128))
    order = ids.order_id(unix_ms=1_790_000_000_000 + place, lane=0, bucket=bucket_of_user(user), random=place)
    return Promise(order, user, "A" if place % 4 else "B")


PROMISES = [_promise(place) for place in range(40)]


def _store(databases: Databases, promise: Promise, *, shard: int | None = None, quantity: int = 1) -> None:
    place = TOPOLOGY.shard_of_order(promise.order_id) if shard is None else shard
    now = datetime.now(UTC)
    lines = json.dumps([{"sku": promise.sku, "quantity": quantity, "unit_price_minor": 5}])
    with psycopg.connect(databases.shard_dsns[place]) as connection:
        identity = (promise.order_id, promise.user_id, SALE, bucket_of_user(promise.user_id), str(promise.order_id))
        connection.execute(_INSERT, (*identity, lines, now, now, now))


def _change(databases: Databases, promise: Promise, statement: str) -> None:
    with psycopg.connect(databases.shard_dsns[TOPOLOGY.shard_of_order(promise.order_id)]) as connection:
        assert connection.execute(statement, {"id": promise.order_id}).rowcount == 1


def _recount(databases: Databases, promises: list[Promise] = PROMISES) -> Recount:
    return recount(promises, shard_dsns=databases.shard_dsns, sale_id=SALE, stock=STOCK, topology=TOPOLOGY)


@pytest.fixture
def stored(databases: Databases) -> Databases:
    for promise in PROMISES:
        _store(databases, promise)
    return databases


def test_everything_as_promised_is_right(stored: Databases) -> None:
    result = _recount(stored)
    assert result.is_right
    assert (result.promised, result.stored, result.promised_and_stored) == (40, 40, 40)
    assert result.sold == {"A": 30, "B": 10}
    assert stored_orders(stored.shard_dsns, SALE) == 40


def _other_shard(promise: Promise) -> int:
    return (TOPOLOGY.shard_of_order(promise.order_id) + 1) % TOPOLOGY.shards


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda d: _change(d, PROMISES[3], "DELETE FROM orders WHERE id = %(id)s"), {"missing": 1}),
        (
            lambda d: _change(d, PROMISES[3], "UPDATE orders SET status = 2, charged = false WHERE id = %(id)s"),
            {"different": 1},
        ),
        (
            lambda d: _change(d, PROMISES[3], "UPDATE orders SET user_id = gen_random_uuid() WHERE id = %(id)s"),
            {"different": 1},
        ),
        (
            lambda d: _store(d, PROMISES[3], shard=_other_shard(PROMISES[3])),
            {"repeated": 1, "misplaced": 1, "oversold": 1},
        ),
        (lambda d: _store(d, replace(_promise(100), sku="A")), {"unasked": 1, "oversold": 1}),
    ],
    ids=["deleted", "other-status", "other-user", "twice", "one-unit-too-many"],
)
def test_one_fault_turns_it_red(
    stored: Databases, fault: Callable[[Databases], None], expected: dict[str, int]
) -> None:
    fault(stored)
    result = _recount(stored)
    assert not result.is_right
    names = ("missing", "different", "unasked", "repeated", "misplaced", "oversold")
    assert {name: getattr(result, name) for name in names if getattr(result, name)} == expected


def test_one_id_told_twice_is_red(stored: Databases) -> None:
    result = _recount(stored, [*PROMISES, PROMISES[0]])
    assert result.repeated == 1 and not result.is_right
