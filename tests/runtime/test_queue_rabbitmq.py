"""The queue port on RabbitMQ: faults of the way to the broker, its topology, its users, its own messages."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn

import aiormq
import pytest
from aiormq.abc import ChannelFrame, DeliveredMessage

from devstack.rabbitmq import RabbitServer
from domain.topology import QueueSpec
from faults.proxy import FaultProxy, Harm, Trap
from runtime.queue import Delivery, QueueFull, QueueUnavailable, rabbitmq_consumer
from runtime.queue.rabbitmq import RabbitQueue
from runtime.queue.rabbitmq_topology import control_exchange, delay_queue, place_of_retry
from tests.runtime.queue_brokers import (
    REFUSED,
    SPECS,
    WAIT_S,
    RabbitBroker,
    broker_of,
    is_empty,
    publish,
    receive,
    until,
)


@pytest.fixture
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[RabbitBroker]:
    """A RabbitMQ that is empty."""
    async with broker_of("rabbitmq", request, own=False) as made:
        assert isinstance(made, RabbitBroker)
        yield made


@pytest.fixture
def proxy(rabbit_session: RabbitServer) -> Iterator[FaultProxy]:
    """On the way to the broker."""
    with FaultProxy(rabbit_session.port) as made:
        yield made


def through(proxy: FaultProxy, broker: RabbitBroker) -> str:
    """The broker's address by way of the proxy."""
    return broker.server.url.replace(f":{broker.server.port}/", f":{proxy.port}/")


def _nested(depth: int) -> bytes:
    """Fields of a header table with this many tables in each other."""
    fields = b"\x01kV"
    for _ in range(depth):
        fields = b"\x01kF" + struct.pack(">I", len(fields)) + fields
    return fields


def _raw_publish(channel: int, queue: str, fields: bytes, body: bytes) -> bytes:
    """Frames of basic.publish with a header table of these bytes (AMQP 0-9-1, 4.2.3): no client would write them."""
    method = struct.pack(">HHHBB", 60, 40, 0, 0, len(queue)) + queue.encode() + b"\x00"
    header = struct.pack(">HHQHI", 60, 0, len(body), 1 << 13, len(fields)) + fields
    frames = enumerate((method, header, body), start=1)  # types 1, 2, 3
    return b"".join(struct.pack(">BHI", kind, channel, len(part)) + part + b"\xce" for kind, part in frames)


async def test_a_publish_whose_confirm_is_lost_is_unavailable_and_its_repeat_makes_no_loss(
    broker: RabbitBroker, proxy: FaultProxy
) -> None:
    broker.url = through(proxy, broker)
    queue = broker.open()
    await queue.publish("q", b"first", message_id="1")
    trap = proxy.set_trap(Trap(Harm.AFTER, (b"the second body",)))
    with pytest.raises(QueueUnavailable):
        await queue.publish("q", b"the second body", message_id="2")
    assert trap.sprung == 1
    await publish(queue, b"the second body", message_id="2")
    async with queue.consume("q", prefetch=10) as consumer:
        seen = await receive(consumer, 3)  # a duplicate: the broker had taken it
        assert sorted(delivery.message_id for delivery in seen) == ["1", "2", "2"]
        for delivery in seen:
            await delivery.ack()
    assert await is_empty(queue)


@pytest.mark.parametrize("harm", [Harm.BEFORE, Harm.TORN])
async def test_a_publish_that_never_arrived_is_unavailable(broker: RabbitBroker, proxy: FaultProxy, harm: Harm) -> None:
    broker.url = through(proxy, broker)
    queue = broker.open()
    await queue.publish("other", b"declares", message_id="0")
    proxy.set_trap(Trap(harm, (b"never there",)))
    with pytest.raises(QueueUnavailable):
        await queue.publish("q", b"never there", message_id="1")
    await publish(queue, b"there", message_id="2")
    async with queue.consume("q", prefetch=10) as consumer:
        [delivery] = await receive(consumer, 1)
        assert delivery.message_id == "2"
        await delivery.ack()
    assert await is_empty(queue)


async def test_cut_connections_lose_nothing(broker: RabbitBroker, proxy: FaultProxy) -> None:
    """Publishers repeat, consumers get again what they could not settle, and each message is settled at last."""
    broker.url = through(proxy, broker)
    queue = broker.open()
    wanted = {str(number) for number in range(120)}
    settled: set[str] = set()

    async def consume() -> None:
        async with queue.consume("q", prefetch=8) as consumer:
            while settled != wanted:
                for delivery in await consumer.next_batch(count_max=8, wait_s=0.2):
                    try:
                        if int(delivery.message_id) % 7 == 0 and delivery.attempt == 1:
                            await delivery.retry(20, REFUSED, "again")
                        else:
                            await delivery.ack()
                            settled.add(delivery.message_id)
                    except QueueUnavailable:
                        continue

    async def cut() -> None:
        while settled != wanted:
            await asyncio.sleep(0.15)
            await asyncio.to_thread(proxy.cut)
            await asyncio.sleep(0.5)

    async with asyncio.timeout(6 * WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(consume())
        group.create_task(cut())
        for name in sorted(wanted):
            await publish(queue, b"x", message_id=name)
    assert proxy.counted["cut"] >= 2


async def test_a_waiting_retry_has_a_bound_of_its_own_and_stays_with_its_consumer(broker: RabbitBroker) -> None:
    queue = RabbitQueue(broker.server.url, SPECS, length_max=1000, retrying_length_max=1)
    broker.opened.append(queue)
    for number in range(20):
        await queue.publish("q", b"x", message_id=str(number))
    async with queue.consume("q", prefetch=20) as consumer:
        held = await receive(consumer, 20)
        ends = [await _refused(delivery) for delivery in held]
        assert any(ends)
        waiting = (await queue.depth("q")).retrying
        assert 1 <= waiting < 20
        assert consumer.held_count == 20 - waiting


async def _refused(delivery: Delivery) -> bool:
    try:
        await delivery.retry(60_000, REFUSED, "again")
    except QueueFull:
        return True
    return False


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_many_retries_that_fail_at_once_come_all_again(broker: RabbitBroker, *, is_cancelled: bool) -> None:
    """The connection's buffer has room for ten frames: the eleventh raised QueueFull of asyncio, and stayed in hand."""
    queue = broker.open()
    names = [str(number) for number in range(30)]
    for name in names:
        await queue.publish("q", b"x", message_id=name)
    async with queue.consume("q", prefetch=len(names)) as consumer:
        held = await receive(consumer, len(names))
        queue._publish_s_max = 0.3
        queue._publishing.channel = _never  # type: ignore[method-assign]
        retries = [asyncio.create_task(delivery.retry(20, REFUSED, "again")) for delivery in held]
        if is_cancelled:
            await asyncio.sleep(0.05)
            for task in retries:
                task.cancel()
        ends = await asyncio.gather(*retries, return_exceptions=True)
        assert {type(end) for end in ends} == {asyncio.CancelledError if is_cancelled else QueueUnavailable}
        again = await receive(consumer, len(names))
        assert sorted(delivery.message_id for delivery in again) == sorted(names)
        for delivery in again:
            await delivery.ack()
        assert await is_empty(queue)


async def _never() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def test_a_full_queue_takes_all_that_waits_for_a_retry(broker: RabbitBroker) -> None:
    """With a bound of the broker's, returns were refused, and nothing showed them for minutes."""
    queue = broker.open(length_max=3)
    for number in range(3):
        await queue.publish("q", b"x", message_id=str(number))
    async with queue.consume("q", prefetch=3) as consumer:
        for delivery in await receive(consumer, 3):
            await delivery.retry(200, REFUSED, "again")
    for number in range(3, 6):
        await queue.publish("q", b"x", message_id=str(number))
    await until(lambda: _has_messages(queue, 6))
    with pytest.raises(QueueFull):
        await queue.publish("q", b"x", message_id="6")


async def _has_messages(queue: RabbitQueue, count: int) -> bool:
    return (await queue.depth("q")).messages == count


async def test_a_deleted_queue_is_declared_again_and_the_publisher_knows(broker: RabbitBroker) -> None:
    queue = broker.open()
    await queue.publish("q", b"lost with its queue", message_id="1")
    await broker.wipe()
    with pytest.raises(QueueUnavailable, match=r"is missing|NOT_FOUND"):
        await queue.publish("q", b"x", message_id="2")
    await queue.publish("q", b"x", message_id="2")
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)
        assert delivery.message_id == "2"
        await delivery.ack()


async def test_a_foreign_message_is_handed_out_as_a_problem(broker: RabbitBroker) -> None:
    queue = broker.open()
    await queue.publish("q", b"good", message_id="good")
    connection = await aiormq.connect(broker.server.url)
    channel = await connection.channel()
    for headers in ({}, {"m": "1"}, {"m": "1", "h": "[]", "a": 1, "f": 1, "k": "{}", "r": "[]"}):
        await channel.basic_publish(b"\xff", routing_key="q", properties=aiormq.spec.Basic.Properties(headers=headers))
    await connection.close()
    async with queue.consume("q", prefetch=10) as consumer:
        seen = await receive(consumer, 4)
        assert [delivery.problem is None for delivery in seen] == [True, False, False, False]
        for delivery in seen:
            await delivery.ack()
        assert consumer.problem is None


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"\x01\xffS\x00\x00\x00\x01x", id="a name that is not UTF-8"),
        pytest.param(b"\x01tT\x40" + bytes(7), id="a time after the year 9999"),
        pytest.param(_nested(3000), id="too many tables in tables"),
    ],
)
async def test_a_message_whose_headers_the_client_cannot_decode_stops_nothing(
    broker: RabbitBroker, fields: bytes
) -> None:
    """The client ended the connection at each delivery of it: no consumer of the process got another message."""
    queue = broker.open()
    await queue.publish("q", b"good", message_id="good")
    async with aiormq.connect(broker.server.url) as connection:
        channel = await connection.channel()
        await connection.write_queue.put(
            ChannelFrame(_raw_publish(channel.number, "q", fields, b"raw"), should_close=False)
        )
        await channel.queue_declare("q", passive=True)  # an answer to this comes after the publish
    async with queue.consume("q", prefetch=10) as consumer:
        seen = {delivery.problem is None: delivery for delivery in await receive(consumer, 2)}
        assert (seen[True].message_id, seen[True].body) == ("good", b"good")
        assert b"raw".hex().encode() in seen[False].body and fields[:40].hex().encode() in seen[False].body
        for delivery in seen.values():
            await delivery.ack()
        assert consumer.problem is None
    assert await is_empty(queue)


async def test_a_barrier_does_not_pass_while_a_consumer_is_silent(broker: RabbitBroker) -> None:
    """A consumer of another kind, or a process that hangs: it may hold messages, unseen."""
    queue = broker.open()
    await queue.publish("q", b"x", message_id="1")
    connection = await aiormq.connect(broker.server.url)
    channel = await connection.channel()
    taken = asyncio.Event()

    async def take(_: object) -> None:
        taken.set()

    await channel.basic_consume("q", take)
    await asyncio.wait_for(taken.wait(), WAIT_S)
    assert not await queue.barrier("q", wait_s=0)
    await connection.close()


def test_a_retry_waits_in_the_next_longer_step() -> None:
    spec = QueueSpec("q", (400, 0, 200))
    places = [place_of_retry(spec, delay_ms) for delay_ms in (0, 1, 200, 201, 400, 9_999)]
    assert places == ["q", *(delay_queue("q", step) for step in (200, 200, 400, 400, 400))]


async def test_a_barrier_passes_again_after_the_control_exchange_was_deleted(
    broker: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exchange came back without bindings: every consumer seemed to be silent."""
    monkeypatch.setattr(rabbitmq_consumer, "BIND_S", 0.1)
    queue = broker.open()
    async with queue.consume("q", prefetch=1):
        await until(lambda: queue.barrier("q", wait_s=0))
        connection = await aiormq.connect(broker.server.url)
        channel = await connection.channel()
        await channel.exchange_delete(exchange=control_exchange("q"))
        await channel.queue_delete(delay_queue("q", 200))
        await connection.close()

        async def passes() -> bool:
            try:
                return await queue.barrier("q", wait_s=0)
            except QueueUnavailable:
                return False

        await until(passes)


async def test_a_barrier_keeps_nothing_of_what_it_hears_between_calls(broker: RabbitBroker) -> None:
    """It kept a message of each consumer that subscribed, as long as no other call came."""
    queue = broker.open()
    async with queue.consume("q", prefetch=1):
        await until(lambda: queue.barrier("q", wait_s=0))
    [barrier] = queue._barriers["q"]
    heard = 0
    true_hear = barrier._hear

    async def hear(message: DeliveredMessage) -> None:
        nonlocal heard
        await true_hear(message)
        heard += 1

    assert barrier._channel is not None
    barrier._channel.consumers.update(dict.fromkeys(barrier._channel.consumers, hear))  # type: ignore[attr-defined]
    for _ in range(3):
        async with queue.consume("q", prefetch=1) as consumer:
            await until(consumer.subscribed.is_set)
    await until(lambda: heard >= 3)
    assert barrier._heard == []
