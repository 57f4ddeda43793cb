"""Content of places: schemas, broken values, large values; malformed messages."""

from __future__ import annotations

import redis

from backoffice.caching.cache import Bounds
from devstack.servers import RedisServer
from domain.topology import CACHE_CHANNEL, cache_key, parse_cache_key
from tests.backoffice.caching.scene import PLACE, Rows, Start, until


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


async def test_large_values_are_not_cached(redis_server: RedisServer, redis_client: redis.Redis, start: Start) -> None:
    one = await start(redis_server.url, Bounds(value_bytes_max=100))
    rows = Rows({"1": "x" * 99, "2": "x" * 98})
    for key in ("1", "2"):
        for _ in range(2):
            assert await one.cache.get(key, rows.load(key)) == rows.rows[key]
    assert rows.loads == 3  # the smaller value was cached
    assert not redis_client.exists(PLACE)


async def test_malformed_messages_are_ignored(
    redis_server: RedisServer, redis_client: redis.Redis, start: Start
) -> None:
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
    await until(lambda: one.count("flashsale_cache_entries", cache="row", tier="process") == 0)
    assert one.caches.follows
    assert parse_cache_key(cache_key("row", "a:b")) == ("row", "a:b")
