"""Changes against readers and against other changes, in one process and in two."""

from __future__ import annotations

import asyncio
import random

import pytest
import redis

from backoffice.caching import shared
from backoffice.caching.cache import Bounds
from devstack.servers import RedisServer
from domain.topology import cache_key
from tests.backoffice.caching.scene import PLACE, WAIT_S_MAX, Rows, Start, until


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
    assert await one.cache.get("1", rows.load("1")) == "new"  # at once in the process of the write
    await until(
        lambda: two.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") == 1
    )
    assert await two.cache.get("1", rows.load("1")) == "new"
    assert rows.loads == 3
    assert await two.cache.get("2", rows.load("2")) == "same"
    assert two.hits_and_misses[0] == 1  # the other row stayed cached


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
    assert await slow == "old"  # the read began before the change ended
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
    await until(
        lambda: two.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") == 1
    )
    assert await two.cache.get("1", rows.load("1")) == "new"


async def test_the_mark_of_a_crashed_writer_expires(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows({"1": "old"})
    assert await two.cache.get("1", rows.load("1")) == "old"
    writing = one.cache.changing("1")
    await writing.__aenter__()  # and no exit
    rows.rows["1"] = "new"
    await until(
        lambda: two.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") == 1
    )
    assert await two.cache.get("1", rows.load("1")) == "new"  # from the database, because of the mark
    assert 0 < redis_client.pttl(PLACE) <= shared.BLOCK_MS
    await writing.__aexit__(None, None, None)


async def test_a_change_does_not_end_another_change(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    async with one.cache.changing("1"):
        async with two.cache.changing("1"):
            mark = redis_client.get(PLACE)
        assert not redis_client.exists(PLACE)  # the second mark replaced the first, so its change empties the place
    async with two.cache.changing("1"), one.cache.changing("1"):
        await one.caches._shared.unblock(PLACE, b"")
        held = redis_client.get(PLACE)
        assert held is not None and held[:1] == shared.BLOCK and held != mark
    assert not redis_client.exists(PLACE)


async def test_a_failed_change_ends(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
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


async def test_a_lost_message_heals_by_time(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
    one = await start(redis_server.url, Bounds(process_ttl_s=0.2))
    rows = Rows({"1": "old"})
    assert await one.cache.get("1", rows.load("1")) == "old"
    redis_client.delete(PLACE)  # a change without a message
    rows.rows["1"] = "new"

    async def read() -> str | None:
        return await one.cache.get("1", rows.load("1"))

    async with asyncio.timeout(WAIT_S_MAX):
        while await read() != "new":  # noqa: ASYNC110 - the entry expires
            await asyncio.sleep(0.02)
    assert one.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="expired") == 1


async def test_a_broken_channel_empties_the_process_tier(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    one = await start(redis_server.url)
    rows = Rows({"1": "old"})
    assert await one.cache.get("1", rows.load("1")) == "old"
    assert redis_client.client_kill_filter(_type="pubsub") >= 1
    await until(lambda: one.count("flashsale_cache_entries", cache="row", tier="process") == 0)
    redis_client.delete(PLACE)
    rows.rows["1"] = "new"
    assert await one.cache.get("1", rows.load("1")) == "new"
    await until(lambda: one.caches.follows)


async def test_readers_never_see_a_row_go_back(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    """Two writers and eight readers on two processes: a read sees every change that ended before it in its process."""
    assert redis_client
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - to replay the run
    rng = random.Random(seed)
    processes = [await start(redis_server.url), await start(redis_server.url)]
    rows = Rows({"1": "0"})
    committed = [0, 0]  # the newest finished change of each process
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
            while await process.cache.get("1", load) != "120":  # noqa: ASYNC110 - a message must arrive
                await asyncio.sleep(0.01)
    assert redis_client.get(PLACE) == b"V\x03120"
