"""The queue port on Redis Streams: what this carrier promises beyond the contract, and its own damages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from runtime.process import supervision
from runtime.process.supervision import TasksGivenUp
from runtime.queue import Delivery, QueueFull
from runtime.queue.redis_streams import RedisStreamsQueue, retry_key, returned_key, stream_key, waiting_key
from runtime.queue.redis_streams_consumer import StreamConsumer
from tests.runtime.queue_brokers import REFUSED, Broker, broker_of, is_empty, receive, until


@pytest.fixture
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """A Redis that is empty."""
    async with broker_of("redis", request, own=False) as made:
        yield made


async def test_messages_in_hand_and_waiting_retries_count_for_the_bound(broker: Broker) -> None:
    queue = broker.open(length_max=3)
    for i in range(3):
        await queue.publish("q", b"", message_id=str(i))
    with pytest.raises(QueueFull):
        await queue.publish("q", b"", message_id="3")
    await queue.publish("other", b"", message_id="0")
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)
        with pytest.raises(QueueFull):
            await queue.publish("q", b"", message_id="3")
        await delivery.retry(60_000, REFUSED, "waiting messages count, too")
        with pytest.raises(QueueFull):
            await queue.publish("q", b"", message_id="3")
        [delivery] = await receive(consumer, 1)
        await delivery.ack()
        await queue.publish("q", b"", message_id="3")


@pytest.mark.parametrize("seed", range(3))
async def test_every_message_is_in_exactly_one_place(broker: Broker, seed: int) -> None:
    """One script for each change of place: this carrier makes no duplicates, and its depth is exact."""
    print(f"seed {seed}")  # noqa: T201 - replay with it
    rng = random.Random(seed)
    queue = broker.open()
    unsettled: set[str] = set()
    async with queue.consume("q", prefetch=3) as consumer:
        for step in range(80):
            if rng.random() < 0.4:
                await queue.publish("q", b"x", message_id=str(step))
                unsettled.add(str(step))
            for delivery in await consumer.next_batch(count_max=rng.randint(1, 4), wait_s=0.01):
                assert delivery.message_id in unsettled
                if rng.random() < 0.6:
                    await delivery.ack()
                    unsettled.discard(delivery.message_id)
                else:
                    await delivery.retry(rng.choice([0, 20]), REFUSED, "again")
            depth = await queue.depth("q")
            assert depth.messages + depth.retrying == len(unsettled)
            assert await is_empty(queue) == (not unsettled)


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"m": "1", "b": "body"},
        {"m": "1", "b": "body", "h": "{", "a": "1", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "one", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "1", "k": "[]", "r": "[]"},
        {"m": b"\xff", "b": "body", "h": "{}", "a": "1", "f": "1", "k": "{}", "r": "[]"},
        # Values of the wrong type ended the process of whichever consumer looked at them first.
        {"m": "1", "b": "body", "h": "5", "a": "1", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "[]", "a": "1", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": '{"fence": 1}', "a": "1", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "0", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "1", "k": '{"malformed": "x"}', "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "1", "k": '{"malformed": -1}', "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "1", "k": "{}", "r": '[["x", "malformed", "y"]]'},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "1", "k": "{}", "r": '[[1, [], "y"]]'},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "1", "k": "{}", "r": '[[1, "malformed", 2]]'},
        # PostgreSQL has no such numbers, so that these were never dead letters either.
        {"m": "1", "b": "body", "h": "{}", "a": "99999999999", "f": "1", "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "9" * 30, "k": "{}", "r": "[]"},
        {"m": "1", "b": "body", "h": "{}", "a": "1", "f": "-1", "k": "{}", "r": "[]"},
    ],
)
async def test_an_entry_that_cannot_be_decoded_stops_nothing(
    broker: Broker, redis_client: redis.Redis, fields: dict[str, str]
) -> None:
    """One entry without our fields ended the task that reads the queue, without a sign."""
    queue = broker.open()
    redis_client.xadd(stream_key("q"), fields)  # type: ignore[arg-type]
    await queue.publish("q", b"good", message_id="good")
    async with queue.consume("q", prefetch=10) as consumer:
        first, second = await receive(consumer, 2)
        assert first.problem is not None and "undecodable" in first.problem
        assert (second.message_id, second.body, second.problem) == ("good", b"good", None)
        await first.ack()
        await second.ack()
        assert consumer.problem is None
        assert await is_empty(queue)


@pytest.mark.parametrize("damage", ["lost", "malformed", "short"])
async def test_a_waiting_retry_without_its_message_stops_no_other(
    broker: Broker, redis_client: redis.Redis, damage: str
) -> None:
    """No retry of the queue came back any more, and the barrier did not know of those that had come back before it."""
    queue = broker.open()
    for number in range(3):
        await queue.publish("q", b"body", message_id=str(number))
    async with queue.consume("q", prefetch=3) as consumer:
        for delivery in await receive(consumer, 3):
            await delivery.retry(300, REFUSED, "again")
        [_, damaged, _] = redis_client.zrange(retry_key("q"), 0, -1)
        if damage == "lost":
            redis_client.hdel(waiting_key("q"), damaged)
        else:
            redis_client.hset(waiting_key("q"), damaged, b"\xc1" if damage == "malformed" else b"\x92\x01\x02")
        received = await receive(consumer, 3)
        assert [delivery.problem is None for delivery in received] == [True, False, True]
        assert [received[0].message_id, received[2].message_id] == ["0", "2"]
        assert damaged.hex().encode() in received[1].body, "a dead letter names what was lost"
        for delivery in received:
            await delivery.ack()
    assert redis_client.hlen(waiting_key("q")) == 0
    assert await queue.barrier("q", wait_s=0)


async def test_a_consumer_whose_step_fails_goes_on_and_says_so(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = broker.open()
    broken = True
    true_delivery = RedisStreamsQueue.delivery

    def delivery(*args: Any) -> Delivery:
        if broken:
            raise RuntimeError("a defect")
        return true_delivery(*args)

    monkeypatch.setattr(RedisStreamsQueue, "delivery", delivery)
    await queue.publish("q", b"body", message_id="m")
    async with queue.consume("q", prefetch=1) as consumer:
        async with asyncio.timeout(10):
            while consumer.problem is None:
                assert await consumer.next_batch(count_max=1, wait_s=0.05) == []
        assert "a defect" in consumer.problem
        broken = False
        await queue.publish("q", b"next", message_id="n")
        [received] = await receive(consumer, 1)
        await received.ack()


async def test_a_task_of_a_consumer_that_works_does_not_hide_the_trouble_of_the_other(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each successful read said that all was well while the upkeep failed: readiness flapped, retries did not come."""
    queue = broker.open()
    broken = True
    keep = StreamConsumer._keep

    async def broken_keep(consumer: StreamConsumer) -> None:
        if broken:
            raise ResponseError("no upkeep")
        await keep(consumer)

    monkeypatch.setattr(StreamConsumer, "_keep", broken_keep)
    async with queue.consume("q", prefetch=10) as consumer:
        await until(lambda: consumer.problem)
        for number in range(5):
            await queue.publish("q", b"body", message_id=str(number))
            [received] = await receive(consumer, 1)
            await received.ack()
            assert consumer.problem is not None and "no upkeep" in consumer.problem
        broken = False
        await until(lambda: consumer.problem is None)


async def test_a_consumer_that_cannot_go_on_tells_its_caller(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in the loop around the steps: the caller leaves the consumer, and its own task is restarted."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(StreamConsumer, "_forever", broken)
    monkeypatch.setattr(supervision, "RESTARTS_MAX", 1)
    async with asyncio.timeout(20), broker.open().consume("q", prefetch=1) as consumer:
        with pytest.raises(TasksGivenUp):
            await anext(consumer)
        with pytest.raises(TasksGivenUp):
            await consumer.next_batch(count_max=1, wait_s=0)


async def test_a_message_without_room_for_its_retry_stays_with_its_consumer(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller repeats the call; without signs of life, another consumer would take the message meanwhile."""
    queue = broker.open()
    await queue.publish("q", b"body", message_id="1")
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)

        async def full(*_: object, **__: object) -> None:
            raise QueueFull("q")

        with monkeypatch.context() as patched:
            patched.setattr(RedisStreamsQueue, "retry", full)
            with pytest.raises(QueueFull):
                await delivery.retry(300, REFUSED, "again")
        assert isinstance(consumer, StreamConsumer)
        assert consumer.held_count == 1
        await delivery.retry(300, REFUSED, "again")
        assert consumer.held_count == 0


def test_the_keys_of_a_queue_share_a_cluster_slot() -> None:
    keys = [make("orders.shard.0") for make in (stream_key, retry_key, waiting_key, returned_key)]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert all(key.startswith("queue:") for key in keys)
