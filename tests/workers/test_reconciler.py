"""The reconciler on real servers: it proves a correct sale, and each planted damage turns it red."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID, uuid4

import psycopg
import pytest
import redis

from devstack.children import free_port
from devstack.servers import RedisServer
from domain import ids, topology
from domain.messages import SequencedEntry
from domain.orders import OrderEntry, encode_entry
from domain.sales import SaleDefinition, Stock
from reservation.documents import SaleDocuments
from reservation.lane import Lanes
from runtime.dead_letters import NewLetter
from runtime.queue import FailureKind
from tests.reservation.lane import LANE, LaneClient, make_sale
from tests.workers.making import TOPOLOGY, Maker, stock
from tests.workers.selling import Market, open_market
from tests.workers.worker_process import ROOT, get, stop, worker_process
from tests.workers.writing import Bench, eventually, rows
from workers.places import Coverage, cover
from workers.reconciler import deep
from workers.reconciler.deep import DeepLooks
from workers.reconciler.looking import Looking
from workers.reconciler.progress import LaneProgress
from workers.reconciler.reading import Reading
from workers.reconciler.verdict import Verdict
from workers.shard_writer.plan import Version


class Thorough(Looking):
    """Quick and deep looks in turn, in place of two tasks."""

    async def look(self, *, only: UUID | None = None) -> list[Verdict]:
        sales = await self.sales(only=only)
        await self.follow(sales)
        if self.deep.is_due(sale.sale_id for sale in sales):
            await self.deep.run_pass(sales)
        return await super().look(only=only)


def looking_at(bench: Bench, *, stored_within_s: float = 60.0, deep_every_s: float = 0.0) -> Thorough:
    """A reconciler that reads everything at every look."""
    reading = Reading(redis=bench.redis, catalogue=bench.catalogue, shards=bench.pools, letters=bench.letters)
    progress: dict[int, LaneProgress] = {}
    looks = DeepLooks(reading.apart(), progress, every_s=deep_every_s, share_max=1e9)
    return Thorough(reading, looks, progress=progress, kept_s=3600, stored_within_s=stored_within_s)


async def settled(looking: Thorough) -> Verdict:
    """The verdict of a second look: doubts of the first one are settled then."""
    await looking.look()
    (verdict,) = await looking.look()
    return verdict


@pytest.fixture
async def market(bench: Bench, maker: Maker, redis_client: redis.Redis) -> Market:
    """A sale with orders in every state and shard, everything stored, 9 units held."""
    market = open_market(bench, maker, redis_client, units=20)
    orders = market.buy(12)
    for order in orders[:3]:
        market.cancel(order)
    for order in orders[3:6]:
        market.lane.change("settle-5", order)
    await market.store()
    return market


async def test_a_sale_that_is_right_is_proved(bench: Bench, market: Market) -> None:
    looking = looking_at(bench)
    (first,) = await looking.look()
    assert (first.a, first.b, first.detail) == (True, True, ())
    assert rows(bench.databases.catalogue_dsn, "SELECT lane, verified_seq FROM lane_watermark") == [(LANE, 18)]
    market.buy(3)
    (waiting,) = await looking.look()
    assert (waiting.a, waiting.b) == (True, None)
    await market.store()
    (stored,) = await looking.look()
    assert (stored.a, stored.b) == (True, True)
    assert market.lane.restock(market.sale.sale_id, 0, 5, "more") == 1
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("UPDATE stock_ledger SET stock = stock + 5")
    assert (await settled(looking)).is_proved


@pytest.mark.usefixtures("market")
async def test_a_new_sale_does_not_wait_for_the_next_deep_look(
    bench: Bench, maker: Maker, redis_client: redis.Redis
) -> None:
    looking = looking_at(bench, deep_every_s=1e6)
    assert [verdict.a for verdict in await looking.look()] == [True]
    open_market(bench, maker, redis_client, units=5)
    assert [verdict.a for verdict in await looking.look()] == [True, True]


async def test_a_restock_in_flight_is_no_violation_until_it_stays(bench: Bench, market: Market) -> None:
    looking = looking_at(bench)
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("UPDATE stock_ledger SET stock = stock + 5")
    (first,) = await looking.look()
    assert first.a is None
    assert (await looking.look())[0].a is False
    market.lane.restock(market.sale.sale_id, 0, 5, "late")
    (healed,) = await looking.look()
    assert (healed.a, healed.b) == (True, True)


def _sql(shard: int, statement: str) -> Callable[[Bench, Market], None]:
    def damage(bench: Bench, market: Market) -> None:
        dsn = bench.databases.catalogue_dsn if shard < 0 else bench.databases.shard_dsns[shard]
        with psycopg.connect(dsn) as connection:
            changed = connection.execute(
                statement, {"extra": market.maker.order(shard=max(shard, 0)).order_id}
            ).rowcount
            assert changed == 1

    return damage


async def test_damage_of_one_sale_is_red_there_and_leaves_the_others_proved(
    bench: Bench, maker: Maker, redis_client: redis.Redis, market: Market
) -> None:
    """A byte cut off a stock field ended every look once, so that the verdicts before it stood for ever."""
    other = open_market(bench, maker, redis_client, units=5)
    other.buy(2)
    await other.store()
    field = topology.stock_field(other.sale.sale_id, 0)
    key = topology.lane_state_key(LANE)
    whole = redis_client.hget(key, field)
    assert isinstance(whole, bytes)
    redis_client.hset(key, field, whole[:-1])
    looking = looking_at(bench)
    await looking.look()
    verdicts = {verdict.sale_id: verdict for verdict in await looking.look()}
    assert verdicts[market.sale.sale_id].is_proved
    damaged = verdicts[other.sale.sale_id]
    assert damaged.a is False and any("malformed counters" in text for text in damaged.detail)
    redis_client.hset(key, field, whole)
    await looking.look()
    assert all(verdict.is_proved for verdict in await looking.look())


@pytest.mark.parametrize("damage", ["sequence", "type"])
async def test_a_lane_that_cannot_be_read_is_red_and_leaves_the_others_proved(
    bench: Bench, redis_client: redis.Redis, market: Market, damage: str
) -> None:
    """A look that one lane ended was a look without any verdict."""
    other = replace(make_sale(), lanes=(LANE + 1,))
    stock(bench.databases, other.sale_id, {"SKU-0": 5})
    await Lanes(bench.redis).load(LANE + 1, other, [Stock.fresh(5)])
    await SaleDocuments(bench.redis).announce(other)
    key = topology.lane_state_key(LANE)
    if damage == "sequence":
        redis_client.hset(key, "seq", "eighteen")
    else:
        redis_client.delete(key)
        redis_client.set(key, b"no hash")
    looking = looking_at(bench)
    await looking.look()
    verdicts = {verdict.sale_id: verdict for verdict in await looking.look()}
    assert verdicts[other.sale_id].is_proved
    assert verdicts[market.sale.sale_id].a is False
    assert any(f"lane {LANE} cannot be read" in text for text in verdicts[market.sale.sale_id].detail)


async def test_a_sale_that_cannot_be_compared_is_red_and_leaves_the_others_proved(
    bench: Bench, maker: Maker, redis_client: redis.Redis, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_market(bench, maker, redis_client, units=5)

    def compare(sale: SaleDefinition, *_: object) -> list[object]:
        if sale.sale_id == other.sale.sale_id:
            raise struct.error("unpack requires a buffer of 28 bytes")
        return []

    monkeypatch.setattr(deep, "lanes_against_shards", compare)
    looking = looking_at(bench)
    verdicts = {verdict.sale_id: verdict for verdict in await looking.look()}
    assert verdicts[market.sale.sale_id].is_proved
    assert verdicts[other.sale.sale_id].a is False
    assert "cannot be judged: error: unpack requires" in verdicts[other.sale.sale_id].detail[0]


def _in_redis(**more: int) -> Callable[[Bench, Market], None]:
    def damage(_: Bench, market: Market) -> None:
        counters = market.lane.stock(market.sale)
        changed = replace(counters, **{name: getattr(counters, name) + units for name, units in more.items()})
        field = topology.stock_field(market.sale.sale_id, 0)
        market.redis.hset(topology.lane_state_key(LANE), field, changed.pack())

    return damage


_DELETE = "DELETE FROM orders WHERE id = (SELECT min(id::text)::uuid FROM orders"
_COPY = (
    "INSERT INTO orders SELECT %(extra)s, user_id, sale_id, bucket, idempotency_key || '-2', status, version, epoch, "
    "currency, total_minor, lines, reserved_at, expires_at, changed_at, lane, charged FROM orders WHERE status = 0 LIMIT 1"
)


@pytest.mark.parametrize(
    ("damage", "invariants", "words"),
    [
        (_sql(0, f"{_DELETE} WHERE status = 0)"), "AB", "counts"),
        (_sql(1, f"{_DELETE} WHERE status = 2)"), "B", "have no order"),
        (_sql(0, _COPY), "AB", "came from no entry"),
        (_sql(2, "DELETE FROM order_transitions WHERE lane_seq = (SELECT min(lane_seq) FROM order_transitions)"), "B", "lane 3"),
        (_sql(3, "UPDATE quota SET granted = granted + 1, sold = sold + 1"), "A", "counts"),
        (_sql(3, "UPDATE quota SET granted = granted + 1"), "A", "catalogue gave"),
        (_sql(-1, "UPDATE stock_ledger SET stock = stock - 1"), "A", "ledger has"),
        (_sql(-1, "UPDATE stock_ledger SET granted = granted + 1"), "A", "ledger says"),
        (_in_redis(available=1), "A", "not balanced"),
        (_in_redis(available=1, allotted=1), "A", "lanes were given"),
        (_in_redis(available=1, reserved=-1), "A", "in Redis"),
        (_in_redis(available=-1, reserved=1), "A", "in Redis"),
    ],
)  # fmt: skip
async def test_planted_damage_turns_it_red(
    bench: Bench, market: Market, damage: Callable[[Bench, Market], None], invariants: str, words: str
) -> None:
    looking = looking_at(bench)
    assert (await settled(looking)).is_proved
    damage(bench, market)
    verdict = await settled(looking)
    assert {"A": verdict.a, "B": verdict.b} == {name: name not in invariants for name in "AB"}
    assert any(words in line for line in verdict.detail), verdict.detail
    # A reconciler that starts after the damage sees it, too.
    later = await settled(looking_at(bench))
    assert {"A": later.a, "B": later.b} == {name: name not in invariants for name in "AB"}


MANY = (LANE, LANE + 1, LANE + 2)


@pytest.fixture
async def wide_market(bench: Bench, maker: Maker, redis_client: redis.Redis) -> Market:
    """A sale over three lanes that holds 8 of 30 units; a transfer of 4 units ended, and one of 2 is in transit."""
    market = open_market(bench, maker, redis_client, units=30, lanes=MANY)
    market.buy(8)
    await market.store()
    lender, borrower = LaneClient(redis_client, MANY[1]), market.lane
    assert lender.lend(market.sale, 0, LANE, 1, 4) == 4
    assert borrower.credit(market.sale, 0, MANY[1], 1, 4) == lender.clear(market.sale, 0, LANE, 1) == 1
    assert lender.lend(market.sale, 0, LANE, 2, 2) == 2
    return market


def _lost_record(market: Market) -> None:
    market.redis.delete(topology.transfers_key(MANY[1], market.sale.sale_id))


def _credit_without_a_record(market: Market) -> None:
    for number in (5, 6):
        assert market.lane.credit(market.sale, 0, MANY[2], number, 1) == 1


def _credit_after_the_memory_was_lost(market: Market) -> None:
    """The transfer that ended is credited again."""
    market.redis.delete(topology.transfers_key(LANE, market.sale.sale_id))
    assert market.lane.credit(market.sale, 0, MANY[1], 1, 4) == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_lost_record, "their records have 0"), (_credit_without_a_record, "their records have 2"),
     (_credit_after_the_memory_was_lost, "lanes borrowed 8 units, lent 6")],
)  # fmt: skip
async def test_units_that_a_transfer_makes_or_loses_turn_it_red(
    bench: Bench, wide_market: Market, damage: Callable[[Market], None], words: str
) -> None:
    assert (await settled(looking_at(bench))).is_proved, "units in transit are accounted for"
    damage(wide_market)
    verdict = await settled(looking_at(bench))
    assert (verdict.a, verdict.b) == (False, True)
    assert any(words in line for line in verdict.detail), verdict.detail


async def test_malformed_records_of_transfers_need_a_rebuild(bench: Bench, wide_market: Market) -> None:
    wide_market.redis.hset(topology.transfers_key(LANE, wide_market.sale.sale_id), "o:0", "x")
    verdict = await settled(looking_at(bench))
    assert verdict.a is None and "records of transfers cannot be read" in verdict.detail[0]


async def test_more_stored_than_there_is_is_an_oversell(bench: Bench, market: Market) -> None:
    """Both guards forced open: the stored units alone give it away."""
    market.buy(11, shard=0)
    await market.store()
    with psycopg.connect(bench.databases.catalogue_dsn) as connection:
        connection.execute("ALTER TABLE stock_ledger DROP CONSTRAINT stock_ledger_no_oversell")
        connection.execute("UPDATE stock_ledger SET stock = 15")
    try:
        verdict = await settled(looking_at(bench))
    finally:
        with psycopg.connect(bench.databases.catalogue_dsn) as connection:
            connection.execute("UPDATE stock_ledger SET stock = 100")
            connection.execute(
                "ALTER TABLE stock_ledger ADD CONSTRAINT stock_ledger_no_oversell CHECK (granted BETWEEN 0 AND stock)"
            )
    assert verdict.a is False
    assert any("oversold" in line for line in verdict.detail)


async def test_a_lost_entry_is_found_when_its_time_is_over(bench: Bench, market: Market) -> None:
    looking = looking_at(bench, stored_within_s=1.0)
    market.buy(5)
    await market.store(without=[20])
    (early,) = await looking.look()
    assert (early.a, early.b) == (True, None)
    assert any("3 entries are not stored yet" in line or "4 entries" in line for line in early.detail)

    async def judged() -> bool:
        return (await looking.look())[0].b is not None

    await eventually(judged)
    (verdict,) = await looking.look()
    assert verdict.b is False
    assert any("entry 20 is not stored" in line for line in verdict.detail)
    assert rows(bench.databases.catalogue_dsn, "SELECT verified_seq FROM lane_watermark") == [(19,)]
    # It was late, not lost: stored at last, the sale is proved again.
    market.stored_upto = 19
    await market.store()
    assert (await settled(looking)).is_proved


async def buried(market: Market, seq: int, *, letter: bytes = bytes(32)) -> OrderEntry:
    """Note the entry at a place as a dead letter of its shard, as a writer does; its order."""
    entry = market.lane.stream()[seq]
    shard = TOPOLOGY.shard_of_order(entry.order_id)
    version = Version(entry, SequencedEntry(LANE, seq, encode_entry(entry)))
    await market.bench.store(shard).note_dead_lettered([version], "test", letter=letter)
    return entry


async def judged(looking: Thorough) -> Verdict:
    """The settled verdict, when entries that are not stored are due."""

    async def is_judged() -> bool:
        return (await looking.look())[0].b is not None

    await eventually(is_judged)
    return await settled(looking)


async def test_dead_letters_are_accounted_for(bench: Bench, market: Market) -> None:
    """A dead letter excludes exactly its own place: the rest of the lane is compared as before."""
    looking = looking_at(bench, stored_within_s=0.5)
    orders = market.buy(4)
    market.cancel(orders[3])  # entry 23: the letter holds a release, the shard still the order
    await market.store(without=[20, 23])
    await buried(market, 20)
    await buried(market, 23)
    verdict = await judged(looking)
    assert (verdict.a, verdict.b, verdict.detail) == (True, True, ())
    _in_redis(available=-1, reserved=1)(bench, market)
    verdict = await settled(looking)
    assert (verdict.a, verdict.b) == (False, True)
    assert any("0 in the dead letters" in text or "in Redis" in text for text in verdict.detail)


async def test_a_dead_letter_without_a_readable_order_leaves_a_difference_unproved(
    bench: Bench, market: Market
) -> None:
    """An entry in the dead letters of the relay is not lost, but nothing tells its units."""
    looking = looking_at(bench, stored_within_s=0.5)
    market.buy(2)
    await market.store(without=[20])
    headers = {"lane": str(LANE), "lane_seq": "20"}
    await bench.letters.add(
        NewLetter(
            queue=topology.POISON_ENTRIES, message_id=f"{LANE}:20", body=b"?", kind=FailureKind.UNROUTABLE, reason="test",
            headers=headers, replayable=False,
        )
    )  # fmt: skip
    verdict = await judged(looking)
    assert (verdict.a, verdict.b) == (None, True)
    assert "1 dead letters of its lanes are not readable" in verdict.detail[0]
    # A letter that held no units of the sale explains nothing and hinders nothing.
    _in_redis(available=1, reserved=-1)(bench, market)
    verdict = await settled(looking)
    assert (verdict.a, verdict.b) == (True, True)
    _in_redis(reserved=200, allotted=200)(bench, market)
    assert (await settled(looking)).a is False, "more units than a letter may have"


async def test_a_redis_that_lost_entries_is_red(bench: Bench, market: Market) -> None:
    looking = looking_at(bench)
    assert (await settled(looking)).is_proved
    market.redis.hset(topology.lane_state_key(LANE), "seq", 10)
    verdict = await settled(looking)
    assert verdict.b is False
    assert any("Redis lost entries" in line for line in verdict.detail)


async def test_a_lane_without_the_sale_cannot_be_judged_and_then_is_red(bench: Bench, market: Market) -> None:
    looking = looking_at(bench)
    market.redis.hdel(topology.lane_state_key(LANE), topology.stock_field(market.sale.sale_id, 0))
    (first,) = await looking.look()
    assert first.a is None
    assert (await looking.look())[0].a is False


async def test_sales_are_judged_apart_and_only_while_redis_keeps_them(
    bench: Bench, market: Market, redis_client: redis.Redis
) -> None:
    other = open_market(bench, Maker(market.maker.rng, uuid4()), redis_client, units=5)
    long_over = open_market(
        bench, Maker(market.maker.rng, uuid4()), redis_client, units=5, ends_at_ms=1_000_000_000_000
    )
    redis_client.set(topology.sale_key(uuid4()), b"{}")
    malformed = uuid4()
    redis_client.sadd(topology.SALES_KEY, str(malformed))
    redis_client.set(topology.sale_key(malformed), b"{}")
    _in_redis(available=1)(bench, other)
    looking = looking_at(bench)
    await looking.look()
    verdicts = {verdict.sale_id: verdict.a for verdict in await looking.look()}
    assert verdicts == {market.sale.sale_id: True, other.sale.sale_id: False}
    assert long_over.sale.sale_id not in verdicts


async def test_the_watermark_finds_the_first_gap_with_one_read() -> None:
    """Reads from a plain set of stored places."""

    class Stored:
        def __init__(self, places: set[int]) -> None:
            self.stored = places
            self.reads = 0

        async def places(self, lane: int, *, after: int, upto: int) -> Coverage:
            assert lane == 7
            self.reads += 1
            return cover(after, upto, stored=[[seq - after for seq in self.stored if after < seq <= upto]])

        async def note_poison(self, lane: int) -> None:
            assert lane == 7

        async def raise_watermark(self, lane: int, verified_seq: int) -> None:
            assert lane == 7 and verified_seq > 0

    for gap in (1, 2, 5_000, 9_999, 10_000):
        stored = Stored(set(range(1, 10_001)) - {gap})
        progress = LaneProgress(7)
        await progress.look(stored, 10_000)
        assert progress.verified == gap - 1
        assert stored.reads == 1
    progress = LaneProgress(7)
    await progress.look(Stored(set(range(1, 120_001))), 120_000)
    assert progress.verified == 120_000 and progress.is_proved(120_000)


def _settings(bench: Bench, redis_server: RedisServer) -> dict[str, str]:
    return {
        "REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url, "LEASE_MS": "500",
        "CATALOGUE_DSN": bench.databases.catalogue_dsn, "SHARD_DSNS": ",".join(bench.databases.shard_dsns),
    }  # fmt: skip


def _judge(bench: Bench, redis_server: RedisServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {f"FLASHSALE_{name}": value for name, value in _settings(bench, redis_server).items()}
    return subprocess.run(
        [sys.executable, "-m", "workers.reconciler", "--once", *arguments],
        env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def test_once_answers_by_exit_status_and_json(bench: Bench, market: Market, redis_server: RedisServer) -> None:
    sale_id = str(market.sale.sale_id)
    good = _judge(bench, redis_server, "--json", "--sale", sale_id)
    assert good.returncode == 0
    document = json.loads(good.stdout)
    assert (document["sale_id"], document["A"], document["B"], document["detail"]) == (sale_id, True, True, [])
    assert abs(document["at_ms"] - (await bench.redis.time())[0] * 1000) < 60_000

    market.buy(1)
    waiting = _judge(bench, redis_server, "--json", "--sale", sale_id, "--wait-s", "1")
    assert waiting.returncode == 1
    assert json.loads(waiting.stdout)["B"] is not True
    await market.store()

    _in_redis(reserved=1)(bench, market)
    bad = _judge(bench, redis_server)
    assert bad.returncode == 1
    assert bad.stdout.splitlines()[0] == f"sale {sale_id}: A VIOLATED, B proved"
    both = json.loads(_judge(bench, redis_server, "--json").stdout)
    assert (both["A"], both["B"], [sale["sale_id"] for sale in both["sales"]]) == (False, True, [sale_id])

    nowhere = _judge(bench, redis_server, "--json", "--sale", str(ids.new_uuid7()), "--wait-s", "0")
    assert nowhere.returncode == 1
    assert json.loads(nowhere.stdout)["A"] is None
    assert _judge(bench, redis_server, "--sale", "nonsense").returncode == 2


async def test_the_service_publishes_its_verdicts(bench: Bench, market: Market, redis_server: RedisServer) -> None:
    async def verdict() -> dict[str, bool | None]:
        raw = await bench.redis.hget(topology.VERDICTS_KEY, str(market.sale.sale_id))
        return {} if raw is None else {name: value for name, value in json.loads(raw).items() if name in "AB"}

    async def green() -> bool:
        return await verdict() == {"A": True, "B": True}

    async def red() -> bool:
        return await verdict() == {"A": False, "B": True}

    environ = _settings(bench, redis_server) | {"METRICS_PORT": str(free_port())}
    with worker_process("workers.reconciler", environ) as process:
        await eventually(green)
        _in_redis(available=1)(bench, market)
        await eventually(red)
        text = get(f"http://127.0.0.1:{environ['METRICS_PORT']}/metrics")[1]
        ages_s = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("flashsale_deep_look_age")]
        assert len(ages_s) == 4 and all(0 <= age_s < 60 for age_s in ages_s)
        assert stop(process) == 0
