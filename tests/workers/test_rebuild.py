"""Rebuilding a sale on real servers: stored orders come back whole, lost ones are named, no unit is sold twice."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any
from uuid import uuid4

import orjson
import psycopg
import pytest
import redis

from domain import ids, topology
from domain.messages import SequencedEntry, encode_orders
from domain.orders import OrderStatus, encode_entry
from domain.outcomes import Outcome, Transition
from domain.sales import Elsewhere, LaneSaleState, Stock
from domain.topology import order_queue
from payments.ledger import PaymentLedger
from payments.providers.port import Captured
from payments.settling import Settled, Settling
from runtime.dead_letters import NewLetter
from runtime.process.settings import Settings
from runtime.queue import FailureKind
from tests.reservation.lane import LANE, LaneClient, make_request
from tests.workers.rebuilding import (
    all_stored,
    another_market,
    bring_back,
    content,
    held,
    open_sale,
    pipeline,
    quiet_watch,
    rebuilt,
    relaying,
    replay,
    settings_of,
    snapshot,
    watch_of,
)
from tests.workers.selling import Market
from tests.workers.test_reconciler import looking_at
from tests.workers.writing import Bench, eventually, rows
from workers.reconciler.verdict import Verdict
from workers.recovery.rebuild.__main__ import rebuild
from workers.recovery.rebuild.errors import Healthy, NotPublished, Stuck


@pytest.fixture
def settings(bench: Bench, redis_client: redis.Redis) -> Settings:
    return settings_of(bench, redis_client)


@pytest.fixture
async def market(bench: Bench, seed: int, redis_client: redis.Redis, settings: Settings) -> Market:
    """A sale of 40 units with 20 orders in every state, all stored: 12 reserved, 5 paid, 3 cancelled."""
    market = open_sale(bench, redis_client, random.Random(seed), units=40)
    async with pipeline(bench, settings):
        orders = market.buy(20)
        for order in orders[:3]:
            market.cancel(order)
        for order in orders[3:8]:
            assert market.lane.change("settle-5", order)[0] is Transition.DONE
        await all_stored(bench)
        await eventually(lambda: _is_trimmed(market))
    return market


async def _is_trimmed(market: Market) -> bool:
    return not market.lane.stream()


async def verdict_of(bench: Bench, market: Market) -> Verdict:
    """After two looks: doubts are settled."""
    looking = looking_at(bench, stored_within_s=0.0)
    for _ in range(3):
        verdicts = {verdict.sale_id: verdict for verdict in await looking.look()}
    return verdicts[market.sale.sale_id]


def audited_rebuilds(bench: Bench, market: Market) -> list[Any]:
    """The new values of the entries in the audit log about the sale, oldest first."""
    query = "SELECT after FROM audit.entries WHERE action = 'sale.rebuild' AND object = %s ORDER BY id"
    return [after for (after,) in rows(bench.databases.catalogue_dsn, query, f"sale:{market.sale.sale_id}")]


async def test_a_wiped_sale_is_refused_then_comes_back_whole(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    users = [order.user_id for order in market.orders]
    before, watch = content(market, users), await quiet_watch(bench)
    assert not watch.closed
    redis_client.flushall()
    await watch.look()
    assert watch.closed == {market.sale.sale_id: f"lane {LANE} does not know the sale"}
    assert market.lane.state() == {b"seq": b"28"}
    for order in market.orders[:2]:
        assert market.lane.outcome(make_request(market.sale, order.user_id, order.idempotency_key)) is Outcome.STALE
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings)
        assert (market.sale.epoch, market.sale.version) == (2, 2)
        assert report.tally.orders == {"cancelled": 3, "paid": 5, "reserved": 12}
        assert content(market, users) == before
        assert [replay(market, order) for order in market.orders] == [order.order_id for order in market.orders]
        assert report.as_document()["lost"] == []
        # Life goes on: a cancel, a payment, and the rest of the stock to the last unit.
        market.cancel(market.orders[8])
        assert market.lane.change("settle-5", market.orders[9])[0] is Transition.DONE
        market.buy(24)
        assert market.lane.outcome(make_request(market.sale, users[0], "one more")) is Outcome.SOLD_OUT
        await all_stored(bench)
    assert held(bench, market.sale.sale_id) == 40
    assert market.lane.stock(market.sale) == Stock(0, 34, 6, 0, 40, 0, 0)
    await watch.look()
    assert not watch.closed
    verdict = await verdict_of(bench, market)
    assert (verdict.a, verdict.b, verdict.detail) == (True, True, ())


async def test_orders_with_payments_are_marked_again(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    """Otherwise their buyers would read `none` until Redis has forgotten the order."""
    order = next(order for order in market.orders if order.order_id)
    ledger = PaymentLedger(bench.pools, topology.Topology(), provider="simulated")
    shard = ledger.shard_of(order.order_id)
    wrong = Captured("evt", order.order_id, 1, "EUR", "")
    assert await Settling(bench.redis, ledger).settle(shard, [wrong]) == [Settled.MISMATCH]
    redis_client.flushall()
    await (await quiet_watch(bench)).look()
    async with pipeline(bench, settings):
        await rebuilt(market, settings)
    marks = redis_client.keys(topology.payment_mark_key(order.order_id)[:-16] + b"*")
    assert marks == [topology.payment_mark_key(order.order_id)]


async def test_a_healthy_sale_is_rebuilt_only_by_force(bench: Bench, market: Market, settings: Settings) -> None:
    users = [order.user_id for order in market.orders]
    before = content(market, users)
    with pytest.raises(Healthy):
        await rebuilt(market, settings)
    assert rows(bench.databases.catalogue_dsn, "SELECT epoch FROM sales") == [(1,)]
    async with pipeline(bench, settings):
        for epoch in (2, 3):
            assert (await rebuilt(market, settings, force=True)).epoch == epoch
    assert content(market, users) == before
    with pytest.raises(NotPublished):
        await rebuild(settings, uuid4(), force=True, wait_s=1)


async def test_a_sale_that_is_over_for_long_is_rebuilt_while_anything_of_it_is_reserved(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    """Wiped near its end and not rebuilt in time: its holds cannot end without their lane."""
    redis_client.flushall()
    with psycopg.connect(bench.databases.catalogue_dsn, autocommit=True) as connection:
        connection.execute(
            "UPDATE sales SET starts_at = now() - interval '9 days', ends_at = now() - interval '8 days'"
        )
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings)
        assert report.tally.orders == {"cancelled": 3, "paid": 5, "reserved": 12}
        reserved = [order for order in market.orders[8:] if market.lane.order(order.order_id) is not None]
        assert len(reserved) == 12
        for order in reserved:
            assert market.lane.change("reject-4", order)[0] is Transition.DONE
        await all_stored(bench)
    redis_client.flushall()
    with pytest.raises(NotPublished, match="nothing to rebuild"):
        await rebuild(settings, market.sale.sale_id, force=True, wait_s=1)


async def test_it_waits_for_relays_and_writers_and_stays_closed(
    bench: Bench, market: Market, settings: Settings
) -> None:
    market.buy(1)
    with pytest.raises(Stuck, match=f"lane {LANE} is not relayed"):
        await rebuild(settings, market.sale.sale_id, force=True, wait_s=0.2)
    async with relaying(bench, settings):
        with pytest.raises(Stuck, match="did not acknowledge the fence"):
            await rebuild(settings, market.sale.sale_id, force=False, wait_s=0.5)
    assert market.lane.outcome(make_request(market.sale, market.orders[0].user_id, "k")) is Outcome.STALE
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings)
    assert (report.epoch, report.tally.orders["reserved"]) == (2, 13), "the epoch was raised once"
    continued = {"epoch": 2, "continued_at": "closed"}
    assert audited_rebuilds(bench, market) == [{"epoch": 2}, continued, continued]


async def test_a_lane_that_went_back_closes_its_sales_and_each_is_rebuilt(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    other = another_market(market, bench, redis_client, units=5)
    watch = watch_of(bench)
    kept = snapshot(redis_client)
    async with pipeline(bench, settings):
        market.buy(10)
        other.buy(2)
        await all_stored(bench)
    for _ in range(2):
        await watch.look()
    bring_back(redis_client, kept)
    assert market.lane.state()[b"seq"] == b"28"
    await watch.look()
    assert market.lane.state()[b"seq"] == b"40"
    assert set(watch.closed) == {market.sale.sale_id, other.sale.sale_id}
    assert all(
        market.lane.outcome(make_request(m.sale, m.orders[0].user_id, "k")) is Outcome.STALE for m in (market, other)
    )
    async with pipeline(bench, settings):
        await rebuilt(market, settings)
        market.buy(5)
        assert other.lane.outcome(make_request(other.sale, other.orders[0].user_id, "k")) is Outcome.STALE
        await rebuilt(other, settings)
        assert [replay(other, order) for order in other.orders] == [order.order_id for order in other.orders]
        other.buy(3)
        market.buy(8)
        await all_stored(bench)
    assert (held(bench, market.sale.sale_id), held(bench, other.sale.sale_id)) == (40, 5)
    assert market.lane.stock(market.sale).available == other.lane.stock(other.sale).available == 0
    for each in (market, other):
        verdict = await verdict_of(bench, each)
        assert (verdict.a, verdict.b, verdict.detail) == (True, True, ())


async def test_a_loss_whose_extent_nobody_knows_leaves_b_unproved(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    redis_client.flushall()  # no watch was running
    async with pipeline(bench, settings):
        await rebuilt(market, settings)
    verdict = await verdict_of(bench, market)
    assert (verdict.a, verdict.b) == (True, None)
    assert verdict.detail == (f"lane {LANE} went back while it may have taken orders: after entry 28 nothing is known",)


async def test_a_sale_of_an_older_epoch_is_closed(bench: Bench, market: Market) -> None:
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("UPDATE sales SET epoch = 2, loaded_epoch = 2")
    watch = watch_of(bench)
    await watch.look()
    assert watch.closed == {market.sale.sale_id: f"lane {LANE} has epoch 1 of 2"}
    await watch.look()
    assert watch.closed == {market.sale.sale_id: f"lane {LANE} has closed the sale"}
    assert market.lane.state()[topology.definition_field(market.sale.sale_id).encode()][0] == LaneSaleState.CLOSED
    verdict = await verdict_of(bench, market)
    assert (verdict.a, verdict.b) == (None, None)
    assert "closed for recovery" in verdict.detail[0]


async def test_rebuilding_one_sale_leaves_the_lane_to_the_others(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    other = another_market(market, bench, redis_client, units=200)
    fields = [name for name in market.lane.state() if ids.short(market.sale.sale_id).encode() in name]
    redis_client.hdel(topology.lane_state_key(LANE), *fields)
    async with pipeline(bench, settings):
        rebuilding = asyncio.create_task(rebuilt(market, settings))
        while not rebuilding.done():
            other.buy(1)
            await asyncio.sleep(0.005)
        await rebuilding
        assert market.lane.stock(market.sale) == Stock(23, 12, 5, 0, 40, 0, 0)
        market.buy(23)
        await all_stored(bench)
    assert len(other.orders) > 5
    assert held(bench, other.sale.sale_id) == len(other.orders)
    for each in (market, other):
        assert (await verdict_of(bench, each)).is_proved


@pytest.mark.parametrize("damage", ["damaged", "of another type"])
async def test_a_damaged_sequence_of_one_lane_does_not_hide_the_others(
    bench: Bench, market: Market, redis_client: redis.Redis, damage: str
) -> None:
    watch, key = await quiet_watch(bench), topology.lane_state_key(LANE - 1)
    if damage == "damaged":
        redis_client.hset(key, "seq", "12x")
    else:
        redis_client.delete(key)
        redis_client.set(key, "12")
    await watch.look()
    assert watch.problem == f"damaged sequence of lane {LANE - 1}"
    redis_client.delete(topology.lane_state_key(LANE))
    await watch.look()
    assert watch.closed == {market.sale.sale_id: f"lane {LANE} does not know the sale"}
    redis_client.delete(key)
    await watch.look()
    assert watch.problem is None


async def test_what_the_queue_held_is_lost_with_it_and_b_says_so(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    watch = watch_of(bench)
    async with relaying(bench, settings):
        lost = market.buy(6)
        await eventually(lambda: _is_trimmed(market))
    await watch.look()
    redis_client.flushall()
    await watch.look()
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings)
        assert report.as_document()["lost"] == [{"lane": LANE, "entries": 6, "ranges": [[29, 34]]}]
        assert audited_rebuilds(bench, market) == [{"epoch": 2}, {"lane": LANE, "lost": [[29, 34]]}]
        assert [replay(market, order) for order in lost[:2]] == [None, None], "their buyers may try again"
        market.buy(21)
        await all_stored_but(bench, 6)
    assert held(bench, market.sale.sale_id) == 40
    verdict = await verdict_of(bench, market)
    assert (verdict.a, verdict.b) == (True, False)
    assert verdict.detail == (f"lane {LANE}: 6 accepted entries are lost, 29 to 34",)
    later = open_sale(bench, redis_client, random.Random(1), units=1)
    later.sale = replace(later.sale, starts_at_ms=3_999_999_999_999)
    redis_client.set(topology.sale_key(later.sale.sale_id), orjson.dumps(later.sale.as_document()))
    assert (await verdict_of(bench, later)).b is True, "a loss is of the sales that had begun"


async def test_what_a_rebuild_could_not_restore_gives_nothing_back(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    """The queue is lost, Redis is not: values of orders unknown elsewhere stay, and their units are sold again."""
    async with relaying(bench, settings):
        lost = market.buy(6)
        await eventually(lambda: _is_trimmed(market))
    for key in redis_client.scan_iter("queue:*"):
        redis_client.delete(key)
    async with pipeline(bench, settings):
        await rebuilt(market, settings, force=True)
        assert market.lane.stock(market.sale) == Stock(23, 12, 5, 0, 40, 0, 0)
        for order in lost:
            assert market.lane.cancel(order) == (Transition.NOT_FOUND, None)
            assert market.lane.change("settle-5", order) == (Transition.NOT_FOUND, None)
        market.buy(23)
        market.cancel(market.orders[8])  # restored: the rebuild made it one of its epoch
        await all_stored_but(bench, 6)
    assert market.lane.stock(market.sale) == Stock(1, 34, 5, 0, 40, 0, 0)
    assert held(bench, market.sale.sale_id) == 39


async def all_stored_but(bench: Bench, lost: int) -> None:
    async def stored() -> bool:
        seq = int(await bench.redis.hget(topology.lane_state_key(LANE), "seq") or 0)
        counts = (int(rows(dsn, "SELECT count(*) FROM order_transitions")[0][0]) for dsn in bench.databases.shard_dsns)
        return sum(counts) + lost >= seq

    await eventually(stored)


async def test_a_sale_over_many_lanes_comes_back_in_equal_shares(
    bench: Bench, seed: int, settings: Settings, redis_client: redis.Redis
) -> None:
    """With two units in transit, one lane loses the sale. All lanes are rebuilt, and the old transfer is void."""
    lanes = (LANE, 0, 1)
    market = open_sale(bench, redis_client, random.Random(seed), units=40, lanes=lanes)
    async with pipeline(bench, settings):
        market.buy(6)
        await all_stored(bench)
        old = market.sale
        assert market.lane.lend(old, 0, 1, 1, 2) == 2
        redis_client.delete(topology.lane_state_key(0))
        await rebuilt(market, settings, force=True)
    assert market.sale.epoch == 2
    clients = [LaneClient(redis_client, lane) for lane in lanes]
    stocks = [client.stock(market.sale) for client in clients]
    assert [stock.available for stock in stocks] == [12, 11, 11]
    assert Stock.total(stocks) == Stock(34, 6, 0, 0, 40, 0, 0)
    assert [stock.elsewhere for stock in stocks] == [Elsewhere()] * 3
    assert clients[2].credit(old, 0, LANE, 1, 2) == -1
    assert not redis_client.exists(topology.transfers_key(LANE, market.sale.sale_id))
    assert (await verdict_of(bench, market)).a is True


async def test_a_straggler_behind_the_gate_is_rejected(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    (late,) = market.buy(1, shard=0)
    (entry,) = market.lane.stream()
    redis_client.flushall()
    async with pipeline(bench, settings):
        await rebuilt(market, settings)
        assert market.lane.stock(market.sale) == Stock(23, 12, 5, 0, 40, 0, 0)
        await bench.publish([SequencedEntry(LANE, entry, encode_entry(late))])
        await bench.drained(0)
    status = "SELECT status, charged FROM orders WHERE id = %s"
    assert rows(bench.databases.shard_dsns[0], status, late.order_id) == [(OrderStatus.REJECTED, False)]
    assert held(bench, market.sale.sale_id) == 17


async def test_who_waited_for_a_grant_when_the_queue_was_lost_is_rejected(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    (waiting,) = market.buy(1, shard=2)
    (seq,) = market.lane.stream()
    watch = await quiet_watch(bench)
    with psycopg.connect(bench.databases.shard_dsns[2]) as connection:
        connection.execute(
            "INSERT INTO waiting_entries VALUES (%s, %s, %s, 1, %s)",
            (LANE, seq, waiting.order_id, encode_entry(waiting)),
        )
    redis_client.flushall()
    await watch.look()
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings)
    assert (report.lost, report.tally.orders["rejected"]) == ({}, 1)
    status = "SELECT status FROM orders WHERE id = %s"
    assert rows(bench.databases.shard_dsns[2], status, waiting.order_id) == [(OrderStatus.REJECTED,)]
    assert replay(market, waiting) == waiting.order_id
    assert market.lane.stock(market.sale) == Stock(23, 12, 5, 0, 40, 0, 0)


async def test_dead_letters_hold_their_units(bench: Bench, market: Market, settings: Settings) -> None:
    async with pipeline(bench, settings):
        (dead,) = market.buy(1, shard=1)
        await all_stored(bench)
    with psycopg.connect(bench.databases.shard_dsns[1]) as connection:
        connection.execute("DELETE FROM orders WHERE id = %s", (dead.order_id,))
        connection.execute("DELETE FROM order_transitions WHERE order_id = %s", (dead.order_id,))
        connection.execute("UPDATE quota SET sold = sold - 1")
        connection.execute("INSERT INTO dead_lettered VALUES (%s, 29, 'planted')", (LANE,))
    entry = SequencedEntry(LANE, 29, encode_entry(dead))
    body = encode_orders(LANE, [(entry.lane_seq, entry.entry)])
    letter = NewLetter(
        queue=order_queue(1), message_id="dead", body=body, kind=FailureKind.REFUSED_BY_DATABASE, reason="planted"
    )
    await bench.letters.add(letter)
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings, force=True)
        assert (report.dead_letters, report.dead_letters_left_out) == (1, 0)
        assert market.lane.stock(market.sale) == Stock(22, 13, 5, 0, 40, 0, 0)
        assert replay(market, dead) == dead.order_id
        await bench.publish([entry], shard=1)  # as a replayed dead letter
        await bench.drained(1)
    status = "SELECT status, charged FROM orders WHERE id = %s"
    assert rows(bench.databases.shard_dsns[1], status, dead.order_id) == [(OrderStatus.RESERVED, True)]


async def test_restocks_are_kept_and_staff_may_change_the_sale_meanwhile(
    bench: Bench, market: Market, settings: Settings, redis_client: redis.Redis
) -> None:
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("UPDATE stock_ledger SET stock = stock + 7")
        connection.execute(
            "INSERT INTO restocks (sale_id, idempotency_key, sku, sku_index, quantity, created_by)"
            " VALUES (%s, 'more', 'SKU-0', 0, 7, %s)",
            (market.sale.sale_id, market.sale.sale_id),
        )
        connection.execute("UPDATE sales SET paused = true, version = version + 1")
    redis_client.flushall()
    async with pipeline(bench, settings):
        report = await rebuilt(market, settings)
    assert report.restocks == 1
    assert market.lane.stock(market.sale) == Stock(30, 12, 5, 0, 47, 0, 0)
    assert market.lane.restock(market.sale.sale_id, 0, 7, "more") == 0
    assert market.lane.outcome(make_request(market.sale, market.orders[0].user_id, "k")) is Outcome.NOT_OPEN
    assert rows(bench.databases.catalogue_dsn, "SELECT count(*) FROM restocks WHERE applied_at IS NULL") == [(0,)]
