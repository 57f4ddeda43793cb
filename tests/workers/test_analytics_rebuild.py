"""A rebuild of the figures on real servers: the same rows, while the first generation is served and counted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import date

import psycopg
import pytest
import redis

from devstack.servers import RedisServer
from domain.topology import TOPIC_ORDERS, TOPIC_PAYMENTS
from runtime.event_log.redis_streams import stream_key
from runtime.postgres.connection import BoundedConnection
from tests.fixtures.fix_databases import Databases
from tests.workers.analytics_setup import Setup, quick_consumers
from tests.workers.counting import Story, append, by_second, stored_figures, stored_seconds
from workers.analytics.rebuild.errors import RebuildError
from workers.analytics.rebuild.generations import NEXT_SPACE, Generations
from workers.analytics.rebuild.procedure import Rebuild
from workers.analytics.rebuild.retained import Retained, first_day
from workers.analytics.store import DAY_MS, Figures, date_of


@pytest.fixture
async def setup(
    redis_client: redis.Redis, redis_server: RedisServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    quick_consumers(monkeypatch)
    async with Setup(redis_server.url, databases).opened() as made:
        yield made


def rebuild(setup: Setup, lines: list[str] | None = None) -> Rebuild:
    return Rebuild(
        event_log=setup.log, generations=Generations(setup.pool, carrier="redis"),
        figures=Figures(setup.pool, carrier="redis", space=NEXT_SPACE), days=35,
        say=[].append if lines is None else lines.append, now=lambda: setup.now,
    )  # fmt: skip


def spaces(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'figures%'").fetchall()
    return {row[0] for row in rows}


def damage(dsn: str) -> None:
    """Wrong figures, as a defect of the worker would leave them."""
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE figures.seconds SET orders = orders + 1")
        connection.execute("DELETE FROM figures.pay_times")


async def test_the_same_rows_and_wrong_ones_are_mended(setup: Setup) -> None:
    setup.story.random_lives(200)
    async with setup.running():
        await append(setup.log, [*setup.story.events, *setup.story.events[:50]])
        await setup.counted()
    before = stored_figures(setup.dsn)
    first = await rebuild(setup).run()
    assert stored_figures(setup.dsn) == before
    damage(setup.dsn)
    assert stored_figures(setup.dsn) != before
    await rebuild(setup).run()
    assert stored_figures(setup.dsn) == before
    assert (first.done, first.counted, first.missing) == (True, len(before["counted"]), 0)
    assert [(topic.removed, topic.records > 0) for topic in first.topics] == [(0, True), (0, True)]
    assert spaces(setup.dsn) == {"figures"}


async def test_events_are_counted_before_during_and_after_the_switch(setup: Setup) -> None:
    """The worker counts the served generation all the time, and goes on with the new one."""
    setup.story.random_lives(150)
    events = setup.story.events
    async with setup.running():
        await append(setup.log, events[:200])
        await setup.counted()
        under_way = asyncio.create_task(rebuild(setup).run())
        for first in range(200, len(events), 20):
            await append(setup.log, events[first : first + 20])
            await asyncio.sleep(0.01)
        await under_way
        late = setup.story.order(setup.story.start_ms + 86_400_000)  # a day that the worker has not made yet
        await append(setup.log, setup.story.events[-1:])
        await setup.counted()
    assert late
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)
    with psycopg.connect(setup.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM figures.progress").fetchone() == (2,)


async def test_days_that_retention_removed_keep_their_figures(setup: Setup) -> None:
    """A record counts on the day of its event; the log's own times say from when on it is complete."""
    old = Story(random.Random(2), setup.story.start_ms - 2 * DAY_MS)
    old.random_lives(40)
    setup.story.random_lives(60)
    async with setup.running():
        await append(setup.log, old.events)
        await append(setup.log, setup.story.events)
        await setup.counted()
    before = stored_figures(setup.dsn)
    for topic in (TOPIC_ORDERS, TOPIC_PAYMENTS):
        for partition in range(16):
            await setup.redis.xtrim(stream_key(topic, partition), maxlen=2, approximate=False)
    lines: list[str] = []
    plan = await rebuild(setup).look()
    assert stored_figures(setup.dsn) == before
    assert spaces(setup.dsn) == {"figures"}
    report = await rebuild(setup, lines).run()
    # The records were taken today, so today is not complete: everything stays.
    tomorrow = date_of(int(setup.now * 1000) // DAY_MS + 1)
    assert plan.first_day == report.first_day == tomorrow
    assert report.kept_days >= 2
    removed = {topic.topic: topic.removed for topic in report.topics}
    assert removed[TOPIC_ORDERS] > 0
    assert f"{TOPIC_ORDERS}: retention has removed {removed[TOPIC_ORDERS]} records" in lines
    assert stored_figures(setup.dsn) == before


async def test_a_partition_that_retention_emptied_does_not_stop_a_rebuild(setup: Setup) -> None:
    """Retention by age on Kafka leaves no record of a quiet partition."""
    setup.story.random_lives(40)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
    before = stored_figures(setup.dsn)
    lengths = [await setup.redis.xlen(stream_key(TOPIC_ORDERS, partition)) for partition in range(16)]
    emptied = next(partition for partition, length in enumerate(lengths) if length)
    await setup.redis.xtrim(stream_key(TOPIC_ORDERS, emptied), maxlen=0, approximate=False)
    setup.now += 8 * DAY_MS / 1000  # a day more than the retention by age
    report = await rebuild(setup).run()
    assert (report.done, report.missing, report.kept_days) == (True, 0, 1)
    assert stored_figures(setup.dsn) == before
    assert spaces(setup.dsn) == {"figures"}
    async with setup.running():  # the worker goes on behind the removed records
        setup.story.order(int(setup.now * 1000))
        await append(setup.log, setup.story.events[-1:])
        await setup.counted()
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)


async def test_a_log_that_lacks_counted_events_changes_nothing_unless_forced(setup: Setup) -> None:
    setup.story.random_lives(30)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
        for partition in range(16):
            await setup.redis.delete(stream_key(TOPIC_ORDERS, partition), stream_key(TOPIC_PAYMENTS, partition))
        await append(setup.log, setup.story.events[:10])
        await setup.counted()
    before = stored_figures(setup.dsn)
    missing = len(before["counted"]) - 10
    with pytest.raises(RebuildError, match=f"lacks events that are counted .*{missing} of.*--force"):
        await rebuild(setup).run()
    assert stored_figures(setup.dsn) == before
    assert (await rebuild(setup).run(force=True)).missing == missing
    assert stored_seconds(setup.dsn) == by_second(setup.story.events[:10])


async def test_an_interrupted_rebuild_starts_anew(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.story.random_lives(40)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
    before = stored_figures(setup.dsn)

    async def die(_: Generations) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Generations, "switch", die)
        with pytest.raises(KeyboardInterrupt):
            await rebuild(setup).run()
    assert spaces(setup.dsn) == {"figures", "figures_next"}
    assert stored_figures(setup.dsn) == before
    await rebuild(setup).run()
    assert stored_figures(setup.dsn) == before
    assert spaces(setup.dsn) == {"figures"}


async def test_a_database_that_fails_after_the_switch_does_not_hide_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old generation stays until the next rebuild."""
    setup.story.random_lives(20)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
    before = stored_figures(setup.dsn)
    damage(setup.dsn)

    async def fail(_: Generations) -> None:
        raise psycopg.OperationalError("the connection is lost")

    lines: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(Generations, "remove_old", fail)
        report = await rebuild(setup, lines).run()
    assert report.done
    assert "the old figures were not removed (the connection is lost): the next rebuild removes them" in lines
    assert stored_figures(setup.dsn) == before
    assert spaces(setup.dsn) == {"figures", "figures_old"}
    await rebuild(setup).run()
    assert spaces(setup.dsn) == {"figures"}
    assert stored_figures(setup.dsn) == before


async def test_a_rebuild_that_finds_another_one_ends(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.story.random_lives(20)
    async with setup.running():
        await append(setup.log, setup.story.events[:-5])
        await setup.counted()
        missing = Generations.missing

        async def overtaken(generations: Generations, since: int) -> list[tuple[date, int]] | None:
            found = await missing(generations, since)
            await generations.begin(since)
            await append(setup.log, setup.story.events[-5:])
            await setup.counted()
            return found

        with monkeypatch.context() as patched:
            patched.setattr(Generations, "missing", overtaken)
            with pytest.raises(RebuildError, match="another rebuild of the figures has begun"):
                await rebuild(setup).run()
    assert stored_seconds(setup.dsn) == by_second(setup.story.events)


async def test_two_rebuilds_at_once_change_no_figure(setup: Setup) -> None:
    """As after the loss of the lock's connection: one may fail, and the figures stay those of the events."""
    setup.story.random_lives(60)
    async with setup.running():
        await append(setup.log, setup.story.events)
        await setup.counted()
        before = stored_figures(setup.dsn)
        ends = await asyncio.gather(*(rebuild(setup).run() for _ in range(2)), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            assert isinstance(end, (RebuildError, psycopg.Error)), end
    assert stored_figures(setup.dsn) == before
    await rebuild(setup).run()
    assert stored_figures(setup.dsn) == before
    assert spaces(setup.dsn) == {"figures"}


async def test_one_rebuild_at_a_time_and_none_of_an_empty_log(setup: Setup) -> None:
    with pytest.raises(RebuildError, match="no records"):
        await rebuild(setup).run()
    assert (await rebuild(setup).look()).first_day is None
    generations = Generations(setup.pool, carrier="redis")
    async with (
        await BoundedConnection.connect(setup.dsn, autocommit=True) as one,
        await BoundedConnection.connect(setup.dsn, autocommit=True) as other,
    ):
        await generations.lock(one)
        with pytest.raises(RebuildError, match="another rebuild"):
            await generations.lock(other)


def test_the_first_day_begins_after_the_last_removed_record() -> None:
    def topic(*, oldest: int | None, complete: int = 0) -> Retained:
        return Retained("t", 1, 0, oldest, complete)

    day = 20_000
    at = day * DAY_MS
    assert first_day([topic(oldest=None)], oldest_counted_day=0) is None
    assert first_day([topic(oldest=at + 5), topic(oldest=None)], oldest_counted_day=0) == day
    assert first_day([topic(oldest=at + 5, complete=at + 6)], oldest_counted_day=0) == day + 1
    assert first_day([topic(oldest=at, complete=at)], oldest_counted_day=0) == day
    assert first_day([topic(oldest=at)], oldest_counted_day=day + 3) == day + 3
    assert date_of(0) == date(1970, 1, 1)
