"""Dead letters of messages that RabbitMQ carries: given up, listed, shown, replayed once, deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from devstack.rabbitmq import RabbitServer
from domain.topology import EMAIL_QUEUE, Topology
from runtime.dead_letters import DeadLetters, Replay, open_dead_letters, replay
from runtime.queue import Delivery, FailureKind, Queue, open_queue
from tests.fixtures.fix_databases import Databases
from tests.runtime.queue_brokers import receive
from workers.consuming import letter_of

MALFORMED = FailureKind.MALFORMED


@pytest.fixture
async def queue(rabbit_server: RabbitServer) -> AsyncIterator[Queue]:
    opened = open_queue(rabbit_server.url, Topology().queues)
    yield opened
    await opened.close()


@pytest.fixture
async def letters(databases: Databases) -> AsyncIterator[DeadLetters]:
    opened = open_dead_letters(SecretStr(databases.catalogue_dsn))
    yield opened
    await opened.close()


async def give_up(letters: DeadLetters, delivery: Delivery, reason: str) -> None:
    """As consumers do: add, then acknowledge."""
    await letters.add(letter_of(delivery, MALFORMED, reason))
    await delivery.ack()


async def test_a_letter_is_listed_shown_replayed_once_and_deleted(queue: Queue, letters: DeadLetters) -> None:
    await queue.publish(EMAIL_QUEUE, b"body", message_id="m", headers={"h": "1"})
    async with queue.consume(EMAIL_QUEUE, prefetch=1) as consumer:
        [first] = await receive(consumer, 1)
        await first.retry(1_000, FailureKind.DEFERRED_BY_RECEIVER, "later")
        [second] = await receive(consumer, 1)
        await give_up(letters, second, "no notice")
        [listed], _ = await letters.list(EMAIL_QUEUE)
        shown = await letters.get(listed.id)
        assert shown is not None and (shown.body, shown.headers, shown.attempts) == (b"body", {"h": "1"}, 2)
        assert [failure.reason for failure in shown.history] == ["later", "no notice"]

        assert await replay(letters, queue, listed.id) is Replay.DONE
        assert await replay(letters, queue, listed.id) is Replay.DONE_BEFORE
        [again] = await receive(consumer, 1)
        assert (again.body, again.headers, again.attempt) == (b"body", {"h": "1"}, 1)
        assert [failure.reason for failure in again.history] == ["later", "no notice"]
        assert await consumer.next_batch(count_max=1, wait_s=0.2) == []
        await give_up(letters, again, "no notice, once more")
        [left], _ = await letters.list(EMAIL_QUEUE)
        assert await letters.delete(left.id)
        assert not (await letters.list(EMAIL_QUEUE))[0]
        assert await queue.barrier(EMAIL_QUEUE, wait_s=0)
