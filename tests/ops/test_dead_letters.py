"""`flashsale dead-letters` on the queue of a stack that is up. The commands run in this process: they are many."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from domain.topology import POISON_OUTBOX
from ops.commands.dead_letters import app
from runtime.process.errors import OperatorError
from runtime.queue import Delivery, Queue, open_queue
from tests.fixtures.fix_stack import RunningStack

QUEUE = "test.given-up"  # that no worker reads


def run(stack: RunningStack, *arguments: str) -> str:
    """What a command prints; OperatorError as it raises it."""
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(stack.folder.path)])
    if done.exception is not None:
        raise done.exception
    return done.output


@asynccontextmanager
async def opened(stack: RunningStack) -> AsyncIterator[Queue]:
    queue = open_queue(stack.stack.queue_url)
    try:
        yield queue
    finally:
        await queue.close()


async def next_message(queue: Queue) -> tuple[Delivery, bytes]:
    async with queue.consume(QUEUE, prefetch=1) as consumer, asyncio.timeout(20):
        delivery = await anext(aiter(consumer))
        await delivery.dead_letter("nobody wants it")
        return delivery, delivery.body


def test_dead_letters_are_listed_shown_replayed_and_deleted(running_stack: RunningStack) -> None:
    async def give_up(*, publish: bool) -> None:
        async with opened(running_stack) as queue:
            if publish:
                await queue.publish(QUEUE, b"body", message_id="m", headers={"h": "1"})
            delivery, body = await next_message(queue)
            assert (delivery.attempt, body) == (1, b"body")

    asyncio.run(give_up(publish=True))
    (letter,) = json.loads(run(running_stack, "list", "--queue", QUEUE, "--json"))
    assert (letter["queue"], letter["message_id"], letter["reason"]) == (QUEUE, "m", "nobody wants it")
    assert letter["id"] in run(running_stack, "list")
    shown = json.loads(run(running_stack, "show", letter["id"], "--json"))
    assert base64.b64decode(shown["body_base64"]) == b"body" and shown["headers"] == {"h": "1"}
    assert "nobody wants it" in run(running_stack, "show", letter["id"])

    assert run(running_stack, "replay", letter["id"]) == f"{letter['id']} replayed.\n"
    for command in ("replay", "show", "delete"):
        with pytest.raises(OperatorError, match="there is no dead letter"):
            run(running_stack, command, letter["id"])
    asyncio.run(give_up(publish=False))  # it was in its queue again
    (again,) = json.loads(run(running_stack, "list", "--queue", QUEUE, "--json"))
    assert len(json.loads(run(running_stack, "show", again["id"], "--json"))["history"]) == 2
    assert json.loads(run(running_stack, "delete", again["id"], "--json")) == {"id": again["id"], "deleted": True}
    assert run(running_stack, "list", "--queue", QUEUE) == "There are no dead letters.\n"


def test_what_never_was_a_message_is_not_replayed(running_stack: RunningStack) -> None:
    async def plant() -> None:
        async with opened(running_stack) as queue:
            await queue.dead_letters.add(POISON_OUTBOX, b"?", message_id="row", reason="no event")

    asyncio.run(plant())
    (row,) = json.loads(run(running_stack, "list", "--queue", POISON_OUTBOX, "--json"))
    assert row["replayable"] is False
    with pytest.raises(OperatorError, match="never was a message"):
        run(running_stack, "replay", row["id"])
    run(running_stack, "delete", row["id"])


def test_many_dead_letters_are_listed_over_pages_up_to_the_limit(running_stack: RunningStack) -> None:
    async def plant() -> None:
        async with opened(running_stack) as queue:
            for number in range(205):
                await queue.dead_letters.add("test.many", b"", message_id=str(number), reason="x")

    asyncio.run(plant())
    for limit, expected in (("1000", 205), ("204", 204), ("3", 3)):
        found = json.loads(run(running_stack, "list", "--queue", "test.many", "--limit", limit, "--json"))
        assert [letter["message_id"] for letter in found] == [str(number) for number in range(expected)]
    for letter in json.loads(run(running_stack, "list", "--queue", "test.many", "--json")):
        asyncio.run(_delete(running_stack, letter["id"]))


async def _delete(stack: RunningStack, letter_id: str) -> None:
    async with opened(stack) as queue:
        assert await queue.dead_letters.delete(letter_id)
