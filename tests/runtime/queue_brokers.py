"""Carriers of the queue port in the hands of the contract suite, and helpers of its tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import pytest
import redis

from devstack.rabbitmq import RabbitServer
from devstack.servers import RedisServer
from domain.topology import QueueSpec
from runtime.queue import Consumer, Delivery, FailureKind, Queue, QueueUnavailable
from runtime.queue.rabbitmq import RabbitQueue
from runtime.queue.rabbitmq_consumer import RabbitConsumer
from runtime.queue.redis_streams import RedisStreamsQueue
from runtime.queue.redis_streams_consumer import StreamConsumer
from tests.fixtures.fix_rabbitmq import remove_queues

CLAIM_MS = 600
WAIT_S = 10.0
DELAYS_MS = (0, 20, 200, 60_000)  # every delay of these tests
SPECS = tuple(QueueSpec(name, retry_delays_ms=DELAYS_MS) for name in ("q", "other"))
REFUSED = FailureKind.REFUSED_BY_DATABASE


class Broker(Protocol):
    """A carrier in the hands of the suite."""

    def open(self, *, length_max: int = 1000, specs: tuple[QueueSpec, ...] = SPECS) -> Queue:
        """A fresh client. The suite closes it."""
        ...

    async def crash(self, consumer: Consumer) -> None:
        """End a consumer as a killed process would."""
        ...

    def kill(self) -> None:
        """Stop the server without warning."""
        ...

    def start(self) -> None:
        """Start the server again, with its durable data."""
        ...

    async def wipe(self) -> None:
        """Remove all data of the running server."""
        ...

    async def close(self) -> None:
        """Close everything that was opened."""
        ...


class RedisBroker:
    """Redis Streams on a test's server."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.opened: list[Queue] = []

    def open(self, *, length_max: int = 1000, specs: tuple[QueueSpec, ...] = SPECS) -> Queue:
        queue = RedisStreamsQueue(self.server.url, specs, length_max=length_max, claim_ms=CLAIM_MS)
        self.opened.append(queue)
        return queue

    async def crash(self, consumer: Consumer) -> None:
        assert isinstance(consumer, StreamConsumer)
        for watched in consumer._background._watched.values():
            assert watched.task is not None
            watched.task.cancel()

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    async def wipe(self) -> None:
        with redis.Redis(port=self.server.port) as client:
            client.flushall()

    async def close(self) -> None:
        for queue in self.opened:
            await queue.close()


# RabbitMQ 3.10 writes its list of quorum queues some seconds late: a crash right after a declaration loses the queue.
DECLARED_S = 4.0


class RabbitBroker:
    """RabbitMQ: the session's server."""

    def __init__(self, server: RabbitServer, url: str | None = None) -> None:
        self.server = server
        self.url = url or server.url
        self.opened: list[Queue] = []

    def open(self, *, length_max: int = 1000, specs: tuple[QueueSpec, ...] = SPECS) -> RabbitQueue:
        queue = RabbitQueue(self.url, specs, length_max=length_max)
        self.opened.append(queue)
        return queue

    async def crash(self, consumer: Consumer) -> None:
        """The broker sees the same of a killed process: the connection is gone."""
        assert isinstance(consumer, RabbitConsumer)
        await consumer._link.reset()
        await consumer._background.stop()

    def kill(self) -> None:
        time.sleep(DECLARED_S)
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    async def wipe(self) -> None:
        await remove_queues(self.server.url, SPECS)

    async def close(self) -> None:
        for queue in self.opened:
            await queue.close()


CARRIERS = ("redis", "rabbitmq")


@asynccontextmanager
async def broker_of(carrier: str, request: pytest.FixtureRequest, *, own: bool) -> AsyncIterator[Broker]:
    """A broker that is empty. `own`: one that the test may kill."""
    made: Broker
    if carrier == "redis":
        if own:
            made = RedisBroker(request.getfixturevalue("own_redis"))
        else:
            request.getfixturevalue("redis_client")  # empties the server
            made = RedisBroker(request.getfixturevalue("redis_server"))
    else:
        made = RabbitBroker(request.getfixturevalue("rabbit_session"))
        if made.server.process is None:
            made.start()
        await made.wipe()
    yield made
    await made.close()


async def is_empty(queue: Queue, name: str = "q") -> bool:
    """Whether every message is settled, by a barrier: the depth of a carrier may leave out messages in hand."""
    return await queue.barrier(name, wait_s=0)


async def receive(consumer: object, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, one after the other."""
    deliveries: list[Delivery] = []
    async with asyncio.timeout(WAIT_S):
        async for delivery in consumer:  # type: ignore[attr-defined]
            deliveries.append(delivery)
            if len(deliveries) == count:
                break
    return deliveries


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which may be asynchronous."""
    async with asyncio.timeout(WAIT_S):
        while True:
            value = condition()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.02)


async def publish(queue: Queue, body: bytes, *, message_id: str, name: str = "q") -> None:
    """Publish until it is confirmed, as every publisher does after a fault of the broker."""
    async with asyncio.timeout(2 * WAIT_S):
        while True:
            try:
                await queue.publish(name, body, message_id=message_id)
            except QueueUnavailable:
                await asyncio.sleep(0.1)
            else:
                return
