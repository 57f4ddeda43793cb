"""A shard's transaction on a real PostgreSQL: exact rows, units and events for any repetition and any order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import psycopg
import pytest

from domain.orders import OrderStatus
from domain.topology import DESTINATION_ORDER_EVENTS, outbox_partition
from tests.workers.making import Maker, later, renamed, stock
from tests.workers.writing import Bench, event_ids, guard_of, incoming, rows, statuses
from workers.shard_writer import sweep
from workers.shard_writer.plan import Grant


async def test_a_batch_is_stored_with_units_transitions_and_events(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10, "SKU-2": 10})
    one = maker.order(lines=[("SKU-1", 2)])
    two = maker.order(lines=[("SKU-2", 1), ("SKU-1", 3)])
    entries = [maker.numbered(one), maker.numbered(two), maker.numbered(later(two, OrderStatus.PAID))]

    result = await bench.store(0).store(incoming(entries))

    assert (result.stored_count, result.event_count, result.waiting, result.poison) == (2, 3, [], [])
    dsn = bench.databases.shard_dsns[0]
    assert sorted(rows(dsn, "SELECT order_id, sku, quantity, status FROM audit_orders")) == sorted(
        [
            (one.order_id, "SKU-1", 2, "reserved"),
            (two.order_id, "SKU-1", 3, "paid"),
            (two.order_id, "SKU-2", 1, "paid"),
        ]
    )
    row = rows(
        dsn,
        "SELECT user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency, total_minor, lines, "
        "extract(epoch FROM reserved_at) * 1000, extract(epoch FROM expires_at) * 1000, lane, charged FROM orders WHERE id = %s",
        one.order_id,
    )[0]
    lines = [{"sku": "SKU-1", "quantity": 2, "unit_price_minor": 1999}]
    bucket = (one.order_id.int >> 52) & 1023
    assert row == (
        one.user_id, one.sale_id, bucket, one.idempotency_key, 0, 1, 1, "EUR", 3998, lines,
        one.reserved_at_ms, one.expires_at_ms, maker.lane, True,
    )  # fmt: skip
    assert sorted(rows(dsn, "SELECT order_id, version, status, lane, lane_seq FROM order_transitions")) == sorted(
        [(one.order_id, 1, 0, 1, 1), (two.order_id, 1, 0, 1, 2), (two.order_id, 2, 1, 1, 3)]
    )
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (10, 5), "totals": {0: 5}, "quotas": {0: (5, 5)}}
    outbox = rows(dsn, "SELECT destination, partition, events FROM outbox")
    for destination, partition, events in outbox:
        assert destination == DESTINATION_ORDER_EVENTS
        assert {outbox_partition(event["key"]) for event in events} == {partition}
    assert sorted(event_ids(bench.databases)) == sorted([f"{one.order_id}:1", f"{two.order_id}:1", f"{two.order_id}:2"])
    (event,) = [e for _, _, events in outbox for e in events if e["id"] == f"{two.order_id}:2"]
    assert (event["type"], event["version"], event["data"]["total_minor"]) == ("order.paid", 2, 4 * 1999)


async def test_redelivery_changes_nothing(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    order = maker.order(lines=[("SKU-1", 2)])
    entries = [maker.numbered(order), maker.numbered(later(order, OrderStatus.PAID))]
    store = bench.store(0)
    await store.store(incoming(entries))
    before = (guard_of(bench.databases, maker.sale_id), event_ids(bench.databases))

    result = await store.store(incoming(entries))
    again = await store.store(incoming(entries[:1]))

    assert (result.stored_count, result.event_count, result.repeated_count) == (0, 0, 1)
    assert (again.stored_count, again.event_count) == (0, 0)
    assert (guard_of(bench.databases, maker.sale_id), event_ids(bench.databases)) == before


async def test_an_older_version_that_comes_later_is_noted_only(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    order = maker.order()
    first, second = maker.numbered(order), maker.numbered(later(order, OrderStatus.PAID))
    store = bench.store(0)
    await store.store(incoming([second]))
    await store.store(incoming([first]))
    assert statuses(bench.databases) == {order.order_id: (1, 2)}
    assert guard_of(bench.databases, maker.sale_id)["quotas"] == {0: (1, 1)}
    assert event_ids(bench.databases) == [f"{order.order_id}:2", f"{order.order_id}:1"]


@pytest.mark.parametrize("status", [OrderStatus.CANCELLED, OrderStatus.EXPIRED])
async def test_what_arrives_cancelled_or_expired_never_charges(bench: Bench, maker: Maker, status: OrderStatus) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    order = maker.order()
    first, second = maker.numbered(order), maker.numbered(later(order, status))
    store = bench.store(0)
    await store.store(incoming([second]))
    await store.store(incoming([first]))
    together = maker.order()
    both = [maker.numbered(together), maker.numbered(later(together, status))]
    await store.store(incoming(both))
    assert statuses(bench.databases) == {order.order_id: (status, 2), together.order_id: (status, 2)}
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (10, 0), "totals": {}, "quotas": {0: (0, 0)}}


async def test_a_release_lets_another_shard_sell_the_unit(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1})
    first, second = maker.order(shard=0), maker.order(shard=3)
    await bench.store(0).store(incoming([maker.numbered(first)]))
    seq_of_second = maker.numbered(second)

    waiting = await bench.store(3).store(incoming([seq_of_second], shard=3))
    assert [order.order_id for order in waiting.waiting] == [second.order_id]
    assert second.order_id not in statuses(bench.databases)

    released = await bench.store(0).store(incoming([maker.numbered(later(first, OrderStatus.EXPIRED))]))
    assert guard_of(bench.databases, maker.sale_id)["quotas"][0] == (0, 0)
    await bench.grants(0).lower_to(released.given_up)
    assert guard_of(bench.databases, maker.sale_id)["ledger"] == (1, 0)

    stored = await bench.store(3).store(incoming([seq_of_second], shard=3))
    assert stored.stored_count == 1
    guard = guard_of(bench.databases, maker.sale_id)
    assert guard["ledger"] == (1, 1)
    assert guard["quotas"] == {0: (0, 0), 3: (1, 1)}


async def test_a_batch_uses_the_units_it_releases(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1})
    first, second = maker.order(), maker.order()
    store = bench.store(0)
    await store.store(incoming([maker.numbered(first)]))
    entries = [maker.numbered(second), maker.numbered(later(first, OrderStatus.CANCELLED))]
    result = await store.store(incoming(entries))
    assert result.waiting == []
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (1, 1), "totals": {0: 1}, "quotas": {0: (1, 1)}}


async def test_a_late_lowering_does_not_undo_a_newer_grant(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 5})
    store = bench.store(0)
    first = maker.order()
    await store.store(incoming([maker.numbered(first)]))
    released = await store.store(incoming([maker.numbered(later(first, OrderStatus.CANCELLED))]))
    await store.store(incoming([maker.numbered(maker.order(lines=[("SKU-1", 2)]))]))
    await bench.grants(0).lower_to(released.given_up)
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (5, 2), "totals": {0: 2}, "quotas": {0: (2, 2)}}


async def test_poison_alone_is_refused(bench: Bench, maker: Maker) -> None:
    """A second order for one key: the database refuses it, and only it."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 100})
    good = [maker.order() for _ in range(20)]
    bad = renamed(good[4], maker.order(user_id=good[4].user_id))
    entries = [maker.numbered(order) for order in (*good[:10], bad, *good[10:])]
    result = await bench.store(0).store(incoming(entries))
    assert [order.order_id for order, _ in result.poison] == [bad.order_id]
    assert "orders_one_per_key" in result.poison[0][1]
    assert result.stored_count == 20
    assert statuses(bench.databases).keys() == {order.order_id for order in good}
    assert guard_of(bench.databases, maker.sale_id)["quotas"][0][1] == 20
    assert sorted(event_ids(bench.databases)) == sorted(f"{order.order_id}:1" for order in good)
    # The grant was made for all of them; two looks later the sweep gives the unit back.
    worker = bench.sweep(0)
    assert [await worker.sweep() for _ in range(3)] == [0, 1, 0]
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (100, 20), "totals": {0: 20}, "quotas": {0: (20, 20)}}


async def test_a_lost_grant_heals_at_the_next_raise(bench: Bench, maker: Maker) -> None:
    """The process died between the catalogue's transaction and its own."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    key = (maker.sale_id.int, "SKU-1")
    await bench.grants(0).raise_to({key: 3})
    await bench.store(0).store(incoming([maker.numbered(maker.order(lines=[("SKU-1", 3)]))]))
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (10, 3), "totals": {0: 3}, "quotas": {0: (3, 3)}}


async def test_the_sweep_returns_a_grant_that_nobody_came_for(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    await bench.grants(0).raise_to({(maker.sale_id.int, "SKU-1"): 3})
    worker = bench.sweep(0)
    for _ in range(5):
        await worker.sweep()
    assert guard_of(bench.databases, maker.sale_id) == {"ledger": (10, 0), "totals": {0: 0}, "quotas": {0: (0, 0)}}


async def test_the_sweep_repeats_a_release_that_the_catalogue_was_not_told(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 10})
    order = maker.order()
    await bench.store(0).store(incoming([maker.numbered(order)]))
    await bench.store(0).store(incoming([maker.numbered(later(order, OrderStatus.EXPIRED))]))
    assert guard_of(bench.databases, maker.sale_id)["ledger"] == (10, 1)
    assert await bench.sweep(0).sweep() == 1
    assert guard_of(bench.databases, maker.sale_id)["ledger"] == (10, 0)


async def test_the_sweep_looks_at_what_may_move_and_now_and_then_at_everything(
    bench: Bench, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "EVERYTHING_EVERY", 4)
    live, old = Maker(maker.rng, UUID(int=1)), Maker(maker.rng, UUID(int=2))
    for each, ended in ((live, "23 h"), (old, "25 h")):
        stock(bench.databases, each.sale_id, {"SKU-1": 10})
        with psycopg.connect(bench.databases.catalogue_dsn) as connection:
            connection.execute(
                "INSERT INTO sales (id, name, stage, starts_at, ends_at, hold_seconds, currency, lanes, loaded_epoch, created_by)"
                " VALUES (%s, 'sale', 'published', now() - interval '9 d', now() - %s::interval, 60, 'EUR', '{1}', 1, %s)",
                (each.sale_id, ended, UUID(int=3)),
            )

    async def release_untold(each: Maker) -> None:
        order = each.order()
        await bench.store(0).store(incoming([each.numbered(order)]))
        await bench.store(0).store(incoming([each.numbered(later(order, OrderStatus.EXPIRED))]))

    worker = bench.sweep(0)
    for each in (live, old):
        await release_untold(each)
    assert [await worker.sweep() for _ in range(2)] == [2, 0], "everything, after a start"
    for each in (live, old):
        await release_untold(each)
    assert [await worker.sweep() for _ in range(3)] == [1, 0, 1]
    assert {guard_of(bench.databases, each.sale_id)["ledger"] for each in (live, old)} == {(10, 0)}
    assert await bench.grants(0).read_live([]) == {(live.sale_id.int, "SKU-1"): Grant(0, 2)}
    assert len(await bench.grants(0).read_live([old.sale_id])) == 2


async def test_what_the_sweep_found_unsettled_it_follows_however_old(
    bench: Bench, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in the one look at everything: a grant that was not adopted, and a release with the catalogue away."""
    monkeypatch.setattr(sweep, "EVERYTHING_EVERY", 1_000)
    stock(bench.databases, maker.sale_id, {"SKU-1": 10, "SKU-2": 10})
    await bench.grants(0).raise_to({(maker.sale_id.int, "SKU-1"): 3})
    order = maker.order(lines=[("SKU-2", 2)])
    await bench.store(0).store(incoming([maker.numbered(order)]))
    await bench.store(0).store(incoming([maker.numbered(later(order, OrderStatus.EXPIRED))]))
    worker = bench.sweep(0)
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("SELECT FROM stock_ledger FOR UPDATE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await worker.sweep()
    assert [await worker.sweep() for _ in range(5)] == [2, 0, 1, 0, 0]
    assert guard_of(bench.databases, maker.sale_id)["ledger"] == (10, 0)
    assert guard_of(bench.databases, maker.sale_id, "SKU-2")["ledger"] == (10, 0)


async def test_an_order_of_many_lines_takes_all_or_nothing(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 5, "SKU-2": 1})
    both = maker.order(lines=[("SKU-1", 2), ("SKU-2", 2)])
    single = maker.order(lines=[("SKU-1", 5)])
    result = await bench.store(0).store(incoming([maker.numbered(both), maker.numbered(single)]))
    assert [order.order_id for order in result.waiting] == [both.order_id]
    assert statuses(bench.databases) == {single.order_id: (0, 1)}


async def test_shards_racing_for_the_last_units_sell_each_once(bench: Bench, maker: Maker) -> None:
    """Five writers, together with more orders than there are units; cancelled ones set units free in between."""
    units = 37
    stock(bench.databases, maker.sale_id, {"SKU-1": units})

    async def sell(shard: int) -> int:
        store, sold = bench.store(shard), 0
        for _ in range(6):
            orders = [maker.order(shard=shard) for _ in range(4)]
            result = await store.store(incoming([maker.numbered(order) for order in orders], shard=shard))
            sold += result.stored_count
            waiting = {order.order_id for order in result.waiting}
            given_back = next((order for order in orders if order.order_id not in waiting), None)
            if given_back is not None and maker.rng.random() < 0.5:
                entries = [maker.numbered(later(given_back, OrderStatus.CANCELLED))]
                released = await store.store(incoming(entries, shard=shard))
                await bench.grants(shard).lower_to(released.given_up)
                sold -= 1
        return sold

    sold = await asyncio.gather(*(sell(shard) for shard in (0, 1, 2, 3, 0)))
    # Units that came back after the other orders go to the last order.
    left = [maker.numbered(maker.order(shard=1)) for _ in range(units)]
    sold.append((await bench.store(1).store(incoming(left, shard=1))).stored_count)
    guard = guard_of(bench.databases, maker.sale_id)
    assert guard["ledger"][1] == sum(guard["totals"].values()) <= units
    assert sum(sold_units for _, sold_units in guard["quotas"].values()) == sum(sold) == units
    assert sum(status in (0, 1) for status, _ in statuses(bench.databases).values()) == units


async def test_two_writers_of_one_shard_with_the_same_batches(bench: Bench, maker: Maker) -> None:
    stock(bench.databases, maker.sale_id, {"SKU-1": 1000, "SKU-2": 1000})
    batches = []
    for _ in range(8):
        orders = [maker.order(lines=[("SKU-1", 1), ("SKU-2", 1)]) for _ in range(20)]
        entries = [maker.numbered(order) for order in orders]
        entries += [maker.numbered(later(order, OrderStatus.PAID)) for order in orders[:5]]
        batches.append(entries)

    async def write(order: Sequence[int]) -> None:
        store = bench.store(0)
        for index in order:
            await store.store(incoming(batches[index]))

    await asyncio.gather(write(range(8)), write([*range(7, -1, -1)]), write([3, 1, 4, 0, 5, 2, 6, 7]))
    assert len(statuses(bench.databases)) == 160
    assert guard_of(bench.databases, maker.sale_id)["quotas"] == {0: (160, 160)}
    events = event_ids(bench.databases)
    assert len(events) == len(set(events)) == 160 + 40


async def test_the_database_itself_refuses_to_oversell(bench: Bench, maker: Maker) -> None:
    """The constraints hold whatever a writer believes."""
    stock(bench.databases, maker.sale_id, {"SKU-1": 1})
    await bench.store(0).store(incoming([maker.numbered(maker.order())]))
    with psycopg.connect(bench.databases.shard_dsns[0]) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("UPDATE quota SET sold = sold + 1")
    with psycopg.connect(bench.databases.catalogue_dsn) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("UPDATE stock_ledger SET granted = granted + 1")
    with psycopg.connect(bench.databases.shard_dsns[0]) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("UPDATE orders SET charged = false")
