"""Orders without units, on real servers: exactly the surplus is rejected, and no order that can still get a unit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from uuid import uuid4

import psycopg
import pytest
import redis

from domain import topology
from domain.messages import SequencedEntry
from domain.orders import OrderEntry, OrderStatus, encode_entry
from domain.outcomes import Transition
from domain.sales import LaneSaleState, Stock
from runtime.redis.leases import Lease
from tests.reservation.lane import LANE
from tests.workers.making import TOPOLOGY, Maker
from tests.workers.selling import Market, open_market
from tests.workers.test_reconciler import looking_at
from tests.workers.writing import Bench, event_ids, eventually, guard_of, incoming, rows, statuses
from workers.rejecter import rejecting as rejecting_module
from workers.rejecter.rejecting import Patience, Rejecting, Supply

UNITS, SURPLUS = 10, 3


def oversell(market: Market, surplus: int = SURPLUS) -> None:
    """Make the lane as if it had lost orders: it has units that PostgreSQL has sold."""
    stock = market.lane.stock(market.sale)
    more = replace(stock, available=stock.available + surplus, allotted=stock.allotted + surplus)
    market.redis.hset(topology.lane_state_key(LANE), topology.stock_field(market.sale.sale_id, 0), more.pack())


@dataclass
class Delivery:
    """Carries a market's entries to the shards as relay, queue and writers do, one round at a time."""

    market: Market
    seen: int = 0
    pending: list[SequencedEntry] = field(default_factory=list)

    async def round(self) -> None:
        """Store entries that can be stored; waiting ones are noted and come again in the next round."""
        stream = self.market.lane.stream()
        self.pending += [SequencedEntry(LANE, seq, encode_entry(e)) for seq, e in stream.items() if seq > self.seen]
        self.seen = max(stream, default=0)
        waiting: list[SequencedEntry] = []
        for shard in range(TOPOLOGY.shards):
            entries = [e for e in self.pending if TOPOLOGY.shard_of_order(stream[e.lane_seq].order_id) == shard]
            if entries:
                store = self.market.bench.store(shard)
                result = await store.store(incoming(entries, shard=shard))
                await store.note_waiting(result.waiting)
                waiting += [version.source for order in result.waiting for version in order.versions]
        self.pending = waiting

    def statuses(self) -> Counter[OrderStatus]:
        """How many stored orders are in which state."""
        return Counter(OrderStatus(status) for status, _ in statuses(self.market.bench.databases).values())


@pytest.fixture
def market(bench: Bench, maker: Maker, redis_client: redis.Redis) -> Market:
    """A sale of ten units."""
    return open_market(bench, maker, redis_client, units=UNITS)


@pytest.fixture
async def lease(bench: Bench) -> Lease:
    held = Lease(bench.redis, key="{test}:lease", fence_key="{test}:fence", life_ms=60_000)
    assert await held.acquire()
    return held


def rejecting_at(bench: Bench, *, steady_s: float = 0.0) -> Rejecting:
    return Rejecting(redis=bench.redis, catalogue=bench.catalogue, shards=bench.pools, steady_s=steady_s)


def notes(bench: Bench) -> int:
    return sum(rows(dsn, "SELECT count(*) FROM waiting_entries")[0][0] for dsn in bench.databases.shard_dsns)


async def test_exactly_the_surplus_is_rejected(bench: Bench, market: Market, lease: Lease) -> None:
    oversell(market)
    market.buy(UNITS + SURPLUS)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    assert delivery.statuses() == {OrderStatus.RESERVED: UNITS} and notes(bench) == SURPLUS
    for _ in range(3):
        await rejecting.round(lease)
        await delivery.round()
    assert delivery.statuses() == {OrderStatus.RESERVED: UNITS, OrderStatus.REJECTED: SURPLUS}
    stock = market.lane.stock(market.sale)
    assert stock == Stock(0, UNITS, 0, SURPLUS, UNITS + SURPLUS, 0, 0) and stock.is_balanced
    assert guard_of(bench.databases, market.sale.sale_id, "SKU-0")["ledger"] == (UNITS, UNITS)
    rejected = [order for order in market.lane.stream().values() if order.status is OrderStatus.REJECTED]
    assert [(o.version, market.lane.order(o.order_id)) for o in rejected] == [(2, o) for o in rejected]
    # B: every entry once. D: each version told once.
    places = [
        seq for dsn in bench.databases.shard_dsns for (seq,) in rows(dsn, "SELECT lane_seq FROM order_transitions")
    ]
    assert sorted(places) == sorted(market.lane.stream())
    assert sorted(event_ids(bench.databases)) == sorted(
        f"{o.order_id}:{o.version}" for o in market.lane.stream().values()
    )
    assert rows(bench.databases.shard_dsns[0], "SELECT 1 FROM orders WHERE status = 4 AND charged") == []
    # Nothing is left to do, and nothing happens twice.
    for _ in range(2):
        await rejecting.round(lease)
        await rejecting_at(bench).round(lease)
    assert notes(bench) == 0 and len(market.lane.stream()) == UNITS + 2 * SURPLUS


async def test_paid_orders_that_wait_take_no_place_of_others(
    bench: Bench, market: Market, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for a restock, perhaps for days; more of them than the bound of a round ended all rejection."""
    monkeypatch.setattr(rejecting_module, "NOTES_MAX", 4)
    paid_count = 6
    oversell(market, SURPLUS + paid_count)
    market.buy(UNITS, shard=0)
    for order in market.buy(paid_count, shard=0):
        assert market.lane.change("settle-5", order)[0] is Transition.DONE
    market.buy(SURPLUS, shard=0)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    assert notes(bench) == 2 * paid_count + SURPLUS
    for _ in range(3):
        await rejecting.round(lease)
        await delivery.round()
    assert delivery.statuses() == {OrderStatus.RESERVED: UNITS, OrderStatus.REJECTED: SURPLUS}
    assert rejecting_module.WAITING_PAID._value.get() == paid_count


async def test_a_damaged_note_keeps_no_other_order_from_being_rejected(
    bench: Bench, market: Market, lease: Lease
) -> None:
    oversell(market)
    market.buy(UNITS + SURPLUS)
    delivery = Delivery(market)
    await delivery.round()
    damaged = [b"", bytes([1, OrderStatus.RESERVED, 7]), bytes([1, OrderStatus.PAID])]
    with psycopg.connect(bench.databases.shard_dsns[0]) as connection:
        for number, entry in enumerate(damaged):
            connection.execute(
                "INSERT INTO waiting_entries (lane, lane_seq, order_id, version, entry) VALUES (%s, %s, %s, 1, %s)",
                (LANE, 1_000_000 + number, uuid4(), entry),
            )
    rejecting = rejecting_at(bench)
    for _ in range(3):
        await rejecting.round(lease)
        await delivery.round()
    assert delivery.statuses()[OrderStatus.REJECTED] == SURPLUS
    assert notes(bench) == len(damaged)


async def test_nothing_is_rejected_while_a_release_is_on_its_way(bench: Bench, market: Market, lease: Lease) -> None:
    """A cancelled unit is sold again before the shard knows of the cancel."""
    orders = market.buy(UNITS, shard=0)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    market.cancel(orders[0])
    cancel_seq = delivery.seen + 1
    (again,) = market.buy(1, shard=1)
    delivery.seen = cancel_seq  # the cancel is held up
    await delivery.round()
    assert notes(bench) == 1
    with psycopg.connect(bench.databases.shard_dsns[2]) as connection:  # place 1 twice does not stand for the cancel's
        connection.execute("INSERT INTO dead_lettered (lane, lane_seq, reason) VALUES (%s, 1, 'test')", (LANE,))
    for _ in range(4):
        await rejecting.round(lease)
    order = market.lane.order(again.order_id)
    assert order is not None and order.status is OrderStatus.RESERVED
    # The cancel arrives; the grant goes back with it, and the order is stored.
    delivery.seen = cancel_seq - 1
    await delivery.round()
    await bench.sweep(0).sweep()
    await delivery.round()
    assert delivery.statuses() == {OrderStatus.RESERVED: UNITS, OrderStatus.CANCELLED: 1}
    await rejecting.round(lease)
    assert notes(bench) == 0


async def test_a_restock_saves_the_orders(bench: Bench, market: Market, lease: Lease) -> None:
    oversell(market)
    market.buy(UNITS + SURPLUS)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("UPDATE stock_ledger SET stock = stock + %s", (SURPLUS,))
    await rejecting.round(lease)
    await delivery.round()
    await rejecting.round(lease)
    assert delivery.statuses() == {OrderStatus.RESERVED: UNITS + SURPLUS}
    assert market.lane.stock(market.sale).rejected == 0


async def test_a_part_of_the_stock_goes_to_whom_it_suffices(bench: Bench, market: Market, lease: Lease) -> None:
    """Two units are left: the order of three is rejected, the order of two is not."""
    oversell(market)
    market.buy(UNITS - 2, shard=0)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    (large,) = market.buy(1, shard=1, lines=[(0, 3)])
    await delivery.round()
    for _ in range(3):
        await rejecting.round(lease)
    (small,) = market.buy(1, shard=2, lines=[(0, 2)])
    for shard in (1, 1):  # units that were granted for the large order and not used go back
        sweep = bench.sweep(shard)
        await sweep.sweep()
        await sweep.sweep()
    await delivery.round()
    found = statuses(bench.databases)
    assert found[large.order_id][0] == OrderStatus.REJECTED and found[small.order_id][0] == OrderStatus.RESERVED
    assert market.lane.stock(market.sale).is_balanced


async def test_what_changed_meanwhile_keeps_its_state(bench: Bench, market: Market, lease: Lease) -> None:
    """Cancelled or paid meanwhile: Redis has decided."""
    oversell(market, 2)
    market.buy(UNITS, shard=0)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    cancelled, paid = market.buy(2, shard=1)
    await delivery.round()
    market.cancel(cancelled)
    assert market.lane.change("settle-5", paid)[0] is Transition.DONE
    for _ in range(2):
        await rejecting.round(lease)
        await delivery.round()
    found = statuses(bench.databases)
    assert found[cancelled.order_id] == (OrderStatus.CANCELLED, 2) and paid.order_id not in found
    assert market.lane.stock(market.sale) == Stock(1, UNITS, 1, 0, UNITS + 2, 0, 0)


@contextmanager
def closed(market: Market) -> Iterator[None]:
    """Closed for recovery, and opened again with the same definition."""
    field_name = topology.definition_field(market.sale.sale_id)
    packed = market.sale.pack_for_lane()
    market.redis.hset(topology.lane_state_key(LANE), field_name, bytes([LaneSaleState.CLOSED]) + packed[1:])
    yield
    market.redis.hset(topology.lane_state_key(LANE), field_name, packed)


async def test_a_sale_closed_for_recovery_is_left_alone(bench: Bench, market: Market, lease: Lease) -> None:
    oversell(market, 1)
    market.buy(UNITS + 1)
    delivery, rejecting = Delivery(market), rejecting_at(bench)
    await delivery.round()
    with closed(market):
        for _ in range(3):
            await rejecting.round(lease)
        assert len(market.lane.stream()) == UNITS + 1
    await rejecting.round(lease)
    assert len(market.lane.stream()) == UNITS + 2


async def test_a_crash_between_any_two_steps_is_begun_anew(bench: Bench, market: Market, lease: Lease) -> None:
    """Orders rejected in Redis stay rejected, and later instances without memory reject the rest."""
    oversell(market)
    market.buy(UNITS + SURPLUS)
    delivery = Delivery(market)
    await delivery.round()
    # One instance died after it had decided and changed a part of Redis.
    doomed = [order for order in market.lane.stream().values() if order.order_id not in statuses(bench.databases)]
    assert market.lane.change("reject-4", doomed[0])[0] is Transition.DONE
    for _ in range(3):
        anew = rejecting_at(bench)
        await anew.round(lease)
        await anew.round(lease)
        await delivery.round()
    assert delivery.statuses() == {OrderStatus.RESERVED: UNITS, OrderStatus.REJECTED: SURPLUS}
    assert market.lane.stock(market.sale).rejected == SURPLUS
    looking = looking_at(bench)
    await looking.look()
    (verdict,) = await looking.look()
    assert verdict.b is True, verdict.detail


def _order(quantities: Sequence[int] = (1,)) -> OrderEntry:
    return Maker(random.Random(1), uuid4()).order(lines=[(f"SKU-{i}", n) for i, n in enumerate(quantities)])


def test_patience_wants_places_known_and_supplies_still() -> None:
    order, lanes = _order(), frozenset({1})
    sku = (order.sale_id, "SKU-0")
    gone = {sku: Supply(10, (4, 6))}

    def looked(*steps: tuple[float, dict[tuple[object, str], Supply], frozenset[int]]) -> list[bool]:
        patience, answers = Patience(steady_s=5), []
        for now_s, supplies, known in steps:
            patience.see_orders({order.order_id: order}, {order.sale_id: {1: 7}}, now_s)
            patience.see_supplies(supplies, now_s)  # type: ignore[arg-type]
            answers.append(bool(patience.in_vain([order], known, now_s)))
        return answers

    assert looked((0, gone, lanes), (4.9, gone, lanes), (5, gone, lanes)) == [False, False, True]
    assert looked((0, gone, lanes), (6, gone, frozenset())) == [False, False]
    moved = {sku: Supply(10, (5, 5))}
    assert looked((0, gone, lanes), (4, moved, lanes), (6, moved, lanes), (9, moved, lanes)) == [False] * 3 + [True]
    free = {sku: Supply(11, (4, 6))}
    assert looked((0, free, lanes), (60, free, lanes)) == [False, False]


def test_patience_forgets_and_asks_for_places_of_the_ripe_only() -> None:
    order = _order()
    patience = Patience(steady_s=5)
    patience.see_orders({order.order_id: order}, {order.sale_id: {1: 7, 2: 3}}, 0)
    assert patience.places_to_know(4) == {}
    patience.see_orders({order.order_id: order}, {order.sale_id: {1: 9, 2: 9}}, 6)
    assert patience.places_to_know(6) == {1: 7, 2: 3}
    patience.see_orders({}, {}, 7)
    assert patience.places_to_know(20) == {}


async def test_the_writer_notes_who_waits_long_and_hears_of_the_rejection(
    bench: Bench, market: Market, lease: Lease
) -> None:
    """An order without a grant does not wait in the queue for ever."""
    oversell(market, 1)
    market.buy(UNITS + 1, shard=0)
    published = 0

    async def relay() -> None:
        nonlocal published
        entries = [SequencedEntry(LANE, seq, encode_entry(e)) for seq, e in market.lane.stream().items()]
        if entries[published:]:
            await bench.publish(entries[published:])
        published = len(entries)

    async def rejected() -> bool:
        await rejecting.round(lease)
        await relay()
        found = Counter(status for status, _ in statuses(bench.databases).values())
        return found == {OrderStatus.RESERVED: UNITS, OrderStatus.REJECTED: 1}

    rejecting = rejecting_at(bench)
    async with bench.running(0):
        await eventually(rejected)
        await bench.drained()
    assert market.lane.stock(market.sale) == Stock(0, UNITS, 0, 1, UNITS + 1, 0, 0)
    await rejecting.round(lease)
    assert notes(bench) == 0
