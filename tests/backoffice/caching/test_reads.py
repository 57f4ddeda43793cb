"""Reads through both tiers: one load for many readers, leases, failing loads, cancelled readers."""

from __future__ import annotations

import asyncio

import pytest
import redis

from backoffice.caching import shared
from backoffice.caching.cache import Bounds
from devstack.servers import RedisServer
from tests.backoffice.caching.scene import PLACE, Rows, Start, until


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


async def test_an_absent_row_is_cached_until_it_is_made(redis_server: RedisServer, start: Start) -> None:
    one, two = await start(redis_server.url), await start(redis_server.url)
    rows = Rows()
    for process in (one, two, one, two):
        assert await process.cache.get("1", rows.load("1")) is None
    assert rows.loads == 1
    async with two.cache.changing("1"):
        rows.rows["1"] = "made"
    await until(lambda: one.count("flashsale_cache_evictions_total", cache="row", tier="process", reason="changed") > 0)
    assert await one.cache.get("1", rows.load("1")) == "made"


async def test_a_hundred_readers_of_an_absent_row_load_it_once(redis_server: RedisServer, start: Start) -> None:
    processes = [await start(redis_server.url) for _ in range(4)]
    rows = Rows({"1": "a"})
    answers = await asyncio.gather(
        *(process.cache.get("1", rows.load("1")) for process in processes for _ in range(25))
    )
    assert answers == ["a"] * 100
    assert rows.loads == 1
    assert sum(process.count("flashsale_cache_loads_total", cache="row") for process in processes) == 1


async def test_the_wait_for_a_crashed_reader_is_bounded(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
    redis_client.set(PLACE, shared.LEASE + b"of a crashed process")
    one = await start(redis_server.url)
    rows = Rows({"1": "a"})
    assert await one.cache.get("1", rows.load("1")) == "a"
    assert redis_client.get(PLACE) == shared.LEASE + b"of a crashed process"  # the lease ends by its TTL


async def test_a_failed_load_fails_its_readers_and_no_later_ones(
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
