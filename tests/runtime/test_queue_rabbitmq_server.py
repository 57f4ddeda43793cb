"""The queue port and the server RabbitMQ: declared arguments, alarms, the consumer time-out, rights, TLS."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiormq
import pytest

from devstack.rabbitmq import MEMORY_MB_MAX, VHOST, RabbitServer
from domain.topology import QueueSpec, Topology
from runtime.queue import QueueUnavailable, open_queue
from runtime.queue.rabbitmq import RabbitQueue
from runtime.queue.rabbitmq_control import new_id
from runtime.queue.rabbitmq_topology import PRIVATE_PREFIX, control_exchange, delay_queue, delay_steps
from tests.fixtures.certificates import make_certificates
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


async def test_queues_have_the_arguments_that_lose_no_message(broker: RabbitBroker) -> None:
    """As the server has them: a delivery limit of 4.x would drop messages, at-most-once dead-lettering as well."""
    await broker.open().publish("q", b"x", message_id="1")
    listed = await asyncio.to_thread(
        broker.server.control, "list_queues", "--vhost", VHOST, "--formatter", "json", "name", "durable", "arguments"
    )
    queues = {row["name"]: row for row in json.loads(listed)}
    assert all(row["durable"] for name, row in queues.items() if not name.startswith(PRIVATE_PREFIX))
    assert _arguments(queues["q"]) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1_000_000_000,
        "x-consumer-timeout": 1_800_000,
    }
    for delay_ms in (20, 200, 60_000):
        assert _arguments(queues[delay_queue("q", delay_ms)]) == {
            "x-queue-type": "quorum",
            "x-delivery-limit": 1_000_000_000,
            "x-message-ttl": delay_ms,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "q",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-max-length": 20_000,
        }
    assert delay_queue("q", 0) not in queues


async def test_a_missing_control_exchange_leaves_no_queues_behind(
    broker: RabbitBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user that may not declare: each attempt to subscribe left a private queue on the broker."""
    queue = broker.open()
    await queue.publish("q", b"x", message_id="1")
    async with aiormq.connect(broker.server.url) as connection:
        channel = await connection.channel()
        await channel.exchange_delete(exchange=control_exchange("q"))
    attempts = 0

    async def refused() -> None:
        nonlocal attempts
        attempts += 1
        raise ConnectionError("no right to declare")

    monkeypatch.setattr(queue._consuming, "declare_again", refused)
    async with queue.consume("q", prefetch=1):
        await until(lambda: attempts >= 3)
        with pytest.raises(QueueUnavailable):
            await queue.barrier("q", wait_s=0)
        names = await asyncio.to_thread(broker.server.control, "-q", "list_queues", "--vhost", VHOST, "name")
        assert names.count(PRIVATE_PREFIX) <= 2  # one of the consumer's present attempt, one of the barrier's


def _arguments(row: dict[str, Any]) -> dict[str, Any]:
    return (
        {name: value for name, _, value in row["arguments"]} if isinstance(row["arguments"], list) else row["arguments"]
    )


async def test_a_queue_with_other_arguments_is_used_with_a_warning(
    broker: RabbitBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    async with aiormq.connect(broker.server.url) as connection:
        channel = await connection.channel()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 7}
        await channel.queue_declare("q", durable=True, arguments=arguments)
    queue = broker.open()
    await queue.publish("q", b"x", message_id="1")
    async with queue.consume("q", prefetch=1) as consumer:
        [delivery] = await receive(consumer, 1)
        await delivery.retry(20, REFUSED, "again")
        [delivery] = await receive(consumer, 1)
        await delivery.ack()
    assert await is_empty(queue)
    output = capsys.readouterr().out
    assert "queue has other arguments" in output and "x-delivery-limit" in output


async def test_an_alarm_blocks_publishes_and_retries_within_their_deadline_and_no_acknowledgement(
    broker: RabbitBroker,
) -> None:
    queue = RabbitQueue(broker.server.url, SPECS, length_max=1000, publish_s_max=0.5)
    broker.opened.append(queue)
    names = [str(number) for number in range(30)]
    for name in names:
        await publish(queue, b"x", message_id=name)
    async with queue.consume("q", prefetch=len(names)) as consumer:
        acked, *held = await receive(consumer, len(names))
        await asyncio.to_thread(broker.server.control, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            async with asyncio.timeout(WAIT_S):
                with pytest.raises(QueueUnavailable, match="no confirm within"):
                    await _publish_until_blocked(queue)
                ends = await asyncio.gather(*(one.retry(20, REFUSED, "x") for one in held), return_exceptions=True)
                assert {type(end) for end in ends} == {QueueUnavailable}
                await acked.ack()
                again = await receive(consumer, len(held))  # given back, by the connection that is not blocked
                assert {one.message_id for one in again} == set(names) - {acked.message_id}
                await asyncio.gather(*(one.ack() for one in again))
        finally:
            limit = f"{MEMORY_MB_MAX}MB"
            await asyncio.to_thread(broker.server.control, "set_vm_memory_high_watermark", "absolute", limit)
        await publish(queue, b"x", message_id="afterwards")
        async with asyncio.timeout(WAIT_S):
            while True:  # retries that the broker took after the alarm are duplicates
                [delivery] = await receive(consumer, 1)
                await delivery.ack()
                if delivery.message_id == "afterwards":
                    break


async def test_a_blocked_connection_is_closed_in_time(broker: RabbitBroker) -> None:
    """The client waited until the broker had read the rest, which ends with the alarm: the process did not stop."""
    queue = RabbitQueue(broker.server.url, SPECS, length_max=1000, publish_s_max=0.5)
    await publish(queue, b"x", message_id="1")
    await asyncio.to_thread(broker.server.control, "set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        large = (queue.publish("other", bytes(200_000), message_id="x") for _ in range(30))
        ends = await asyncio.gather(*large, return_exceptions=True)
        assert any(isinstance(end, QueueUnavailable) for end in ends)
        closing = asyncio.create_task(queue.close())
        _, late = await asyncio.wait([closing], timeout=WAIT_S)
        assert not late
    finally:
        limit = f"{MEMORY_MB_MAX}MB"
        await asyncio.to_thread(broker.server.control, "set_vm_memory_high_watermark", "absolute", limit)
        await queue.close()


async def _publish_until_blocked(queue: RabbitQueue) -> None:
    while True:  # the broker blocks a connection soon after the alarm
        await queue.publish("other", b"x", message_id="blocked")


async def test_a_consumer_goes_on_after_the_consumer_timeout(broker: RabbitBroker) -> None:
    """The broker closes the channel of a consumer that holds a message for too long: it comes again."""
    values = {"consumer_timeout": (300, 1_800_000), "channel_tick_interval": (100, 60_000)}

    async def put(index: int) -> None:
        expression = ", ".join(f"application:set_env(rabbit, {name}, {value[index]})" for name, value in values.items())
        await asyncio.to_thread(broker.server.control, "eval", f"{expression}.")

    queue = broker.open()
    await queue.publish("q", b"x", message_id="1")
    await put(0)
    try:
        async with queue.consume("q", prefetch=1) as consumer:
            [held] = await receive(consumer, 1)
            [again] = await receive(consumer, 1)
            assert (again.message_id, again.attempt) == ("1", 1)
            with pytest.raises(QueueUnavailable, match="the subscription was lost"):
                await held.ack()
            await again.ack()
    finally:
        await put(1)
    assert await is_empty(queue)


# Rights and TLS


async def test_a_user_with_least_rights_uses_queues_that_exist_and_declares_none(broker: RabbitBroker) -> None:
    await broker.open().publish("q", b"x", message_id="1")  # the deployment's user declares
    names = r"(q|other)(\.delay\.\d+|\.control)?"
    private = PRIVATE_PREFIX.replace(".", r"\.") + ".*"
    url = await asyncio.to_thread(
        broker.server.add_user,
        "worker",
        "pass/word",
        configure=f"^{private}$",
        write=f"^(amq\\.default|{names}|{private})$",
        read=f"^({names}|{private})$",
    )
    try:
        broker.url = url
        queue = broker.open()
        async with queue.consume("q", prefetch=1) as consumer:
            [delivery] = await receive(consumer, 1)
            await delivery.retry(20, REFUSED, "again")
            [delivery] = await receive(consumer, 1)
            await delivery.ack()
            assert await is_empty(queue)
        stranger = broker.open(specs=(*SPECS, QueueSpec("new", (20,))))
        with pytest.raises(QueueUnavailable, match="new"):
            await stranger.publish("q", b"x", message_id="2")
    finally:
        await asyncio.to_thread(broker.server.control, "delete_user", "worker")


def test_the_documented_rights_cover_every_queue_of_the_topology() -> None:
    """And nothing else may be configured than private queues."""
    text = (Path(__file__).parents[2] / "docs" / "queue.md").read_text(encoding="utf-8")
    _, _, text = text.partition("set_permissions --vhost flashsale worker")
    configure, write, read = re.findall(r"'(\^[^']+)'", text)[:3]
    specs = Topology(shards=12).queues
    queues = [name for spec in specs for name in (spec.name, *(delay_queue(spec.name, ms) for ms in delay_steps(spec)))]
    exchanges = [control_exchange(spec.name) for spec in specs]
    private = f"{PRIVATE_PREFIX}{new_id()}"
    for name in (*queues, *exchanges, private):
        assert re.search(write, name) and re.search(read, name), name
        assert bool(re.search(configure, name)) is (name == private), name
    assert re.search(write, "amq.default") and not re.search(read, "amq.default")
    for name in ("", "amq.gen-1", "other", "a.refunds"):
        assert not any(re.search(pattern, name) for pattern in (configure, write, read)), name


async def test_a_wrong_password_is_a_problem_and_not_shown(
    broker: RabbitBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.url = broker.server.url.replace(quote(broker.server.password, safe=""), "no-such-password")
    queue = broker.open()
    async with queue.consume("q", prefetch=1) as consumer:
        with pytest.raises(QueueUnavailable, match="ACCESS_REFUSED") as caught:
            await queue.publish("q", b"x", message_id="1")
        await until(lambda: consumer.problem)
        assert consumer.problem is not None and "ACCESS_REFUSED" in consumer.problem
    said = f"{caught.value!r} {consumer.problem} {capsys.readouterr()}"
    assert "no-such-password" not in said


async def test_amqps_verifies_the_brokers_certificate(
    rabbit_session: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder: Path = tmp_path_factory.mktemp("tls")
    certificates = make_certificates(folder)
    server = RabbitServer(
        folder / "node",
        epmd_port=rabbit_session.epmd_port,
        password="secret",
        certificates=certificates,
        name="tls",
    )
    server.start()
    try:
        address = f"amqps://flashsale:secret@127.0.0.1:{server.tls_port}/flashsale"
        queue = open_queue(f"{address}?cafile={quote(str(certificates[0]))}", SPECS)
        await queue.publish("q", b"x", message_id="1")
        assert (await queue.depth("q")).messages == 1
        await queue.close()
        stranger = open_queue(address, SPECS)
        with pytest.raises(QueueUnavailable) as caught:
            await stranger.publish("q", b"x", message_id="2")
        assert isinstance(caught.value.__cause__, ssl.SSLError | ConnectionError | OSError)
        await stranger.close()
        named = address.replace("127.0.0.1", "localhost")  # the certificate is for the number
        stranger = open_queue(f"{named}?cafile={quote(str(certificates[0]))}", SPECS)
        with pytest.raises(QueueUnavailable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            await stranger.publish("q", b"x", message_id="3")
        assert "localhost" in str(caught.value) and "secret" not in str(caught.value)
        await stranger.close()
    finally:
        server.stop()
