"""The contract of the queue port. Every adapter passes this suite; `open_broker` is the seam for the next one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import uuid4

import pytest
import redis
from redis.crc import key_slot

from devstack.servers import RedisServer
from runtime.queue import (
    Consumer,
    Delivery,
    NotReplayable,
    Queue,
    QueueFull,
    QueueUnavailable,
    UnknownQueueScheme,
    open_queue,
)
from runtime.queue.redis_streams import RedisStreamsQueue, dead_key, retry_key, stream_key, waiting_key

CLAIM_MS = 600
WAIT_S = 10.0


@dataclass
class Broker:
    """What the suite needs of an adapter: fresh queue objects on one broker."""

    open: Callable[..., Queue]


@pytest.fixture(params=["redis"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    assert request.param == "redis"
    request.getfixturevalue("redis_client")  # empties the server
    server: RedisServer = request.getfixturevalue("redis_server")
    opened: list[Queue] = []

    def opener(*, length_max: int = 1000, dead_letters_max: int = 1000) -> Queue:
        queue = RedisStreamsQueue(
            server.url, length_max=length_max, dead_letters_max=dead_letters_max, claim_ms=CLAIM_MS
        )
        opened.append(queue)
        return queue

    yield Broker(opener)
    for queue in opened:
        await queue.close()


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


async def test_what_was_published_is_delivered_with_all_its_parts(broker: Broker) -> None:
    queue = broker.open()
    body = bytes(range(256)) * 10
    await queue.publish("q", body, message_id="lane:1-2", headers={"kind": "orders", "ü": "ß"})
    async with queue.consume("q", prefetch=5) as consumer:
        [delivery] = await receive(consumer, 1)
        assert (delivery.body, delivery.message_id, delivery.attempt) == (body, "lane:1-2", 1)
        assert delivery.headers == {"kind": "orders", "ü": "ß"}
        assert delivery.history == ()
        assert delivery.first_seen_ms > 1_600_000_000_000
        assert (await queue.depth("q")).messages == 1
        await delivery.ack()
        assert (await queue.depth("q")).messages == 0
        assert consumer.problem is None


async def test_many_publishes_in_flight_all_arrive_once(broker: Broker) -> None:
    queue = broker.open()
    names = [f"m{i}" for i in range(300)]
    await asyncio.gather(*(queue.publish("q", name.encode(), message_id=name) for name in names))
    async with queue.consume("q", prefetch=40) as consumer:
        seen = []
        while len(seen) < len(names):
            batch = await consumer.next_batch(count_max=25, wait_s=WAIT_S)
            assert 0 < len(batch) <= 25
            seen += [delivery.message_id for delivery in batch]
            await asyncio.gather(*(delivery.ack() for delivery in batch))
        assert await consumer.next_batch(count_max=25, wait_s=0.05) == []
    assert sorted(seen) == sorted(names)


async def test_two_consumers_share_and_queues_are_apart(broker: Broker) -> None:
    queue = broker.open()
    for i in range(40):
        await queue.publish("q", b"%d" % i, message_id=str(i))
    await queue.publish("other", b"x", message_id="x")
    async with queue.consume("q", prefetch=3) as one, broker.open().consume("q", prefetch=3) as two:
        seen: list[bytes] = []
        by: list[int] = []

        async def work(number: int, consumer: object) -> None:
            async for delivery in consumer:  # type: ignore[attr-defined]
                seen.append(delivery.body)
                by.append(number)
                await delivery.ack()

        workers = [asyncio.create_task(work(1, one)), asyncio.create_task(work(2, two))]
        await until(lambda: len(seen) >= 40)
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    assert sorted(seen) == sorted(b"%d" % i for i in range(40))
    assert set(by) == {1, 2}
    assert (await queue.depth("other")).messages == 1


async def test_prefetch_bounds_what_is_held(broker: Broker) -> None:
    queue = broker.open()
    for i in range(10):
        await queue.publish("q", b"", message_id=str(i))
    async with queue.consume("q", prefetch=3) as consumer:
        held = await receive(consumer, 3)
        # A second consumer gets all the rest: the first one read no further than its prefetch.
        async with queue.consume("q", prefetch=10) as rest:
            others = await receive(rest, 7)
            assert len({d.message_id for d in held + others}) == 10
            assert await consumer.next_batch(count_max=1, wait_s=0.1) == []
        await held[0].ack()
        [fourth] = await consumer.next_batch(count_max=5, wait_s=WAIT_S)
        assert fourth.message_id in {d.message_id for d in others}


async def test_a_retry_comes_back_later_as_the_next_attempt(broker: Broker) -> None:
    queue = broker.open()
    await queue.publish("q", b"x", message_id="x", headers={"a": "b"})
    async with queue.consume("q", prefetch=5) as consumer:
        [first] = await receive(consumer, 1)
        await first.retry(200, "no such table")
        depth = await queue.depth("q")
        assert (depth.messages, depth.retrying, depth.dead) == (0, 1, 0)
        [second] = await receive(consumer, 1)
        assert (second.attempt, second.body, second.headers) == (2, b"x", {"a": "b"})
        assert second.first_seen_ms == first.first_seen_ms
        assert [failure.reason for failure in second.history] == ["no such table"]
        await second.retry(0, "y" * 5000)
        [third] = await receive(consumer, 1)
        assert third.attempt == 3
        assert third.history[1].reason == "y" * 500
        await third.ack()
    depth = await queue.depth("q")
    assert (depth.messages, depth.retrying, depth.dead) == (0, 0, 0)


async def test_history_is_bounded(broker: Broker) -> None:
    queue = broker.open()
    await queue.publish("q", b"x", message_id="x")
    async with queue.consume("q", prefetch=1) as consumer:
        for i in range(1, 24):
            [delivery] = await receive(consumer, 1)
            assert delivery.attempt == i
            await delivery.retry(0, f"failure {i}")
        [delivery] = await receive(consumer, 1)
        assert [failure.reason for failure in delivery.history] == [f"failure {i}" for i in range(4, 24)]


async def test_publishing_to_a_full_queue_is_refused_until_there_is_room(broker: Broker) -> None:
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
        await delivery.retry(60_000, "waiting messages count, too")
        with pytest.raises(QueueFull):
            await queue.publish("q", b"", message_id="3")
        [delivery] = await receive(consumer, 1)
        await delivery.ack()
        await queue.publish("q", b"", message_id="3")


async def test_a_dead_consumers_messages_are_delivered_again_without_spending_an_attempt(broker: Broker) -> None:
    queue = broker.open()
    for i in range(5):
        await queue.publish("q", b"", message_id=str(i))
    dead = queue.consume("q", prefetch=5)
    await dead.__aenter__()
    await receive(dead, 5)
    for task in dead._tasks:  # type: ignore[attr-defined]  # dies without giving back
        task.cancel()
    async with queue.consume("q", prefetch=2) as consumer:
        seen = set()
        while len(seen) < 5:
            for delivery in await consumer.next_batch(count_max=2, wait_s=WAIT_S):
                assert delivery.attempt == 1
                seen.add(delivery.message_id)
                await delivery.ack()
    assert (await queue.depth("q")).messages == 0


async def test_a_slow_but_living_consumer_keeps_what_it_holds(broker: Broker) -> None:
    queue = broker.open()
    await queue.publish("q", b"", message_id="slow")
    async with queue.consume("q", prefetch=2) as slow, queue.consume("q", prefetch=2) as other:
        deliveries = await slow.next_batch(count_max=1, wait_s=0.3) or await other.next_batch(count_max=1, wait_s=0.3)
        assert await other.next_batch(count_max=1, wait_s=3 * CLAIM_MS / 1000) == []
        assert await slow.next_batch(count_max=1, wait_s=0.01) == []
        await deliveries[0].ack()
    assert (await queue.depth("q")).messages == 0


async def test_leaving_gives_back_at_once(broker: Broker) -> None:
    queue = broker.open()
    for i in range(4):
        await queue.publish("q", b"", message_id=str(i))
    async with queue.consume("q", prefetch=4) as consumer:
        held = await receive(consumer, 2)
        await held[0].ack()
    with pytest.raises(StopAsyncIteration):
        await anext(consumer)
    async with queue.consume("q", prefetch=4) as consumer:
        again = await receive(consumer, 3)
        assert sorted(d.message_id for d in again) == sorted({"0", "1", "2", "3"} - {held[0].message_id})


async def test_settling_late_is_harmless(broker: Broker) -> None:
    queue = broker.open()
    await queue.publish("q", b"x", message_id="x")
    async with queue.consume("q", prefetch=1) as consumer:
        [late] = await receive(consumer, 1)
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)
        await delivery.ack()
        await late.ack()
        await late.retry(0, "late")
        await late.dead_letter("late")
    depth = await queue.depth("q")
    assert (depth.messages, depth.retrying, depth.dead) == (0, 0, 0)


async def test_dead_letters_keep_reason_and_history_and_can_be_replayed(broker: Broker) -> None:
    queue = broker.open()
    await queue.publish("q", b"body", message_id="m", headers={"h": "1"})
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)
        await delivery.retry(0, "first")
        [delivery] = await receive(consumer, 1)
        await delivery.dead_letter("second")
        assert (await queue.depth("q")).dead == 1
        [letter], cursor = await queue.dead_letters.list("q")
        assert cursor is None
        assert (letter.queue, letter.message_id, letter.body, letter.headers) == ("q", "m", b"body", {"h": "1"})
        assert (letter.reason, letter.attempt) == ("second", 2)
        assert [failure.reason for failure in letter.history] == ["first", "second"]
        assert letter.died_ms >= letter.first_seen_ms == delivery.first_seen_ms
        assert await queue.dead_letters.get(letter.id) == letter

        assert await queue.dead_letters.replay(letter.id) is True
        assert await queue.dead_letters.replay(letter.id) is False
        assert await queue.dead_letters.get(letter.id) is None
        [delivery] = await receive(consumer, 1)
        assert (delivery.attempt, delivery.body, len(delivery.history)) == (1, b"body", 2)
        await delivery.dead_letter("third")
        [letter], _ = await queue.dead_letters.list(None)
        assert await queue.dead_letters.delete(letter.id) is True
        assert await queue.dead_letters.delete(letter.id) is False
        assert (await queue.depth("q")).dead == 0


async def test_what_never_was_a_message_is_not_replayed_into_a_queue_that_nobody_reads(broker: Broker) -> None:
    queue = broker.open()
    await queue.dead_letters.add("p", b"?", message_id="m", reason="never a message", headers={"lane": "1"})
    [letter], _ = await queue.dead_letters.list("p")
    assert letter.attempt == 0
    with pytest.raises(NotReplayable, match="never was a message"):
        await queue.dead_letters.replay(letter.id)
    assert await queue.dead_letters.get(letter.id) == letter and (await queue.depth("p")).messages == 0
    assert await queue.dead_letters.delete(letter.id) is True
    assert await queue.dead_letters.replay(letter.id) is False


async def test_dead_letters_are_listed_in_pages_over_all_queues(broker: Broker) -> None:
    queue = broker.open()
    rng = random.Random(7)
    expected = []
    for name in ("a", "b.poison", "c"):
        for i in range(rng.randint(3, 6)):
            await queue.dead_letters.add(name, b"x", message_id=f"{name}{i}", reason="never a message")
            expected.append((name, f"{name}{i}"))
    for limit in (1, 2, 3, 5, 50):
        seen: list[tuple[str, str]] = []
        cursor = None
        while True:
            letters, cursor = await queue.dead_letters.list(None, cursor=cursor, limit=limit)
            assert len(letters) <= limit
            seen += [(letter.queue, letter.message_id) for letter in letters]
            if cursor is None:
                break
        assert seen == expected
    only, _ = await queue.dead_letters.list("c")
    assert [letter.message_id for letter in only] == [m for name, m in expected if name == "c"]
    assert await queue.dead_letters.list("empty") == ([], None)


@pytest.mark.parametrize("wrong", ["", "x", "q~", "q~1", "~1-1", "q~1-x", "q~-", "q~99999999999999999999-1", "q~１-1"])
async def test_ids_that_cannot_exist_are_not_found(broker: Broker, wrong: str) -> None:
    letters = broker.open().dead_letters
    assert await letters.get(wrong) is None
    assert await letters.replay(wrong) is False
    assert await letters.delete(wrong) is False
    with pytest.raises(ValueError, match="not the id"):
        await letters.list(None, cursor=wrong)


async def test_dead_letters_are_bounded_and_nothing_is_dropped_at_the_bound(broker: Broker) -> None:
    queue = broker.open(dead_letters_max=1)
    await queue.publish("q", b"", message_id="1")
    await queue.dead_letters.add("q", b"", message_id="0", reason="x")
    with pytest.raises(QueueFull):
        await queue.dead_letters.add("q", b"", message_id="0", reason="x")
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)
        with pytest.raises(QueueFull):
            await delivery.dead_letter("no room")
        [letter], _ = await queue.dead_letters.list("q")
        await queue.dead_letters.delete(letter.id)
        # It was not settled, so it comes again.
        [delivery] = await receive(consumer, 1)
        await delivery.dead_letter("room")
    depth = await queue.depth("q")
    assert (depth.messages, depth.dead) == (0, 1)


async def test_unreachable_broker_is_unavailable_and_consumers_go_on_afterwards(own_redis: RedisServer) -> None:
    queue = RedisStreamsQueue(own_redis.url, length_max=100, dead_letters_max=100, claim_ms=CLAIM_MS)
    await queue.publish("q", b"1", message_id="1")
    async with queue.consume("q", prefetch=5) as consumer:
        [delivery] = await receive(consumer, 1)
        own_redis.kill()
        for operation in (
            queue.publish("q", b"", message_id="2"),
            queue.depth("q"),
            delivery.ack(),
            queue.dead_letters.list(None),
        ):
            with pytest.raises(QueueUnavailable):
                await operation
        await until(lambda: consumer.problem)
        own_redis.start()
        # The acknowledgement failed, so the message comes again; what is published now comes, too.
        await queue.publish("q", b"2", message_id="2")
        again = await receive(consumer, 2)
        assert {d.message_id for d in again} == {"1", "2"}
        for delivery in again:
            await delivery.ack()
        await until(lambda: consumer.problem is None)
    assert (await queue.depth("q")).messages == 0
    await queue.close()


async def test_a_wiped_broker_is_used_again(broker: Broker, redis_client: redis.Redis) -> None:
    queue = broker.open()
    async with queue.consume("q", prefetch=5) as consumer:
        await queue.publish("q", b"1", message_id=str(uuid4()))
        await receive(consumer, 1)
        redis_client.flushall()
        await queue.publish("q", b"2", message_id="after")
        [delivery] = await receive(consumer, 1)
        assert delivery.message_id == "after"


@pytest.mark.parametrize("seed", range(3))
async def test_every_message_is_in_exactly_one_place_whatever_happens(broker: Broker, seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201 - replay with it
    rng = random.Random(seed)
    queue = broker.open()
    unsettled: set[str] = set()
    dead: set[str] = set()
    published = 0

    async def some_steps(consumer: Consumer) -> None:
        nonlocal published
        for _ in range(30):
            if rng.random() < 0.4:
                published += 1
                await queue.publish("q", b"x", message_id=str(published))
                unsettled.add(str(published))
            for delivery in await consumer.next_batch(count_max=rng.randint(1, 4), wait_s=0.01):
                assert delivery.message_id in unsettled
                fate = rng.choice(["ack", "ack", "retry", "dead", "drop"])
                if fate == "ack":
                    await delivery.ack()
                    unsettled.discard(delivery.message_id)
                elif fate == "retry":
                    await delivery.retry(rng.choice([0, 20]), "again")
                elif fate == "dead":
                    await delivery.dead_letter("enough")
                    unsettled.discard(delivery.message_id)
                    dead.add(delivery.message_id)
            if dead and rng.random() < 0.1:
                letters, _ = await queue.dead_letters.list("q", limit=200)
                letter = rng.choice(letters)
                assert await queue.dead_letters.replay(letter.id)
                dead.discard(letter.message_id)
                unsettled.add(letter.message_id)
            depth = await queue.depth("q")
            assert (depth.messages + depth.retrying, depth.dead) == (len(unsettled), len(dead))

    for _ in range(4):  # each consumer leaves with what it dropped
        async with queue.consume("q", prefetch=rng.randint(1, 5)) as consumer:
            await some_steps(consumer)
    async with queue.consume("q", prefetch=10) as consumer:
        while unsettled:
            [delivery] = await receive(consumer, 1)
            await delivery.ack()
            unsettled.remove(delivery.message_id)
    letters, _ = await queue.dead_letters.list("q", limit=200)
    assert {letter.message_id for letter in letters} == dead


def test_the_keys_of_a_queue_share_a_cluster_slot() -> None:
    keys = [make("orders.shard.0") for make in (stream_key, retry_key, waiting_key, dead_key)]
    assert len({key_slot(key.encode()) for key in keys}) == 1
    assert all(key.startswith("queue:") for key in keys)


def test_schemes_without_an_adapter_are_named() -> None:
    with pytest.raises(UnknownQueueScheme, match="amqp"):
        open_queue("amqp://localhost/")
    with pytest.raises(UnknownQueueScheme, match="without a scheme"):
        open_queue("localhost")
