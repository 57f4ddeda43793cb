"""The consumers' shared part on real servers: pauses through transient faults, settlements, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
import redis
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain.topology import QueueSpec
from runtime.dead_letters import DeadLetters, NewLetter, open_dead_letters
from runtime.process.service import Service
from runtime.process.settings import Settings
from runtime.queue import Delivery, FailureKind, Queue, QueueFull, QueueUnavailable, open_queue
from runtime.queue.port import Settlement, failure_now
from runtime.queue.redis_streams import stream_key
from tests.fixtures.fix_databases import Databases
from tests.workers.writing import eventually
from workers.consuming import TRANSIENT, Consuming, Stopping, letter_of

QUEUE = "q"
WAIT_S = 15.0
KIND = FailureKind.MALFORMED


@dataclass
class Setup:
    queue: Queue
    letters: DeadLetters
    databases: Databases
    service: Service = field(default_factory=lambda: Service("test", Settings()))
    reports: list[tuple[str, str | None]] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)

    def consuming(self, letters: DeadLetters | None = None) -> Consuming:
        return Consuming(
            self.service,
            letters or self.letters,
            report=lambda waits_for, problem: self.reports.append((waits_for, problem)),
            count_pause=self.pauses.append,
        )

    async def receive(self) -> tuple[Any, Delivery]:
        """A consumer, which the caller leaves, and its first delivery."""
        consumer = self.queue.consume(QUEUE, prefetch=1)
        await consumer.__aenter__()
        (delivery,) = await consumer.next_batch(count_max=1, wait_s=WAIT_S)
        return consumer, delivery

    async def paused(self) -> bool:
        return bool(self.pauses)

    def allow(self, *, connections: bool) -> None:
        """Let the catalogue accept connections or not."""
        server = self.databases.catalogue_dsn.rpartition("/")[0] + "/postgres"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE catalogue WITH ALLOW_CONNECTIONS {connections}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'catalogue'")


@pytest.fixture
async def setup(redis_client: redis.Redis, redis_server: RedisServer, databases: Databases) -> AsyncIterator[Setup]:
    assert redis_client.dbsize() == 0
    queue = open_queue(redis_server.url, (QueueSpec(QUEUE),))
    letters = open_dead_letters(SecretStr(databases.catalogue_dsn))
    yield Setup(queue, letters, databases)
    await letters.close()
    await queue.close()


def failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    """An operation that raises these errors and then succeeds."""
    left = list(errors)

    async def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return operation


async def test_a_transient_fault_pauses_and_the_operation_is_repeated(setup: Setup) -> None:
    operation = failing(psycopg.OperationalError("away"), OSError("cut"), QueueUnavailable("q", "no confirm"))
    assert await setup.consuming().through_faults("database", operation) == "done"
    assert setup.pauses == ["database"] * 3
    assert setup.reports == [
        ("database", "OperationalError"), ("database", "OSError"), ("database", "QueueUnavailable"), ("database", None),
    ]  # fmt: skip


async def test_other_errors_pass_through(setup: Setup) -> None:
    with pytest.raises(ZeroDivisionError):
        await setup.consuming().through_faults("database", failing(ZeroDivisionError()))
    with pytest.raises(QueueFull):
        await setup.consuming().through_faults("queue", failing(QueueFull("q")))
    assert setup.pauses == []


async def test_stopping_ends_a_pause(setup: Setup) -> None:
    async def never() -> None:
        raise TimeoutError

    working = asyncio.create_task(setup.consuming().through_faults("database", never))
    await asyncio.sleep(0.02)
    setup.service.stopping.set()
    with pytest.raises(Stopping):
        await asyncio.wait_for(working, WAIT_S)


async def test_a_crash_between_letter_and_acknowledgement_makes_no_second_letter(setup: Setup) -> None:
    await setup.queue.publish(QUEUE, b"poison", message_id="m", headers={"a": "b"})
    consumer, delivery = await setup.receive()
    letter_id = await setup.letters.add(letter_of(delivery, KIND, "not readable"))
    await consumer.__aexit__(None, None, None)  # dies without acknowledging
    consumer, again = await setup.receive()
    await setup.consuming().give_up(again, KIND, "not readable")
    await consumer.__aexit__(None, None, None)
    (letter,), _ = await setup.letters.list(None)
    assert (letter.id, letter.body, letter.headers, letter.attempts) == (letter_id, b"poison", {"a": "b"}, 1)
    assert [(failure.kind, failure.reason) for failure in letter.history] == [(KIND, "not readable")]
    assert letter.first_seen_ms == delivery.first_seen_ms
    assert await setup.queue.barrier(QUEUE, wait_s=0)


async def test_a_message_stays_with_its_consumer_while_the_catalogue_is_away(setup: Setup) -> None:
    await setup.queue.publish(QUEUE, b"poison", message_id="m")
    consumer, delivery = await setup.receive()
    setup.allow(connections=False)
    try:
        giving_up = asyncio.create_task(setup.consuming().give_up(delivery, KIND, "not readable"))
        await eventually(setup.paused)
        assert not await setup.queue.barrier(QUEUE, wait_s=0)
        assert setup.reports[-1] == ("dead letters", "DeadLettersUnavailable")
    finally:
        setup.allow(connections=True)
    await asyncio.wait_for(giving_up, WAIT_S)
    await consumer.__aexit__(None, None, None)
    assert await setup.letters.count() == {QUEUE: 1}
    assert await setup.queue.barrier(QUEUE, wait_s=0)


async def test_a_message_stays_with_its_consumer_while_the_dead_letters_are_full(setup: Setup) -> None:
    full = open_dead_letters(SecretStr(setup.databases.catalogue_dsn), letters_max=1)
    first = await full.add(NewLetter(queue=QUEUE, message_id="0", body=b"", kind=KIND, reason="planted"))
    await setup.queue.publish(QUEUE, b"poison", message_id="m")
    consumer, delivery = await setup.receive()
    giving_up = asyncio.create_task(setup.consuming(full).give_up(delivery, KIND, "not readable"))
    await eventually(setup.paused)
    assert not await setup.queue.barrier(QUEUE, wait_s=0)
    assert await full.count() == {QUEUE: 1}
    assert await full.delete(first)
    await asyncio.wait_for(giving_up, WAIT_S)
    await consumer.__aexit__(None, None, None)
    (letter,), _ = await full.list(QUEUE)
    assert letter.message_id == "m"
    assert await setup.queue.barrier(QUEUE, wait_s=0)
    await full.close()


@dataclass
class FailingSettlement:
    """Raises these errors, one at each call, and then settles."""

    errors: list[Exception]
    calls: list[str] = field(default_factory=list)

    async def ack(self, delivery: Delivery) -> None:  # noqa: ARG002
        self.calls.append("ack")
        if self.errors:
            raise self.errors.pop(0)

    async def retry(self, delivery: Delivery, *, delay_ms: int, failure: Any) -> None:  # noqa: ARG002
        self.calls.append(f"retry {delay_ms} {failure.kind}")
        if self.errors:
            raise self.errors.pop(0)


def delivery_with(settlement: Settlement) -> Delivery:
    return Delivery(
        queue=QUEUE, message_id="m", body=b"", headers={}, attempt=1, first_seen_ms=1, failures={}, history=(), tag="1",
        settlement=settlement,
    )  # fmt: skip


async def test_an_unconfirmed_settlement_is_left_to_the_redelivery(setup: Setup) -> None:
    settlement = FailingSettlement([QueueUnavailable(QUEUE, "no confirm")])
    await setup.consuming().ack(delivery_with(settlement))
    assert settlement.calls == ["ack"]


async def test_a_retry_waits_for_room(setup: Setup) -> None:
    """A carrier whose delay queues have a bound of their own may raise QueueFull."""
    settlement = FailingSettlement([QueueFull(QUEUE), QueueFull(QUEUE)])
    await setup.consuming().retry(delivery_with(settlement), 200, KIND, "again")
    assert settlement.calls == ["retry 200 malformed"] * 3
    assert setup.pauses == ["queue"] * 2


def test_transient_faults_are_of_servers_never_of_data() -> None:
    assert not issubclass(ValueError, TRANSIENT) and not issubclass(QueueFull, TRANSIENT)
    assert failure_now(KIND, "x" * 600).reason == "x" * 500


async def test_a_message_that_cannot_be_decoded_becomes_a_dead_letter(setup: Setup, redis_client: redis.Redis) -> None:
    redis_client.xadd(stream_key(QUEUE), {"x": "y"})
    await setup.queue.publish(QUEUE, b"good", message_id="good")
    async with setup.queue.consume(QUEUE, prefetch=2) as consumer:
        received: list[Delivery] = []
        while len(received) < 2:
            received += await consumer.next_batch(count_max=2, wait_s=WAIT_S)
        (good,) = await setup.consuming().readable(received)
        assert good.body == b"good"
        await good.ack()
    (letter,), _ = await setup.letters.list(QUEUE)
    assert (letter.kind, letter.replayable) == (FailureKind.MALFORMED, False)
    assert letter.body == b'{"78":"79"}'
    assert await setup.queue.barrier(QUEUE, wait_s=0)


async def test_an_operation_that_succeeds_does_not_hide_one_that_waits(setup: Setup) -> None:
    """Settlements run side by side: the first success made the writer ready while another stood still."""
    consuming = setup.consuming()
    release = asyncio.Event()

    async def waiting() -> str:
        if not release.is_set():
            raise QueueFull(QUEUE)
        return "done"

    operation = asyncio.create_task(consuming.through_faults("queue", waiting, transient=(QueueFull,)))
    await eventually(setup.paused)
    assert await consuming.through_faults("queue", failing()) == "done"
    assert setup.reports[-1] == ("queue", "QueueFull")
    release.set()
    async with asyncio.timeout(WAIT_S):
        await operation
    assert setup.reports[-1] == ("queue", None)
