"""A guard that does not fit: the orders that it concerns are alone with it, the rest of the shard is stored."""

from __future__ import annotations

import psycopg
import pytest

from domain.orders import OrderStatus
from domain.topology import order_queue
from runtime.queue import FailureKind
from tests.workers.making import Maker, later, stock
from tests.workers.writing import Bench, guard_of, incoming, statuses


def damage(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


async def test_a_release_that_does_not_fit_its_quota_is_poison_alone(bench: Bench, maker: Maker) -> None:
    """As a transient fault it blocked the shard for ever: no order of any sale was stored behind it."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 10, "SKU-2": 10})
    held, other = maker.order(lines=[("SKU-1", 3)]), maker.order(lines=[("SKU-2", 1)])
    store = bench.store(0)
    await store.store(incoming([maker.numbered(held), maker.numbered(other)]))
    damage(bench.databases.shard_dsns[0], "UPDATE quota SET sold = 1 WHERE sku = 'SKU-1'")
    fresh = [maker.order(lines=[("SKU-2", 1)]) for _ in range(5)]
    batch = [
        *(maker.numbered(order) for order in fresh[:3]),
        maker.numbered(later(held, OrderStatus.EXPIRED)),
        *(maker.numbered(order) for order in fresh[3:]),
        maker.numbered(later(other, OrderStatus.CANCELLED)),
    ]
    result = await store.store(incoming(batch))
    assert [order.order_id for order, _ in result.poison] == [held.order_id]
    assert "quota_no_oversell" in result.poison[0][1]
    stored = statuses(bench.databases)
    assert {order.order_id for order in fresh} <= stored.keys()
    assert stored[other.order_id] == (OrderStatus.CANCELLED, 2) and stored[held.order_id] == (OrderStatus.RESERVED, 1)


async def test_a_grant_below_what_is_sold_is_not_taken_over(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10, "SKU-2": 10})
    store = bench.store(0)
    await store.store(incoming([maker.numbered(maker.order(lines=[("SKU-1", 3)]))]))
    damage(bench.databases.shard_dsns[0], "UPDATE quota SET sold = 9, granted = 9 WHERE sku = 'SKU-1'")
    damage(bench.databases.catalogue_dsn, "UPDATE stock_ledger SET stock = 5 WHERE sku = 'SKU-1'")
    more, other = maker.order(lines=[("SKU-1", 1)]), maker.order(lines=[("SKU-2", 1)])
    result = await store.store(incoming([maker.numbered(more), maker.numbered(other)]))
    assert [order.order_id for order in result.waiting] == [more.order_id]
    assert other.order_id in statuses(bench.databases)
    assert guard_of(bench.databases, maker.sale_id)["quotas"] == {0: (9, 9)}


@pytest.mark.parametrize("count", [1, 6])
async def test_what_the_catalogue_refuses_stops_no_other_order(bench: Bench, maker: Maker, count: int) -> None:
    """A constraint of the other half of the guard, outside of the shard's own transaction."""
    stock(bench.databases, maker.sale_id, {"BROKEN": 10, "SKU-2": 10})
    damage(
        bench.databases.catalogue_dsn,
        "ALTER TABLE shard_grant ADD CONSTRAINT broken CHECK (sku <> 'BROKEN' OR total = 0) NOT VALID",
    )
    try:
        broken = maker.order(lines=[("BROKEN", 1)])
        others = [maker.order(lines=[("SKU-2", 1)]) for _ in range(count - 1)]
        async with bench.running(0):
            await bench.publish([maker.numbered(order) for order in (*others, broken)])
            await bench.drained()
        assert statuses(bench.databases).keys() == {order.order_id for order in others}
        letters, _ = await bench.letters.list(order_queue(0))
        assert [(letter.kind, letter.attempts) for letter in letters] == [(FailureKind.REFUSED_BY_DATABASE, 3)]
    finally:
        damage(bench.databases.catalogue_dsn, "ALTER TABLE shard_grant DROP CONSTRAINT broken")
