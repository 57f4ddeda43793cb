"""The pub/sub loop on a real Redis: each new connection is reported, a killed or silent peer is given up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import redis
from redis.asyncio import Redis

from devstack.servers import RedisServer
from runtime.process import tasks
from runtime.redis.channel import Channel, ChannelLost
from runtime.redis.client import redis_client as open_client

NAME = "test:changed"
WAIT_S_MAX = 20.0
PING_S = 0.3


@dataclass
class Follower:
    """Records the calls of a channel in order: `opened`, `lost`, or a payload."""

    calls: list[str] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)  # raised by the next callbacks, the last one first
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.release.set()

    async def opened(self) -> None:
        await self.release.wait()
        if self.failures:
            raise self.failures.pop()
        self.calls.append("opened")

    async def received(self, payload: bytes) -> None:
        if self.failures:
            raise self.failures.pop()
        self.calls.append(payload.decode())

    def lost(self) -> None:
        self.calls.append("lost")


@asynccontextmanager
async def following(client: Redis, follower: Follower) -> AsyncIterator[Channel]:
    channel = Channel(
        client, NAME, opened=follower.opened, received=follower.received, lost=follower.lost,
        ping_s=PING_S, reconnect_s_max=0.1,
    )  # fmt: skip
    task = asyncio.create_task(channel.follow())
    try:
        yield channel
    finally:
        await tasks.cancel(task)


@pytest.fixture
async def client(own_redis: RedisServer) -> AsyncIterator[Redis]:
    client = open_client(own_redis.url, timeout_s=1.0)
    yield client
    await client.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - the other task signals nothing
            await asyncio.sleep(0.01)


def publisher(server: RedisServer) -> Callable[[str], Awaitable[None]]:
    async def publish(payload: str) -> None:
        with redis.Redis(port=server.port) as client:
            assert client.publish(NAME, payload) == 1

    return publish


async def test_messages_arrive_in_order_and_pings_keep_a_quiet_channel(own_redis: RedisServer, client: Redis) -> None:
    follower, publish = Follower(), publisher(own_redis)
    async with following(client, follower) as channel:
        await until(lambda: channel.is_open)
        await publish("1")
        await asyncio.sleep(4 * PING_S)
        await publish("2")
        await until(lambda: follower.calls == ["opened", "1", "2"])
    assert follower.calls == ["opened", "1", "2", "lost"] and not channel.is_open


async def test_messages_published_while_the_channel_opens_come_afterwards(
    own_redis: RedisServer, client: Redis
) -> None:
    follower, publish = Follower(), publisher(own_redis)
    follower.release.clear()
    async with following(client, follower) as channel:
        with redis.Redis(port=own_redis.port) as other:
            await until(lambda: dict(other.pubsub_numsub(NAME)) == {NAME.encode(): 1})
        await publish("early")
        assert not channel.is_open and follower.calls == []
        follower.release.set()
        await until(lambda: follower.calls == ["opened", "early"])


async def test_a_cut_connection_is_opened_again(own_redis: RedisServer, client: Redis) -> None:
    follower, publish = Follower(), publisher(own_redis)
    async with following(client, follower) as channel:
        await until(lambda: channel.is_open)
        with redis.Redis(port=own_redis.port) as other:
            assert other.client_kill_filter(_type="pubsub") == 1
        await until(lambda: follower.calls == ["opened", "lost", "opened"] and channel.is_open)
        await publish("after")
        await until(lambda: follower.calls[-1] == "after")


async def test_a_killed_server_is_found_again(own_redis: RedisServer, client: Redis) -> None:
    follower, publish = Follower(), publisher(own_redis)
    async with following(client, follower) as channel:
        await until(lambda: channel.is_open)
        own_redis.kill()
        await until(lambda: not channel.is_open)
        await asyncio.sleep(0.3)
        assert follower.calls == ["opened", "lost"], "told once, however many attempts fail"
        own_redis.start()
        await until(lambda: channel.is_open)
        await publish("after")
        await until(lambda: follower.calls == ["opened", "lost", "opened", "after"])


async def test_a_silent_peer_is_given_up(own_redis: RedisServer, client: Redis) -> None:
    follower = Follower()
    async with following(client, follower) as channel:
        await until(lambda: channel.is_open)
        assert own_redis.process is not None
        pid = own_redis.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await until(lambda: not channel.is_open)
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: channel.is_open)
        assert follower.calls == ["opened", "lost", "opened"]


async def test_a_failure_of_a_callback_opens_the_channel_anew(own_redis: RedisServer, client: Redis) -> None:
    follower, publish = Follower(failures=[TimeoutError(), ChannelLost("try again")]), publisher(own_redis)
    async with following(client, follower) as channel:
        await until(lambda: channel.is_open)
        assert follower.calls == ["opened"], "a channel that never opened is not lost"
        follower.failures.append(ChannelLost("message not applied"))
        await publish("1")
        await until(lambda: follower.calls == ["opened", "lost", "opened"] and channel.is_open)
        await publish("2")
        await until(lambda: follower.calls[-1] == "2")
        assert "1" not in follower.calls


async def test_a_programming_error_in_a_callback_ends_the_loop(client: Redis) -> None:
    follower = Follower(failures=[ZeroDivisionError()])
    channel = Channel(client, NAME, opened=follower.opened, received=follower.received, lost=follower.lost)
    with pytest.raises(ZeroDivisionError):
        await channel.follow()
    assert not channel.is_open and follower.calls == []
