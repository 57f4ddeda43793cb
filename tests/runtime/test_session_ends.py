"""Ended sessions on a real Redis: notes reach every follower, are bounded, and are never forgotten early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import pytest
import redis
from redis.asyncio import Redis

from devstack.servers import RedisServer
from domain import topology
from runtime.process import tasks
from runtime.redis.client import redis_client as open_client
from runtime.tokens.keys import LEEWAY_S
from runtime.tokens.session_ends import EVERYBODY, KEPT_S, SessionEnds, publish

WAIT_S_MAX = 20.0
NOW_S = int(time.time())
NOW = 1000 * NOW_S  # a generation
BEFORE_S = NOW_S - 3600
AFTER_S = NOW_S + LEEWAY_S + 1  # surely after the end, also by a clock that is ahead


@pytest.fixture
async def client(redis_server: RedisServer, redis_client: redis.Redis) -> AsyncIterator[Redis]:  # noqa: ARG001
    client = open_client(redis_server.url)
    yield client
    await client.aclose()


@pytest.fixture
async def follow() -> AsyncIterator[Callable[[SessionEnds], Awaitable[None]]]:
    """Runs followers until the test ends; returns when a follower has read the set."""
    running: list[asyncio.Task[None]] = []

    async def start(ends: SessionEnds) -> None:
        running.append(asyncio.create_task(ends.run()))
        await until(lambda: ends.synced)

    yield start
    await tasks.cancel(*running)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - another task makes the condition true
            await asyncio.sleep(0.01)


Follow = Callable[[SessionEnds], Awaitable[None]]


async def test_notes_of_before_and_after_the_start_arrive(client: Redis, follow: Follow) -> None:
    early, late, other = uuid4(), uuid4(), uuid4()
    await publish(client, [(early, NOW)])
    ends = SessionEnds(client)
    assert not ends.loaded and not ends.is_ended(early.bytes, BEFORE_S)
    await follow(ends)
    await publish(client, [(late, NOW + 1)])
    await until(lambda: late.bytes in ends.table)
    assert ends.table == {early.bytes: NOW, late.bytes: NOW + 1}
    assert ends.is_ended(early.bytes, BEFORE_S) and not ends.is_ended(early.bytes, AFTER_S)
    assert not ends.is_ended(other.bytes, 0)


def test_a_generation_decides_and_not_the_time() -> None:
    """In the second of the end, and by a clock that is ahead by the leeway."""
    user, ends = uuid4(), SessionEnds(Redis())
    ends.take(user.bytes, NOW + 500)
    for issued_at_s in (BEFORE_S, NOW_S, NOW_S + LEEWAY_S, AFTER_S):
        assert ends.is_ended(user.bytes, issued_at_s, 0) and ends.is_ended(user.bytes, issued_at_s, NOW + 499)
        assert not ends.is_ended(user.bytes, issued_at_s, NOW + 500)
        # Without a generation: ended unless it is surely newer.
        assert ends.is_ended(user.bytes, issued_at_s) == (issued_at_s < AFTER_S)
    ends.take(EVERYBODY, NOW)
    assert ends.is_ended(user.bytes, NOW_S, NOW + 500) and not ends.is_ended(user.bytes, AFTER_S, NOW + 500)


async def test_an_older_note_changes_nothing(client: Redis, follow: Follow) -> None:
    user = uuid4()
    await publish(client, [(user, NOW), (user, NOW - 10)])
    ends = SessionEnds(client)
    await follow(ends)
    await publish(client, [(user, NOW - 5)])
    await publish(client, [(UUID(int=1), NOW)])
    await until(lambda: UUID(int=1).bytes in ends.table)
    assert ends.table[user.bytes] == NOW
    assert await client.zscore(topology.SESSION_ENDS_KEY, user.bytes) == NOW


async def test_user_ids_are_any_bytes(client: Redis, follow: Follow) -> None:
    """Ids with spaces, line ends and zeros must survive the format of a message."""
    users = [UUID(bytes=bytes([byte]) * 16) for byte in (0, 10, 13, 32, 255)]
    ends = SessionEnds(client)
    await follow(ends)
    await publish(client, [(user, NOW) for user in users])
    await until(lambda: len(ends.table) == len(users))
    assert set(ends.table) == {user.bytes for user in users}


async def test_malformed_messages_are_ignored(client: Redis, follow: Follow) -> None:
    await client.zadd(topology.SESSION_ENDS_KEY, {b"short": NOW, bytes(16): float("inf"), bytes(15) + b"a": -5.0})
    ends = SessionEnds(client)
    await follow(ends)
    for message in (b"", b" ", b"x " + bytes(16), b"-1 " + bytes(16), b"9" * 40 + b" " + bytes(16), b"1", b"1 short"):
        await client.publish(topology.SESSION_ENDS_CHANNEL, message)
    user = uuid4()
    await publish(client, [(user, NOW)])
    await until(lambda: user.bytes in ends.table)
    assert set(ends.table) == {user.bytes} and ends.synced


async def test_old_notes_are_forgotten(client: Redis, follow: Follow) -> None:
    old, kept = uuid4(), uuid4()
    long_ago = NOW - 1000 * (KEPT_S + 5)
    await client.zadd(topology.SESSION_ENDS_KEY, {old.bytes: long_ago})
    late = SessionEnds(client)
    await follow(late)
    assert late.table == {}, "a token of today has generation 0, since the shard has forgotten the end"
    await publish(client, [(kept, NOW)])
    assert await client.zrange(topology.SESSION_ENDS_KEY, 0, -1) == [kept.bytes]
    ends = SessionEnds(client)
    ends.take(old.bytes, long_ago)
    ends.take(kept.bytes, NOW)
    ends.tidy(time.time())
    assert ends.table == {kept.bytes: NOW}


async def test_at_the_bound_of_redis_the_oldest_become_one_for_all(client: Redis, follow: Follow) -> None:
    users = [uuid4() for _ in range(6)]
    ends = SessionEnds(client)
    await follow(ends)
    for place, user in enumerate(users):
        await publish(client, [(user, NOW + place)], notes_max=4)
    await until(lambda: ends.table.get(EVERYBODY) == NOW + 1)
    kept = await client.zrange(topology.SESSION_ENDS_KEY, 0, -1)
    assert kept == [EVERYBODY, *(user.bytes for user in users[2:])]
    assert ends.is_ended(uuid4().bytes, NOW_S, NOW) and not ends.is_ended(uuid4().bytes, AFTER_S, 0)
    # All users without a note of their own are covered.
    for place, user in enumerate(users):
        assert ends.is_ended(user.bytes, NOW_S, NOW + place - 1)


async def test_at_its_own_bound_a_follower_does_the_same() -> None:
    ends = SessionEnds(Redis(), notes_max=32)
    users = [uuid4() for _ in range(100)]
    for place, user in enumerate(users):
        ends.take(user.bytes, NOW + place)
        assert len(ends.table) <= 33
        assert all(ends.is_ended(earlier.bytes, NOW_S, NOW + i - 1) for i, earlier in enumerate(users[: place + 1]))
    assert not ends.is_ended(uuid4().bytes, AFTER_S, 0)


async def test_messages_that_were_missed_are_read_again(own_redis: RedisServer, follow: Follow) -> None:
    client = open_client(own_redis.url)
    ends = SessionEnds(client, reconnect_s_max=0.1)
    await follow(ends)
    before, meanwhile = uuid4(), uuid4()
    await publish(client, [(before, NOW)])
    await until(lambda: before.bytes in ends.table)
    own_redis.kill()
    await until(lambda: not ends.synced)
    assert ends.loaded and ends.is_ended(before.bytes, BEFORE_S)
    own_redis.start()
    with redis.Redis(port=own_redis.port) as other:
        # Lost by Redis, and noted while no process listened.
        other.zrem(topology.SESSION_ENDS_KEY, before.bytes)
        other.zadd(topology.SESSION_ENDS_KEY, {meanwhile.bytes: NOW})
    await until(lambda: ends.synced and meanwhile.bytes in ends.table)
    assert ends.is_ended(before.bytes, BEFORE_S)
    await client.aclose()
