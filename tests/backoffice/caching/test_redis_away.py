"""The cache Redis killed, paused, or without memory: never an error, and no old row afterwards."""

from __future__ import annotations

import asyncio

import pytest
import redis

from backoffice.caching import caches, shared
from backoffice.caching.breaker import FAILURES_MAX
from devstack.servers import RedisServer
from domain.topology import cache_key
from tests.backoffice.caching.scene import PLACE, WAIT_S_MAX, Rows, Start, until


async def test_redis_killed_is_no_error_and_changes_are_sent_later(own_redis: RedisServer, start: Start) -> None:
    one, two = await start(own_redis.url), await start(own_redis.url)
    rows = Rows({"1": "old", "2": "b"})
    for process in (one, two):
        assert await process.cache.get("1", rows.load("1")) == "old"
    own_redis.kill()  # the old row is on its disk
    async with one.cache.changing("1"):
        rows.rows["1"] = "new"
    assert one.count("flashsale_cache_invalidations_owed") == 1
    for _ in range(20):
        assert await one.cache.get("1", rows.load("1")) == "new"
        assert await one.cache.get("2", rows.load("2")) == "b"
    await until(lambda: not two.caches.follows)
    assert await two.cache.get("1", rows.load("1")) == "new"
    assert one.count("flashsale_cache_redis_failures_total") >= 1
    own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        assert client.get(PLACE) in (b"V\x03old", None)
        await until(lambda: one.count("flashsale_cache_invalidations_owed") == 0)
        assert client.get(PLACE) != b"V\x03old"
    await until(lambda: one.caches.follows and two.caches.follows)
    await until(lambda: one.count("flashsale_cache_redis_away") == 0)
    loads = rows.loads
    async with asyncio.timeout(WAIT_S_MAX):  # both use Redis again: one process finds the row that the other one loaded
        while two.count("flashsale_cache_hits_total", cache="row", tier="redis") == 1:
            two.cache.forget_all()
            assert await one.cache.get("1", rows.load("1")) == "new"
            assert await two.cache.get("1", rows.load("1")) == "new"
            await asyncio.sleep(0.02)
    assert rows.loads >= loads


async def test_places_with_an_owed_change_are_not_read_from_redis(
    own_redis: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "TEND_S", 60.0)  # no change is sent earlier
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


async def test_a_paused_redis_opens_the_breaker(own_redis: RedisServer, start: Start) -> None:
    one = await start(own_redis.url)
    assert own_redis.process is not None
    rows = Rows({str(n): "a" for n in range(60)})
    own_redis.process.send_signal(19)  # SIGSTOP
    try:
        for n in range(60):
            assert await one.cache.get(str(n), rows.load(str(n))) == "a"
        assert one.count("flashsale_cache_redis_away") == 1
        # Each failure takes up to half a second; without the breaker there would be sixty.
        assert FAILURES_MAX <= one.count("flashsale_cache_redis_failures_total") < 30
    finally:
        own_redis.process.send_signal(18)  # SIGCONT
    async with asyncio.timeout(WAIT_S_MAX):
        while one.count("flashsale_cache_redis_away"):
            one.cache.forget_all()
            assert await one.cache.get("1", rows.load("1")) == "a"


async def test_owed_changes_are_bounded(own_redis: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
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
        async with one.cache.changing("1"):  # reaches Redis nevertheless
            rows.rows["1"] = "new"
        assert not client.exists(PLACE)
        assert await one.cache.get("1", rows.load("1")) == "new"
        assert not client.exists(PLACE)
    assert one.count("flashsale_cache_redis_away") == 0


async def test_a_redis_without_eviction_keeps_room_for_others(own_redis: RedisServer, start: Start) -> None:
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
