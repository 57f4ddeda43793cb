"""A guard that does not fit: the orders that it concerns are alone with it, the rest of the shard is stored."""

from __future__ import annotations

import psycopg
import pytest

from domain.orders import OrderStatus
from domain.topology import order_queue
from runtime.queue import FailureKind
from tests.workers.making import Maker, later, stock
from tests.workers.writing import Bench, guard_of, incoming, statuses
from workers.shard_writer.metrics import GUARD_DAMAGED


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


async def test_a_total_beyond_the_columns_stops_no_other_order(bench: Bench, maker: Maker) -> None:
    """The client could not encode it, which ended the writer of the shard at each start."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 10, "SKU-2": 10})
    first, second, other = (
        maker.order(lines=[("SKU-1", 1)]),
        maker.order(lines=[("SKU-1", 1)]),
        maker.order(lines=[("SKU-2", 1)]),
    )
    await bench.store(0).store(incoming([maker.numbered(first)]))
    damage(
        bench.databases.shard_dsns[0], f"UPDATE quota SET sold = {2**31 - 1}, granted = {2**31 - 1} WHERE sku = 'SKU-1'"
    )
    async with bench.running(0):
        await bench.publish([maker.numbered(second), maker.numbered(other)])
        await bench.drained()
    assert statuses(bench.databases).keys() == {first.order_id, other.order_id}
    letters, _ = await bench.letters.list(order_queue(0))
    assert [letter.kind for letter in letters] == [FailureKind.REFUSED_BY_DATABASE]


async def test_the_sweep_heals_the_others_beside_a_damaged_guard(bench: Bench, maker: Maker) -> None:
    """One SKU with halves that do not fit made each round fail: nothing of its shard was healed any more."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 10, "SKU-2": 10, "SKU-3": 10})
    store, grants, sweep = bench.store(0), bench.grants(0), bench.sweep(0)
    orders = [maker.order(lines=[(f"SKU-{number}", 3)]) for number in (1, 2, 3)]
    await store.store(incoming([maker.numbered(order) for order in orders]))
    # The catalogue's grants below the units sold (1) and above the ledger's count (2), as after a restore of a backup.
    damage(bench.databases.catalogue_dsn, "UPDATE shard_grant SET total = 1, seq = seq + 1 WHERE sku = 'SKU-1'")
    damage(bench.databases.catalogue_dsn, "UPDATE stock_ledger SET granted = 0 WHERE sku = 'SKU-2'")
    for order in orders[1:]:  # their releases are not reported to the catalogue
        await store.store(incoming([maker.numbered(later(order, OrderStatus.EXPIRED))]))
    await grants.raise_to({(maker.sale_id.int, "SKU-3"): 5})  # and not adopted
    for _ in range(4):
        await sweep.sweep()
    assert guard_of(bench.databases, maker.sale_id, "SKU-3") == {
        "ledger": (10, 0),
        "totals": {0: 0},
        "quotas": {0: (0, 0)},
    }
    assert guard_of(bench.databases, maker.sale_id, "SKU-1")["quotas"] == {0: (3, 3)}
    assert GUARD_DAMAGED.labels(0)._value.get() == 2
    damage(bench.databases.catalogue_dsn, "UPDATE shard_grant SET total = 3 WHERE sku = 'SKU-1'")
    damage(bench.databases.catalogue_dsn, "UPDATE stock_ledger SET granted = 3 WHERE sku = 'SKU-2'")
    for _ in range(3):
        await sweep.sweep()
    assert guard_of(bench.databases, maker.sale_id, "SKU-2")["ledger"] == (10, 0)
    assert GUARD_DAMAGED.labels(0)._value.get() == 0
