"""Events to figures on real servers: each event counts once, in the second of its own time, whatever comes again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis

from devstack.servers import RedisServer
from domain.orders import OrderStatus
from domain.topology import REFUSED_KEY_PREFIX, SALES_KEY, TOPIC_ORDERS, TOPIC_PAYMENTS
from runtime.event_log import NewRecord
from runtime.event_log.redis_streams import stream_key
from tests.fixtures.fix_databases import Databases
from tests.workers.analytics_setup import SEED, WAIT_S, Setup, quick_consumers
from tests.workers.counting import append, by_second, stored_figures, stored_seconds, totals
from workers.analytics import consumer as module
from workers.analytics import metrics
from workers.analytics.days import Days
from workers.analytics.refusals import RefusalSampler
from workers.analytics.store import DAY_MS, Figures, PositionsMoved, RefusalCounts
from workers.analytics.topics import COUNTED_TOPICS


@pytest.fixture
async def setup(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    quick_consumers(monkeypatch)
    async with Setup(redis_server.url, databases).opened() as made:
        yield made


def results(topic: str, result: str) -> float:
    return float(metrics.EVENTS.labels(topic, result)._value.get())


async def test_figures_equal_a_naive_count(setup: Setup) -> None:
    setup.story.random_lives(300)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)
    minutes = sum(stored_seconds(setup.dsn, "figures.minutes").values(), Counter())
    assert minutes == totals(setup.story.events)
    units = setup.row("SELECT sum(reserved), sum(returned) FROM figures.sku_seconds")
    returned = sum(
        line.quantity
        for entry in setup.story.entries
        if entry.status in (OrderStatus.CANCELLED, OrderStatus.EXPIRED)
        for line in entry.lines
    )
    assert units == (totals(setup.story.events)["units"], returned)
    assert setup.row("SELECT sum(orders) FROM figures.pay_times") == (totals(setup.story.events)["paid"],)


async def test_an_event_that_comes_again_changes_nothing(setup: Setup) -> None:
    """Twice in one batch, at a new offset, and after its order's next state: in any order."""
    setup.story.random_lives(60)
    async with setup.running():
        await append(setup.log, [event for event in setup.story.events for _ in range(2)])
        await setup.counted()
        before = stored_figures(setup.dsn)
        again = list(setup.story.events)
        random.Random(SEED).shuffle(again)
        await append(setup.log, again)
        await setup.counted()
    assert stored_figures(setup.dsn) == before
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)


async def test_late_and_reordered_events_count_in_their_own_second(setup: Setup) -> None:
    order = setup.story.order(setup.story.start_ms)
    paid = setup.story.becomes(order, OrderStatus.PAID, setup.story.start_ms + 2_500)
    setup.story.refund(paid, 500, setup.story.start_ms + 60_000)
    async with setup.running():
        for event in reversed(setup.story.events):
            await append(setup.log, [event])
            await setup.counted()
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)
    assert len(stored_seconds(setup.dsn)) == 3


async def test_what_cannot_be_counted_is_counted_by_reason_and_passed_over(setup: Setup) -> None:
    topic = TOPIC_ORDERS
    reasons = ("malformed", "unknown type", "too old", "in the future")
    before = {reason: results(topic, reason) for reason in reasons}
    setup.story.order(int(setup.now * 1000) - 40 * DAY_MS)
    setup.story.order(int(setup.now * 1000) + 3 * DAY_MS)
    setup.story.order(setup.story.start_ms)
    good = setup.story.events[-1]
    headers = {"ce_specversion": "1.0", "ce_type": "order.paid"}
    async with setup.running():
        await setup.log.append(topic, 3, [NewRecord("k", b"{", headers), NewRecord("k", b"{}", {"ce_type": "order.x"})])
        await append(setup.log, setup.story.events)
        await setup.counted()
    assert {reason: results(topic, reason) - before[reason] for reason in reasons} == dict.fromkeys(reasons, 1)
    assert stored_seconds(setup.dsn) == by_second([good])


class Crash(Exception):
    """The end of a process at one step."""


@pytest.mark.parametrize("step", ["before the commit", "after the commit"])
async def test_a_crash_at_either_side_of_the_commit_counts_each_event_once(setup: Setup, step: str) -> None:
    """The second process goes on from the positions in the database."""
    setup.story.random_lives(40)
    await append(setup.log, setup.story.events)

    class Crashing(Figures):
        async def apply(self, topic: str, batch: Any, progress: Any) -> int:
            if step == "after the commit":
                await super().apply(topic, batch, progress)
            raise Crash

    with pytest.raises(Crash):
        async with setup.running(lambda: Crashing(setup.pool, carrier="redis")):
            await asyncio.sleep(0.2)
    async with setup.running():
        await setup.counted()
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)


async def test_two_processes_at_once_count_each_event_once(setup: Setup) -> None:
    """As after a lease that both believe to hold: the positions decide."""
    figures = [Figures(setup.pool, carrier="redis") for _ in range(2)]
    topic = COUNTED_TOPICS[0]
    known = [await one.positions(topic.name, topic.partitions) for one in figures]
    await figures[0].make_days({int(setup.now * 1000) // DAY_MS})
    await figures[0].apply(topic.name, module.Batch([], {0: -1}, {0: 5}), None)
    with pytest.raises(PositionsMoved):
        await figures[1].apply(topic.name, module.Batch([], {0: known[1][0]}, {0: 7}), None)
    assert (await figures[1].positions(topic.name, topic.partitions))[0] == 5


async def test_a_log_that_lost_its_data_is_read_from_its_beginning(setup: Setup) -> None:
    setup.story.random_lives(30)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
        for partition in range(16):
            await setup.redis.delete(stream_key(TOPIC_ORDERS, partition), stream_key(TOPIC_PAYMENTS, partition))
        await append(setup.log, setup.story.events[:5])
        later = [setup.story.order(setup.story.start_ms + 9_000) for _ in range(3)]
        assert later
        await append(setup.log, setup.story.events[-3:])
        await setup.counted()
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)


async def test_progress_says_how_far_the_figures_are(setup: Setup) -> None:
    async with setup.running():
        async with asyncio.timeout(WAIT_S):
            while setup.row("SELECT count(*) FROM figures.progress") != (2,):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    as_of, lag = setup.row("SELECT min(as_of), sum(lag_records) FROM figures.progress")
    assert (as_of, lag) == (datetime.fromtimestamp(int(setup.now * 1000) / 1000, UTC), 0)


async def test_partitions_are_made_ahead_and_dropped_after_their_days(setup: Setup) -> None:
    days = Days(setup.pool, days=2, minutes_days=4, now=lambda: setup.now)
    await days.keep()
    names = {row[0] for row in _rows(setup, "SELECT name FROM days_of('figures')")}
    ahead = {_name("seconds", setup.now + day * 86_400) for day in range(3)}
    assert ahead <= names
    setup.now += 3 * 86_400
    dropped = await days.keep()
    assert _name("seconds", setup.now - 2 * 86_400) in dropped
    assert _name("minutes", setup.now - 2 * 86_400) not in dropped
    setup.now += 20 * 86_400
    assert _name("refusals", setup.now - 20 * 86_400) in await days.keep()
    assert await days.keep() == []


async def test_a_clock_that_stepped_ahead_and_back_stops_no_counting(setup: Setup) -> None:
    """Partitions that were dropped meanwhile are made again."""
    days = Days(setup.pool, days=2, minutes_days=2, now=lambda: setup.now)
    sale, counts = uuid4(), RefusalCounts(setup.pool)
    at_ms = int(setup.now * 1000)
    async with setup.running():
        setup.story.order(at_ms)
        await append(setup.log, setup.story.events)
        await setup.counted()
        await counts.add({(sale, "sold_out"): 1}, at_ms)
        setup.now += 10 * 86_400
        assert _name("seconds", at_ms / 1000) in await days.keep()
        setup.now -= 10 * 86_400
        setup.story.order(at_ms)
        await append(setup.log, setup.story.events[-1:])
        await setup.counted()
        assert await counts.add({(sale, "sold_out"): 3}, at_ms) == 2
    assert stored_seconds(setup.dsn) == by_second(setup.story.events[-1:])


def _name(table: str, at: float) -> str:
    return f"{table}_{datetime.fromtimestamp(at, UTC):%Y%m%d}"


def _rows(setup: Setup, statement: str) -> list[Any]:
    with psycopg.connect(setup.dsn) as connection:
        return connection.execute(statement).fetchall()


async def test_refusals_are_counted_as_growth_and_survive_a_restart(setup: Setup) -> None:
    sale = uuid4()
    await setup.redis.sadd(SALES_KEY, str(sale))
    key = REFUSED_KEY_PREFIX + str(sale)

    def sampler() -> RefusalSampler:
        return RefusalSampler(setup.redis, RefusalCounts(setup.pool), now=lambda: setup.now)

    first = sampler()
    await setup.redis.hset(key, mapping={"sold_out": 10, "rate_limited": 1})
    assert await first.sample() == 11
    assert await first.sample() == 0
    setup.now += 1
    await setup.redis.hincrby(key, "sold_out", 5)
    assert await first.sample() == 5
    setup.now += 60
    await setup.redis.hincrby(key, "sold_out", 7)
    second = sampler()  # a restart: the growth since the last sample, in the second of the new one
    assert await second.sample() == 7
    await setup.redis.hset(key, "sold_out", 4)  # Redis lost the count, and edges began again
    assert await second.sample() == 4
    rows = _rows(setup, "SELECT code, array_agg(orders ORDER BY at) FROM refused.refusals GROUP BY code ORDER BY code")
    assert rows == [("rate_limited", [1]), ("sold_out", [10, 5, 11])]
    await setup.redis.delete(key)
    await setup.redis.srem(SALES_KEY, str(sale))
    assert await second.sample() == 0
    assert setup.row("SELECT count(*) FROM refused.samples") == (0,)
