"""A Redis whose clock jumps back by an hour: nothing waits for the clock to be there again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from devstack.servers import RedisServer
from domain.topology import Topology, order_queue
from faults.clock import BACK_VARIABLE, clock_shim
from runtime.queue import FailureKind
from runtime.queue.redis_streams import RedisStreamsQueue
from runtime.redis.client import redis_client as open_client
from runtime.redis.leases import Lease

TOPOLOGY = Topology()
QUEUE = order_queue(0)
AHEAD_S = 3600
WAIT_S = 20.0


class JumpingRedis(RedisServer):
    """Its clock is an hour ahead until `jump_back`."""

    shim: Path | None = None

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, "LD_PRELOAD": str(self.shim), BACK_VARIABLE: str(self.folder / "back")}

    def jump_back(self) -> None:
        """Show the right time from now on."""
        (self.folder / "back").touch()


@pytest.fixture
def jumping(tmp_path: Path) -> Iterator[JumpingRedis]:
    server = JumpingRedis(tmp_path / "redis")
    server.shim = clock_shim(tmp_path, AHEAD_S)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def client(jumping: JumpingRedis) -> AsyncIterator[Redis]:
    client = open_client(jumping.url)
    yield client
    await client.aclose()


@pytest.fixture
async def queue(jumping: JumpingRedis) -> AsyncIterator[RedisStreamsQueue]:
    queue = RedisStreamsQueue(jumping.url, TOPOLOGY.queues, length_max=100, claim_ms=400)
    yield queue
    await queue.close()


async def test_a_lease_of_a_dead_holder_ends_within_its_life(jumping: JumpingRedis, client: Redis) -> None:
    dead = Lease(client, key="{t}:lease", fence_key="{t}:fence", life_ms=500)
    assert await dead.acquire()
    await dead._renewals.remove(dead)  # as a killed process
    jumping.jump_back()
    assert await client.pttl("{t}:lease") > 3_000_000, "the clock went back: the lease would live for an hour"
    heir = Lease(client, key="{t}:lease", fence_key="{t}:fence", life_ms=500)
    async with asyncio.timeout(WAIT_S):
        while not await heir.acquire():  # noqa: ASYNC110 - looks at another process
            await asyncio.sleep(0.05)
    assert heir.token == dead.token + 1
    await heir.release()


@pytest.mark.parametrize("noticed", [True, False], ids=["seen by a living consumer", "before any consumer came"])
async def test_deliveries_of_a_dead_consumer_are_claimed(
    jumping: JumpingRedis, queue: RedisStreamsQueue, noticed: bool
) -> None:
    await queue.publish(QUEUE, b"one", message_id="1")
    async with queue.consume(QUEUE, prefetch=1) as dead:
        (delivery,) = await dead.next_batch(count_max=1, wait_s=WAIT_S)
        assert delivery.body == b"one"
        await dead._background.stop()  # as a killed process
        if noticed:
            async with queue.consume(QUEUE, prefetch=1) as living:
                assert await living.next_batch(count_max=1, wait_s=0.2) == []
                jumping.jump_back()
                (claimed,) = await living.next_batch(count_max=1, wait_s=WAIT_S)
        else:
            jumping.jump_back()
            async with queue.consume(QUEUE, prefetch=1) as later:
                (claimed,) = await later.next_batch(count_max=1, wait_s=WAIT_S)
    assert claimed.body == b"one"


async def test_a_retry_comes_back(jumping: JumpingRedis, queue: RedisStreamsQueue) -> None:
    await queue.publish(QUEUE, b"one", message_id="1")
    async with queue.consume(QUEUE, prefetch=1) as consumer:
        (delivery,) = await consumer.next_batch(count_max=1, wait_s=WAIT_S)
        await delivery.retry(5_000, FailureKind.NO_GRANT, "waits")
        jumping.jump_back()
        (again,) = await consumer.next_batch(count_max=1, wait_s=WAIT_S)
        assert again.body == b"one"
        await again.ack()
