"""The two-tier cache on a real Redis: two processes' caches side by side, races, stampedes, Redis away, and bounds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import redis
from prometheus_client import CollectorRegistry

from backoffice.caching import caches, shared
from backoffice.caching.breaker import FAILURES_MAX, Breaker
from backoffice.caching.cache import Bounds, Cache, Codec
from backoffice.caching.caches import Caches
from backoffice.caching.frequency import COUNT_MAX, Frequency
from backoffice.caching.process import ProcessTier
from devstack.servers import RedisServer
from domain.topology import CACHE_CHANNEL, cache_key, parse_cache_key

PLACE = cache_key("row", "1")
WAIT_S_MAX = 20.0


def _decode(content: bytes) -> str:
    if content == b"broken":
        raise ValueError
    return content.decode()


CODEC: Codec[str] = Codec(str.encode, _decode, schema=3)


@dataclass
class Rows:
    """A database of one table, whose reads can be held up."""

    rows: dict[str, str] = field(default_factory=dict)
    loads: int = 0
    read: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def load(self, key: str) -> Callable[[], Awaitable[str | None]]:
        async def load() -> str | None:
            self.loads += 1
            await asyncio.sleep(0.01)
            return self.rows.get(key)

        return load

    def slow_load(self, key: str) -> Callable[[], Awaitable[str | None]]:
        """Reads the row, then stands still until told to go on: the slow reader."""

        async def load() -> str | None:
            self.loads += 1
            row = self.rows.get(key)
            self.read.set()
            await self.go_on.wait()
            return row

        return load


@dataclass
class Process:
    """One process's caches, of which `cache` is one."""

    caches: Caches
    cache: Cache[str]
    registry: CollectorRegistry

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def hits_and_misses(self) -> tuple[float, float, float, float]:
        """Of the process tier, then of Redis."""
        counts = [
            self.count(f"flashsale_cache_{what}_total", cache="row", tier=tier)
            for tier in ("process", "redis")
            for what in ("hits", "misses")
        ]
        return counts[0], counts[1], counts[2], counts[3]


Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(redis_client: redis.Redis) -> AsyncIterator[Start]:
    """Starts processes' caches; the session's Redis is empty."""
    assert redis_client
    async with AsyncExitStack() as stack:

        async def begin(url: str, bounds: Bounds | None = None, codec: Codec[str] = CODEC) -> Process:
            registry = CollectorRegistry()
            caches = Caches(url, registry)
            process = Process(caches, caches.add("row", codec, bounds or Bounds()), registry)
            await stack.enter_async_context(_following(caches))
            return process

        yield begin


@asynccontextmanager
async def _following(caches: Caches) -> AsyncIterator[None]:
    async with caches.running():
        await _until(lambda: caches.follows)
        yield


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - the condition is of a kind that tells nobody
            await asyncio.sleep(0.01)


async def test_a_row_is_loaded_once_for_both_tiers(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows({"1": "a"})
    assert [await one.cache.get("1", rows.load("1")) for _ in range(3)] == ["a"] * 3
    assert [await two.cache.get("1", rows.load("1")) for _ in range(3)] == ["a"] * 3
    assert rows.loads == 1
    assert one.hits_and_misses == (2, 1, 0, 1)
    assert two.hits_and_misses == (2, 1, 1, 0)
    assert redis_client.get(PLACE) == b"V\x03a"
    bounds = Bounds()
    ttl_ms = redis_client.pttl(PLACE)
    assert 0.7 * bounds.redis_ttl_s * 1000 < ttl_ms <= bounds.redis_ttl_s * 1000
    assert one.count("flashsale_cache_entries", cache="row", tier="process") == 1


async def test_what_is_absent_is_remembered_until_it_is_made(redis_server: RedisServer, start: Start) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows()
    for process in (one, two, one, two):
        assert await process.cache.get("1", rows.load("1")) is None
    assert rows.loads == 1
    async with two.cache.changing("1"):
        rows.rows["1"] = "made"
    await _until(
        lambda: one.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") > 0
    )
    assert await one.cache.get("1", rows.load("1")) == "made"


async def test_a_change_reaches_the_other_process(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows({"1": "old", "2": "same"})
    for process in (one, two):
        assert await process.cache.get("1", rows.load("1")) == "old"
        assert await process.cache.get("2", rows.load("2")) == "same"
    async with one.cache.changing("1"):
        rows.rows["1"] = "new"
    assert not redis_client.exists(PLACE)
    assert await one.cache.get("1", rows.load("1")) == "new"  # at once where it was written
    await _until(
        lambda: two.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") == 1
    )
    assert await two.cache.get("1", rows.load("1")) == "new"
    assert rows.loads == 3
    assert await two.cache.get("2", rows.load("2")) == "same"
    assert two.hits_and_misses[0] == 1  # the other row stayed


async def test_a_slow_reader_does_not_put_an_old_row_back(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows({"1": "old"})
    slow = asyncio.create_task(one.cache.get("1", rows.slow_load("1")))
    await rows.read.wait()
    async with two.cache.changing("1"):
        rows.rows["1"] = "new"
    rows.go_on.set()
    assert await slow == "old"  # it began before the change ended
    assert not redis_client.exists(PLACE)
    assert await one.cache.get("1", rows.load("1")) == "new"
    assert await two.cache.get("1", rows.load("1")) == "new"
    assert redis_client.get(PLACE) == b"V\x03new"


async def test_a_reader_does_not_join_a_read_from_before_a_change(redis_server: RedisServer, start: Start) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "old"})
    slow = asyncio.create_task(one.cache.get("1", rows.slow_load("1")))
    await rows.read.wait()
    async with one.cache.changing("1"):
        rows.rows["1"] = "new"
    assert await one.cache.get("1", rows.load("1")) == "new"
    rows.go_on.set()
    assert await slow == "old"
    assert await one.cache.get("1", rows.load("1")) == "new"


async def test_a_reader_in_the_middle_of_a_change_fills_nothing(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows({"1": "old"})
    async with one.cache.changing("1"):
        for process in (one, two):
            assert await process.cache.get("1", rows.load("1")) == "old"
        held = redis_client.get(PLACE)
        assert held is not None and held[:1] == shared.BLOCK
        rows.rows["1"] = "new"
    assert await one.cache.get("1", rows.load("1")) == "new"
    await _until(
        lambda: two.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") == 1
    )
    assert await two.cache.get("1", rows.load("1")) == "new"


async def test_a_writer_that_dies_leaves_a_mark_that_ends(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows({"1": "old"})
    assert await two.cache.get("1", rows.load("1")) == "old"
    writing = one.cache.changing("1")
    await writing.__aenter__()  # and never the end of it
    rows.rows["1"] = "new"
    await _until(
        lambda: two.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") == 1
    )
    assert await two.cache.get("1", rows.load("1")) == "new"  # past the mark, from the database
    assert 0 < redis_client.pttl(PLACE) <= shared.BLOCK_MS
    await writing.__aexit__(None, None, None)


async def test_a_change_does_not_end_another_change(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    async with one.cache.changing("1"):
        async with two.cache.changing("1"):
            mark = redis_client.get(PLACE)
        assert not redis_client.exists(PLACE)  # the second mark replaced the first: whose it is ends it
    async with two.cache.changing("1"), one.cache.changing("1"):
        await one.caches._shared.unblock(PLACE, b"")
        held = redis_client.get(PLACE)
        assert held is not None and held[:1] == shared.BLOCK and held != mark
    assert not redis_client.exists(PLACE)


async def test_a_change_that_fails_is_over(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})
    with pytest.raises(ZeroDivisionError):
        async with one.cache.changing("1"):
            raise ZeroDivisionError
    assert await one.cache.get("1", rows.load("1")) == "a"
    assert redis_client.get(PLACE) == b"V\x03a"


async def test_many_rows_change_together(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
    one = await start(redis_server.url)
    keys = [str(n) for n in range(40)]
    rows = Rows(dict.fromkeys(keys, "old"))
    for key in keys:
        await one.cache.get(key, rows.load(key))
    async with one.cache.changing(*keys):
        rows.rows = dict.fromkeys(keys, "new")
        assert {value[:1] for value in redis_client.mget([cache_key("row", key) for key in keys])} == {b"B"}
    assert [await one.cache.get(key, rows.load(key)) for key in keys] == ["new"] * 40


async def test_a_hundred_readers_of_an_absent_row_load_it_once(redis_server: RedisServer, start: Start) -> None:
    processes = [await start(redis_server.url) for _ in range(4)]
    rows = Rows({"1": "a"})
    answers = await asyncio.gather(
        *(process.cache.get("1", rows.load("1")) for process in processes for _ in range(25))
    )
    assert answers == ["a"] * 100
    assert rows.loads == 1
    assert sum(process.count("flashsale_cache_loads_total", cache="row") for process in processes) == 1


async def test_a_reader_that_dies_is_waited_for_a_bounded_time(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    redis_client.set(PLACE, shared.LEASE + b"of a process that is no more")
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})
    assert await one.cache.get("1", rows.load("1")) == "a"
    assert redis_client.get(PLACE) == shared.LEASE + b"of a process that is no more"  # its own end is its TTL's


async def test_a_load_that_fails_is_told_to_all_and_kept_from_nobody_after(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})

    async def fail() -> str | None:
        await asyncio.sleep(0.02)
        raise ZeroDivisionError

    outcomes = await asyncio.gather(*(one.cache.get("1", fail) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * 5
    assert not redis_client.exists(PLACE)
    assert await one.cache.get("1", rows.load("1")) == "a"


async def test_a_reader_that_is_cancelled_does_not_end_the_others(redis_server: RedisServer, start: Start) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})
    readers = [asyncio.create_task(one.cache.get("1", rows.slow_load("1"))) for _ in range(3)]
    await rows.read.wait()
    readers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await readers[0]
    rows.go_on.set()
    assert await asyncio.gather(*readers[1:]) == ["a", "a"]
    assert rows.loads == 1


async def test_a_lost_message_heals_by_time(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
    one = await start(redis_server.url, Bounds(process_ttl_s=0.2))
    rows = Rows({"1": "old"})
    assert await one.cache.get("1", rows.load("1")) == "old"
    redis_client.delete(PLACE)  # somebody changed it and told nobody
    rows.rows["1"] = "new"

    async def read() -> str | None:
        return await one.cache.get("1", rows.load("1"))

    async with asyncio.timeout(WAIT_S_MAX):
        while await read() != "new":  # noqa: ASYNC110 - ends by time
            await asyncio.sleep(0.02)
    assert one.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="expired") == 1


async def test_nothing_is_kept_over_a_channel_that_broke(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "old"})
    assert await one.cache.get("1", rows.load("1")) == "old"
    assert redis_client.client_kill_filter(_type="pubsub") >= 1
    await _until(lambda: one.count("flashsale_cache_entries", cache="row", tier="process") == 0)
    redis_client.delete(PLACE)
    rows.rows["1"] = "new"
    assert await one.cache.get("1", rows.load("1")) == "new"
    await _until(lambda: one.caches.follows)


async def test_redis_killed_is_no_error_and_changes_made_meanwhile_are_told(
    own_redis: RedisServer, start: Start
) -> None:
    one, two = await start(own_redis.url), await start(own_redis.url)
    rows = Rows({"1": "old", "2": "b"})
    for process in (one, two):
        assert await process.cache.get("1", rows.load("1")) == "old"
    own_redis.kill()  # it has the old row on its disk
    async with one.cache.changing("1"):
        rows.rows["1"] = "new"
    assert one.count("flashsale_cache_invalidations_owed") == 1
    for _ in range(20):
        assert await one.cache.get("1", rows.load("1")) == "new"
        assert await one.cache.get("2", rows.load("2")) == "b"
    await _until(lambda: not two.caches.follows)
    assert await two.cache.get("1", rows.load("1")) == "new"
    assert one.count("flashsale_cache_redis_failures_total") >= 1
    own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        assert client.get(PLACE) in (b"V\x03old", None)
        await _until(lambda: one.count("flashsale_cache_invalidations_owed") == 0)
        assert client.get(PLACE) != b"V\x03old"
    await _until(lambda: one.caches.follows and two.caches.follows)
    await _until(lambda: one.count("flashsale_cache_redis_away") == 0)
    loads = rows.loads
    async with asyncio.timeout(WAIT_S_MAX):  # Redis is used again: what one loads the other finds
        while two.count("flashsale_cache_hits_total", cache="row", tier="redis") == 1:
            two.cache.forget_all()
            assert await one.cache.get("1", rows.load("1")) == "new"
            assert await two.cache.get("1", rows.load("1")) == "new"
            await asyncio.sleep(0.02)
    assert rows.loads >= loads


async def test_what_redis_was_not_told_of_is_not_read_from_it(
    own_redis: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "TEND_S", 60.0)  # it is told no sooner than that
    one = await start(own_redis.url)
    rows = Rows({"1": "old"})
    assert await one.cache.get("1", rows.load("1")) == "old"
    own_redis.kill()
    async with one.cache.changing("1"):
        rows.rows["1"] = "new"
    own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        assert client.get(PLACE) == b"V\x03old"
        for _ in range(3):
            one.cache.forget_all()
            assert await one.cache.get("1", rows.load("1")) == "new"
        assert client.get(PLACE) == b"V\x03old"
        await one.caches._shared.pay()
        assert not client.exists(PLACE)


async def test_redis_paused_is_asked_a_few_times_and_then_left_alone(own_redis: RedisServer, start: Start) -> None:
    one = await start(own_redis.url)
    assert own_redis.process is not None
    rows = Rows({str(n): "a" for n in range(60)})
    own_redis.process.send_signal(19)  # SIGSTOP
    try:
        for n in range(60):
            assert await one.cache.get(str(n), rows.load(str(n))) == "a"
        assert one.count("flashsale_cache_redis_away") == 1
        # Each failure costs up to half a second, so sixty of them would be far too many.
        assert FAILURES_MAX <= one.count("flashsale_cache_redis_failures_total") < 30
    finally:
        own_redis.process.send_signal(18)  # SIGCONT
    async with asyncio.timeout(WAIT_S_MAX):
        while one.count("flashsale_cache_redis_away"):
            one.cache.forget_all()
            assert await one.cache.get("1", rows.load("1")) == "a"


async def test_what_is_owed_is_bounded(own_redis: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "OWED_MAX", 3)
    one = await start(own_redis.url)
    own_redis.kill()
    for n in range(5):
        async with one.cache.changing(str(n)):
            pass
    assert one.count("flashsale_cache_invalidations_owed") == 3
    assert one.count("flashsale_cache_invalidations_lost_total") == 2


async def test_a_redis_without_memory_is_no_error(own_redis: RedisServer, start: Start) -> None:
    one = await start(own_redis.url)
    rows = Rows({"1": "old"})
    assert await one.cache.get("1", rows.load("1")) == "old"
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", 1)
        async with one.cache.changing("1"):  # is told all the same
            rows.rows["1"] = "new"
        assert not client.exists(PLACE)
        assert await one.cache.get("1", rows.load("1")) == "new"
        assert not client.exists(PLACE)
    assert one.count("flashsale_cache_redis_away") == 0


async def test_a_redis_that_evicts_nothing_keeps_room_for_others(own_redis: RedisServer, start: Start) -> None:
    one = await start(own_redis.url)
    rows = Rows({"1": "a", "2": "b"})
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.3))
        await one.caches._shared.look_around()
        assert await one.cache.get("1", rows.load("1")) == "a"
        assert not client.exists(PLACE)
        client.config_set("maxmemory-policy", "allkeys-lfu")
        await one.caches._shared.look_around()
        assert await one.cache.get("2", rows.load("2")) == "b"
        assert client.exists(cache_key("row", "2"))


async def test_values_of_another_schema_and_broken_ones(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})
    redis_client.set(PLACE, b"V\x04of a newer process")
    assert await one.cache.get("1", rows.load("1")) == "a"
    assert redis_client.get(PLACE) == b"V\x04of a newer process"
    for broken in (b"V\x03broken", b"V\x03\xff"):
        one.cache.forget_all()
        redis_client.set(PLACE, broken)
        assert await one.cache.get("1", rows.load("1")) == "a"
        assert not redis_client.exists(PLACE)
    for odd in (b"", b"?", b"V"):
        one.cache.forget_all()
        redis_client.set(PLACE, odd)
        assert await one.cache.get("1", rows.load("1")) == "a"


async def test_values_that_are_too_big_are_not_kept(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one = await start(redis_server.url, Bounds(value_bytes_max=100))
    rows = Rows({"1": "x" * 99, "2": "x" * 98})
    for key in ("1", "2"):
        for _ in range(2):
            assert await one.cache.get(key, rows.load(key)) == rows.rows[key]
    assert rows.loads == 3  # the smaller one was kept
    assert not redis_client.exists(PLACE)


async def test_odd_messages_are_ignored(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})
    await one.cache.get("1", rows.load("1"))
    for odd in (
        b"",
        b"\xff",
        b"flashsale:cache:other:1",
        b"flashsale:cache:row",
        b"flashsale:cache:row:",
        b"x:y:row:1",
    ):
        redis_client.publish(CACHE_CHANNEL, odd)
    redis_client.publish(CACHE_CHANNEL, PLACE)
    await _until(lambda: one.count("flashsale_cache_entries", cache="row", tier="process") == 0)
    assert one.caches.follows
    assert parse_cache_key(cache_key("row", "a:b")) == ("row", "a:b")


async def test_readers_never_see_a_row_go_back(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    """Two writers and eight readers on two processes: whoever reads after a change ended in his own process sees it."""
    assert redis_client
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - replay with it
    rng = random.Random(seed)
    processes = [await start(redis_server.url), await start(redis_server.url)]
    rows = Rows({"1": "0"})
    committed = [0, 0]  # newest change that ended, by process
    lock = asyncio.Lock()

    async def load() -> str | None:
        row = rows.rows["1"]
        await asyncio.sleep(rng.random() * 0.004)
        return row

    async def write(place: int) -> None:
        for _ in range(60):
            async with processes[place].cache.changing("1"):
                async with lock:
                    number = int(rows.rows["1"]) + 1
                    rows.rows["1"] = str(number)
                await asyncio.sleep(rng.random() * 0.002)
            committed[place] = max(committed[place], number)
            await asyncio.sleep(rng.random() * 0.01)

    async def read(place: int, writers: asyncio.Future[list[None]]) -> None:
        while not writers.done():
            least = committed[place]
            row = await processes[place].cache.get("1", load)
            assert row is not None and int(row) >= least
            await asyncio.sleep(rng.random() * 0.002)

    writers = asyncio.gather(write(0), write(1))
    await asyncio.gather(writers, *(read(place, writers) for place in (0, 1) for _ in range(4)))
    assert rows.rows["1"] == "120"
    for process in processes:
        async with asyncio.timeout(WAIT_S_MAX):
            while await process.cache.get("1", load) != "120":  # noqa: ASYNC110 - a message is on its way
                await asyncio.sleep(0.01)
    assert redis_client.get(PLACE) == b"V\x03120"


def test_the_process_tier_is_bounded_and_keeps_what_is_popular() -> None:
    reasons: list[str] = []
    now = 0.0
    tier: ProcessTier[int] = ProcessTier(100, evicted=reasons.append, now=lambda: now)

    def read(n: int) -> bool:
        if tier.get(str(n)) is not None:
            return True
        tier.put(str(n), n, ttl_s=10.0)
        return False

    for _ in range(3):
        for n in range(90):
            read(n)
    for n in range(1000, 3000):  # a scan
        read(n)
        read(n % 90)
        assert len(tier) <= 100
    assert sum(read(n) for n in range(90)) >= 80  # least recently used first would keep none of most
    assert set(reasons) == {"size"}
    now = 10.0
    assert tier.get("1") is None
    assert reasons[-1] == "expired"
    assert not tier.drop("1")
    assert tier.drop("2")
    tier.clear()
    assert len(tier) == 0


@pytest.mark.parametrize("entries_max", [1, 2, 150])
def test_a_process_tier_of_any_size(entries_max: int) -> None:
    tier: ProcessTier[int] = ProcessTier(entries_max, evicted=lambda _: None)
    for n in range(1000):
        tier.put(str(n), n, ttl_s=10.0)
        assert len(tier) == min(n + 1, entries_max)
    entry = tier.get("999")
    assert entry is not None and entry.value == 999
    tier.put("999", None, ttl_s=10.0)
    assert len(tier) == entries_max
    entry = tier.get("999")
    assert entry is not None and entry.value is None


def test_frequencies_are_never_too_low_and_are_forgotten() -> None:
    frequency = Frequency(1000)
    for n in range(500):
        for _ in range(1 + n % 5):
            frequency.record(str(n))
    assert all(frequency.estimate(str(n)) >= 1 + n % 5 for n in range(500))
    exact = sum(frequency.estimate(str(n)) == 1 + n % 5 for n in range(500))
    assert exact > 450
    for _ in range(COUNT_MAX * 2):
        frequency.record("popular")
    assert frequency.estimate("popular") == COUNT_MAX
    for n in range(40_000):
        frequency.record(f"later {n}")
    assert frequency.estimate("popular") < COUNT_MAX


def test_a_breaker_opens_and_lets_one_at_a_time_try() -> None:
    now = 0.0
    breaker = Breaker(now=lambda: now)
    for _ in range(FAILURES_MAX - 1):
        assert breaker.admits()
        breaker.failed()
    assert breaker.admits() and not breaker.is_open
    breaker.succeeded()
    for _ in range(FAILURES_MAX):
        assert breaker.admits()
        breaker.failed()
    assert breaker.is_open and not breaker.admits()
    for _ in range(100):
        breaker.failed()  # who had asked before: the pause is no longer for that
    now = 0.1
    assert breaker.admits()
    assert not breaker.admits()  # one at a time
    breaker.abandoned()
    assert breaker.admits()
    breaker.failed()
    assert not breaker.admits()
    now = 10.0
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.admits() and not breaker.is_open
