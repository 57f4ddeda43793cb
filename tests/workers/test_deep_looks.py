"""Deep looks on real servers: sets of places, slices under one snapshot, parts that are away or old, notes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest
import redis
from pydantic import SecretStr

from domain import topology
from domain.messages import SequencedEntry
from domain.orders import OrderEntry, OrderStatus, encode_entry, encode_value
from domain.topology import order_queue
from faults.proxy import FaultProxy
from runtime.dead_letters import NewLetter, replay
from runtime.postgres.pool import postgres_pool
from runtime.queue import FailureKind
from tests.reservation.lane import LANE
from tests.workers.making import TOPOLOGY, Maker, message
from tests.workers.selling import Market, open_market
from tests.workers.test_reconciler import buried, looking_at, settled
from tests.workers.writing import Bench, incoming, rows
from workers.places import cover
from workers.reconciler import reading, scanning
from workers.reconciler.reading import Away, Source


@pytest.fixture
async def market(bench: Bench, maker: Maker, redis_client: redis.Redis) -> Market:
    """A sale with 20 orders in all shards, 4 of them paid and 2 cancelled, everything stored."""
    market = open_market(bench, maker, redis_client, units=100)
    orders = market.buy(20)
    for order in orders[:4]:
        market.lane.change("settle-5", order)
    for order in orders[4:6]:
        market.cancel(order)
    await market.store()
    return market


def shard_with(bench: Bench, seq: int) -> int:
    """The shard that stores a place of the lane."""
    query = "SELECT count(*) FROM order_transitions WHERE lane_seq = %s"
    return next(x for x, dsn in enumerate(bench.databases.shard_dsns) if rows(dsn, query, seq) == [(1,)])


def execute(dsn: str, statement: str, *values: object) -> int:
    with psycopg.connect(dsn) as connection:
        return connection.execute(statement.encode(), values).rowcount


# Sets of places


@pytest.mark.usefixtures("market")
async def test_a_duplicate_does_not_hide_a_loss(bench: Bench) -> None:
    """Entry 17 in no shard and entry 16 in two: the count of places is right, the set is not."""
    looking = looking_at(bench)
    assert (await settled(looking)).is_proved
    losing, other = shard_with(bench, 17), (shard_with(bench, 16) + 1) % 4
    kept = rows(bench.databases.shard_dsns[losing], "SELECT * FROM order_transitions WHERE lane_seq = 17")[0]
    assert execute(bench.databases.shard_dsns[losing], "DELETE FROM order_transitions WHERE lane_seq = 17") == 1
    copy = "INSERT INTO order_transitions VALUES (%s, %s, %s, %s, %s, 16)"
    if other == losing:  # the order of entry 17 stays whole, so that only the places are wrong
        execute(bench.databases.shard_dsns[other], copy, *kept[:5])
    else:
        assert execute(bench.databases.shard_dsns[losing], copy, *kept[:5]) == 1
    for each in (looking, looking_at(bench, stored_within_s=0.0)):
        verdict = await settled(each)
        assert verdict.b is False
        assert any("stored twice, 16" in text for text in verdict.detail), verdict.detail
        assert any("the first is 17" in text or "entry 17 is not stored" in text for text in verdict.detail)


def test_a_comparison_of_places_names_what_is_missing_and_what_is_double() -> None:
    whole = cover(100, 105, stored=[[1, 3], [2]], noted=[[4]], lost=[(105, 900)])
    assert (whole.is_complete, whole.first_missing, whole.doubled) == (True, None, ())
    wrong = cover(100, 105, stored=[[1, 3], [3, 1]], noted=[[1]], lost=[(1, 100)])
    assert (wrong.missing, wrong.first_missing, wrong.doubled) == (3, 102, (101, 103))


async def test_a_version_that_comes_again_from_another_place_keeps_its_place_and_is_red(
    bench: Bench, market: Market
) -> None:
    """Redis went back: an order that the shard stores as paid is reserved again, and its unit is sold again."""
    looking = looking_at(bench)
    assert (await settled(looking)).is_proved
    paid = market.lane.order(market.orders[0].order_id)
    assert paid is not None and (paid.status, paid.version) == (OrderStatus.PAID, 2)
    value = topology.order_key(paid.order_id)
    before = {market.orders[0].order_id: market.orders[0]}
    # The order's value as of version 1, the counters as of then, and the buyer cancels.
    _put_back(market, before[paid.order_id])
    market.cancel(before[paid.order_id])
    assert market.redis.exists(value)
    newest = max(market.lane.stream())
    await market.store()
    dsn = bench.databases.shard_dsns[TOPOLOGY.shard_of_order(paid.order_id)]
    noted = "SELECT lane_seq, version, status FROM repeated_places"
    assert rows(dsn, noted) == [(newest, 2, OrderStatus.CANCELLED)]
    verdict = await settled(looking)
    assert (verdict.a, verdict.b) == (False, False)
    text = f"is paid by entry 21, cancelled by entry {newest}"
    assert any(text in line for line in verdict.detail), verdict.detail
    # A redelivery from the same place is no other place.
    await market.bench.store(TOPOLOGY.shard_of_order(paid.order_id)).store(
        incoming([SequencedEntry(LANE, 21, encode_entry(paid))], shard=TOPOLOGY.shard_of_order(paid.order_id))
    )
    assert rows(dsn, noted) == [(newest, 2, OrderStatus.CANCELLED)]


def _put_back(market: Market, order: OrderEntry) -> None:
    """The order and its lane as before the payment, but for the sequence."""
    market.redis.set(topology.order_key(order.order_id), encode_value(order))
    stock = market.lane.stock(market.sale)
    field = topology.stock_field(market.sale.sale_id, 0)
    again = replace(stock, reserved=stock.reserved + 1, paid=stock.paid - 1)
    market.redis.hset(topology.lane_state_key(LANE), field, again.pack())


# Slices


async def test_a_scan_continues_where_it_stopped_and_stays_at_its_snapshot(
    bench: Bench, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "SLICE_ROWS_MAX", 2)
    source = Source("shard 0", bench.pools[0])
    scan = scanning.ShardScan(source, [market.sale.sale_id], at_ms=1)
    await scan.open()
    assert await scan.step()
    dsn = bench.databases.shard_dsns[0]
    execute(dsn, "DELETE FROM orders")
    execute(dsn, "DELETE FROM order_transitions")
    steps = 1
    while await scan.step():
        steps += 1
    await scan.close()
    held = scan.part.units[market.sale.sale_id]["SKU-0"]
    assert held.held == held.sold > 0
    assert scan.part.strays == {}
    assert steps >= 5


async def test_a_slice_that_takes_too_long_is_read_again_with_fewer_rows(
    bench: Bench, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look once read everything by one statement: beyond its limit there was never a verdict again."""
    monkeypatch.setattr(scanning, "SLICE_S_MAX", 0.3)
    monkeypatch.setattr(scanning, "SLICE_ROWS_MIN", 1)
    monkeypatch.setattr(scanning, "SLICE_ROWS_MAX", 8)
    slow = "SELECT pg_sleep(CASE WHEN %(rows_max)s > 2 THEN 5 ELSE 0 END)"
    block = scanning.SQL["end_of_orders"].replace("SELECT id", f"WITH late AS MATERIALIZED ({slow}) SELECT id")
    block = block.replace("FROM orders WHERE", "FROM late, orders WHERE")
    monkeypatch.setattr(scanning, "SQL", {**scanning.SQL, "end_of_orders": block})
    scan = scanning.ShardScan(Source("shard 1", bench.pools[1]), [market.sale.sale_id], at_ms=1)
    await scan.open()
    while await scan.step():
        pass
    await scan.close()
    held = scan.part.units[market.sale.sale_id]["SKU-0"]
    assert held.held == held.sold > 0 and scan.cut_slices >= 2


async def test_a_slow_deep_look_leaves_the_quick_ones_alone_and_its_age_shows(
    bench: Bench, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "SLICE_S_MAX", 0.3)
    monkeypatch.setattr(reading, "STATEMENT_S_MAX", 1)
    looking = looking_at(bench)
    (first,) = await looking.look()
    assert first.is_proved and first.deep_at_ms is not None
    async with await psycopg.AsyncConnection.connect(bench.databases.shard_dsns[2]) as locking:
        await locking.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        deep_look = asyncio.create_task(looking.deep.run_pass(await looking.sales()))
        monkeypatch.setattr(looking.deep, "is_due", lambda _: False)
        market.buy(1, shard=0)
        (meanwhile,) = await looking.look()
        assert not deep_look.done()
        assert (meanwhile.a, meanwhile.deep_at_ms) == (True, first.deep_at_ms)
        await deep_look
        assert set(looking.deep.parts.problems) == {"shard 2", "notes of shard 2"}
        (after,) = await looking.look()
        assert after.deep_at_ms == first.deep_at_ms, "the oldest part counts"
        # Too old to prove anything.
        looking.deep.parts.shards[2].read_at -= 1000
        (old,) = await looking.look()
        assert (old.a, old.b) == (None, None)
        assert old.detail[0].startswith("shard 2 was last read 100") and "QueryCanceled" in old.detail[0]
    await looking.deep.run_pass(await looking.sales())
    (again,) = await looking.look()
    assert again.a is True and again.deep_at_ms is not None and again.deep_at_ms > first.deep_at_ms


async def test_a_shard_that_is_away_makes_its_own_part_unknown(
    bench: Bench, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = looking_at(bench)
    assert (await settled(looking)).is_proved

    for each in (looking._reading, looking.deep._reading):
        monkeypatch.setattr(each.shards[3], "ask", _refusing(each.shards[3]))
    (verdict,) = await looking.look()
    assert (verdict.a, verdict.b) == (True, True), "the part was read a moment ago"
    assert verdict.deep_at_ms is not None
    market.buy(2, shard=0)
    (verdict,) = await looking.look()
    assert (verdict.a, verdict.b) == (True, None)
    assert any("shard 3 does not answer: no route" in text for text in verdict.detail)
    looking.deep.parts.shards[3].read_at -= 1000
    (verdict,) = await looking.look()
    assert (verdict.a, verdict.b) == (None, None)
    assert any(text.startswith("shard 3 was last read") for text in verdict.detail)
    # The other parts go on: damage in them is found.
    dsn = bench.databases.shard_dsns[0]
    assert execute(dsn, "UPDATE quota SET granted = granted + 1, sold = sold + 1") == 1
    verdict = await settled(looking)
    assert verdict.a is False
    assert any("shard 0 stores" in text for text in verdict.detail)


async def test_a_catalogue_that_is_away_leaves_the_sale_unproved_and_violations_violated(
    bench: Bench, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = looking_at(bench)
    assert (await settled(looking)).is_proved
    for each in (looking._reading, looking.deep._reading):
        monkeypatch.setattr(each.catalogue, "ask", _refusing(each.catalogue))
    (verdict,) = await looking.look()
    assert (verdict.a, verdict.b) == (None, None)
    assert verdict.detail[0] == "the ledger is unknown" and "catalogue does not answer" in verdict.detail[-1]
    field = topology.stock_field(market.sale.sale_id, 0)
    whole = market.redis.hget(topology.lane_state_key(LANE), field)
    assert isinstance(whole, bytes)
    market.redis.hset(topology.lane_state_key(LANE), field, whole[:-1])
    assert (await settled(looking)).a is False


def _refusing(source: Source) -> object:
    async def ask(work: object, **_: object) -> None:
        work.close()  # type: ignore[attr-defined]
        raise Away(source.part, "no route to host")

    return ask


async def test_a_shard_that_is_silent_delays_a_look_by_its_bound_only(
    bench: Bench, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many lanes and reads ask the shard; the first one that gets no answer speaks for all of them."""
    dsn = bench.databases.shard_dsns[3]
    port = int(dsn.rpartition(":")[2].partition("/")[0])
    with FaultProxy(port) as proxy:
        through = SecretStr(dsn.replace(f":{port}/", f":{proxy.port}/"))
        async with postgres_pool(through, size_max=2, call_s_max=0.5) as pool:
            pool.timeout = 0.5
            looking = looking_at(bench)
            asked = [source for each in (looking._reading, looking.deep._reading) for source in [each.shards[3]]]
            for source in asked:
                monkeypatch.setattr(source, "pool", pool)
            assert (await settled(looking)).is_proved
            proxy.stall(stalled=True)
            market.buy(1, shard=0)
            (verdict,) = await looking.look()
            assert (verdict.a, verdict.b) == (True, None)
            assert any(text.startswith("shard 3 does not answer: ") for text in verdict.detail)
            with pytest.raises(Away):
                await looking._reading.places(LANE, after=0, upto=1)
            assert proxy.counted["stalled"] < 10
            proxy.stall(stalled=False)
            await market.store()
            assert (await settled(looking)).is_proved


async def test_what_was_found_at_rest_stands_while_the_sale_moves(bench: Bench, market: Market) -> None:
    looking = looking_at(bench)
    stock = market.lane.stock(market.sale)
    field = topology.stock_field(market.sale.sale_id, 0)
    damaged = replace(stock, available=stock.available - 1, reserved=stock.reserved + 1)
    market.redis.hset(topology.lane_state_key(LANE), field, damaged.pack())
    assert (await settled(looking)).a is False
    market.buy(1)  # not stored: nothing can be compared
    assert (await settled(looking)).a is False
    await market.store()
    assert (await settled(looking)).a is False


# Notes of dead letters


def letter_of(market: Market, seq: int) -> tuple[NewLetter, int]:
    """The dead letter of the entry at a place, and its shard."""
    entry = market.lane.stream()[seq]
    shard = TOPOLOGY.shard_of_order(entry.order_id)
    body = message([SequencedEntry(LANE, seq, encode_entry(entry))])
    kind = FailureKind.REFUSED_BY_DATABASE
    return NewLetter(queue=order_queue(shard), message_id=f"dead-{seq}", body=body, kind=kind, reason="test"), shard


def notes(bench: Bench, shard: int) -> list[tuple[object, ...]]:
    return rows(bench.databases.shard_dsns[shard], "SELECT lane_seq, was_seen FROM dead_lettered")


async def bury(bench: Bench, market: Market, seq: int) -> tuple[str, int]:
    """A place in the dead letters, with its note; the letter's id and its shard."""
    letter, shard = letter_of(market, seq)
    await buried(market, seq, letter=letter.identity)
    return await bench.letters.add(letter), shard


async def test_the_note_of_a_replayed_letter_is_deleted_when_its_place_is_stored(bench: Bench, market: Market) -> None:
    looking = looking_at(bench, stored_within_s=0.0)
    (order,) = market.buy(1)
    await market.store(without=[27])
    letter_id, shard = await bury(bench, market, 27)
    assert (await settled(looking)).is_proved
    assert notes(bench, shard) == [(27, True)]
    await replay(bench.letters, bench.queue, letter_id)
    verdict = await settled(looking)
    assert verdict.is_proved and notes(bench, shard) == [(27, True)], "the message is in its queue"
    async with bench.running(shard):
        await bench.drained(shard)
    assert (await settled(looking)).is_proved
    assert notes(bench, shard) == []
    stored = "SELECT status FROM orders WHERE id = %s"
    assert rows(bench.databases.shard_dsns[shard], stored, order.order_id) == [(OrderStatus.RESERVED,)]


async def test_a_deleted_letter_is_a_loss_of_its_sale_alone(
    bench: Bench, maker: Maker, redis_client: redis.Redis, market: Market
) -> None:
    looking = looking_at(bench, stored_within_s=0.0)
    other = open_market(bench, Maker(maker.rng, UUID(int=maker.rng.getrandbits(128))), redis_client, units=5)
    (order,) = market.buy(1)
    await market.store(without=[27])
    letter_id, shard = await bury(bench, market, 27)
    await looking.look()
    assert await bench.letters.delete(letter_id)
    await looking.look()
    verdicts = {verdict.sale_id: verdict for verdict in await looking.look()}
    assert notes(bench, shard) == []
    given_up = "SELECT lane, lane_seq, sale_id, order_id FROM given_up_entries"
    assert rows(bench.databases.catalogue_dsn, given_up) == [(LANE, 27, market.sale.sale_id, order.order_id)]
    assert verdicts[market.sale.sale_id].b is False
    assert any("dead letters with changes of orders were deleted" in t for t in verdicts[market.sale.sale_id].detail)
    assert verdicts[other.sale.sale_id].is_proved
    other.buy(1)
    other.stored_upto = 27
    await other.store()
    verdicts = {verdict.sale_id: verdict for verdict in await looking.look()}
    assert verdicts[other.sale.sale_id].is_proved, "the lane goes on behind the place"


async def test_a_note_before_its_letter_stays(bench: Bench, market: Market) -> None:
    """The writer notes first. While the dead letters are full the message stays in its queue."""
    looking = looking_at(bench, stored_within_s=0.0)
    market.buy(1)
    await market.store(without=[27])
    letter, shard = letter_of(market, 27)
    await buried(market, 27, letter=letter.identity)
    for _ in range(3):
        assert (await settled(looking)).is_proved
    assert notes(bench, shard) == [(27, False)]
    execute(bench.databases.shard_dsns[shard], "UPDATE dead_lettered SET at = now() - interval '25 hours'")
    await looking.look()
    assert notes(bench, shard) == []
