"""Leases on a real Redis: one holder, growing tokens, and an end by one's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from redis.exceptions import RedisError

from devstack.servers import RedisServer
from runtime.redis import renewals
from runtime.redis.client import redis_client as new_client
from runtime.redis.leases import Lease
from runtime.redis.scripts import Call, Script, run_many

WAIT_S = 10.0


@pytest.fixture
async def client(redis_client: redis.Redis, redis_server: RedisServer) -> AsyncIterator[Redis]:
    assert redis_client.dbsize() == 0
    made = new_client(redis_server.url)
    yield made
    await made.aclose()


def lease(client: Redis, *, life_ms: int = 5_000) -> Lease:
    return Lease(client, key="{x}:lease", fence_key="{x}:fence", life_ms=life_ms)


async def test_one_holds_it_and_tokens_grow(client: Redis) -> None:
    one, two = lease(client), lease(client)
    assert not one.held
    assert await one.acquire() is True
    assert (one.held, one.token) == (True, 1)
    assert await client.get("{x}:lease") == b"1"
    assert await two.acquire() is False
    assert not two.held
    await one.release()
    assert not one.held
    assert one.lost.is_set()
    assert await two.acquire() is True
    assert two.token == 2
    await one.release()  # not held: nothing happens
    assert await client.get("{x}:lease") == b"2"
    await two.release()
    assert await client.get("{x}:lease") is None


async def test_it_is_renewed_while_held_and_ends_when_its_holder_is_gone(client: Redis) -> None:
    one = lease(client, life_ms=1_500)
    assert await one.acquire()
    await asyncio.sleep(2)  # longer than its life
    assert one.held
    assert await lease(client).acquire() is False
    assert one._renewals._task is not None
    one._renewals._task.cancel()  # as if the process had died
    two = lease(client)
    async with asyncio.timeout(WAIT_S):
        while not await two.acquire():  # noqa: ASYNC110 - there is no event for another's lease
            await asyncio.sleep(0.05)
    assert two.token == 2
    assert not one.held
    assert one.lost.is_set()
    await one.release()
    assert await client.get("{x}:lease") == b"2"
    await two.release()


async def test_leases_of_one_client_are_renewed_in_one_round_trip(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def counted(redis: Redis, script: Script, calls: Sequence[Call], *, lost_in_place: bool) -> list[Any]:
        asked.append(len(calls))
        return await run_many(redis, script, calls, lost_in_place=lost_in_place)

    monkeypatch.setattr(renewals, "run_many", counted)
    several = [Lease(client, key=f"{{{n}}}:lease", fence_key=f"{{{n}}}:fence", life_ms=600) for n in range(5)]
    for each in several:
        assert await each.acquire()
    await client.set(several[2].key, "77")
    await asyncio.wait_for(several[2].lost.wait(), WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while len(asked) < 5:  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.05)
    assert [each.held for each in several] == [True, True, False, True, True]
    assert (asked[0], asked[-1]) == (5, 4)
    for each in several:
        await each.release()
        assert await client.get(each.key) == (b"77" if each is several[2] else None)


async def test_an_error_of_the_renewals_loses_every_lease(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> list[Any]:
        raise AssertionError("told to")

    monkeypatch.setattr(renewals, "run_many", broken)
    one, two = lease(client, life_ms=600), Lease(client, key="{y}:lease", fence_key="{y}:fence", life_ms=60_000)
    assert await two.acquire()
    assert await one.acquire(), "and the shorter life sets the pace"
    await asyncio.wait_for(asyncio.gather(one.lost.wait(), two.lost.wait()), WAIT_S)
    monkeypatch.undo()
    await client.delete(one.key, two.key)
    assert await two.acquire(), "and they can be taken again"
    assert await one.acquire()
    await asyncio.sleep(1)
    assert one.held
    await one.release()
    await two.release()


async def test_lost_is_set_when_somebody_else_has_it(client: Redis) -> None:
    one = lease(client, life_ms=600)
    assert await one.acquire()
    await client.set("{x}:lease", "77")
    await asyncio.wait_for(one.lost.wait(), WAIT_S)
    assert not one.held
    await one.release()
    assert await client.get("{x}:lease") == b"77"


async def test_a_pause_longer_than_its_life_ends_it_without_asking_redis(client: Redis) -> None:
    one = lease(client, life_ms=500)
    assert await one.acquire()
    time.sleep(0.6)  # noqa: ASYNC251 - the whole process stands still
    assert one.held is False
    assert one.lost.is_set()
    await one.release()


async def test_without_redis_it_is_lost_at_its_end_and_can_be_had_again(own_redis: RedisServer) -> None:
    client = new_client(own_redis.url)
    one = lease(client, life_ms=500)
    assert await one.acquire()
    own_redis.kill()
    await asyncio.wait_for(one.lost.wait(), WAIT_S)
    with pytest.raises((RedisError, OSError)):
        await one.acquire()
    own_redis.start()
    async with asyncio.timeout(WAIT_S):
        while not await one.acquire():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    assert one.token == 2
    own_redis.kill()
    await one.release()  # an unreachable Redis is no error: the lease runs out
    await client.aclose()


async def test_a_short_absence_of_redis_does_not_lose_it(own_redis: RedisServer) -> None:
    client = new_client(own_redis.url)
    one = lease(client, life_ms=6_000)
    assert await one.acquire()
    own_redis.kill()
    own_redis.start()
    await asyncio.sleep(2.5)  # beyond the first renewal
    assert one.held
    assert int(await client.pttl("{x}:lease")) > 3_600
    await one.release()
    await client.aclose()
