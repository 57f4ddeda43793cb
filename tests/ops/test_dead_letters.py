"""`flashsale dead-letters` on a stack that is up. The commands run in this process, because there are many of them."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from domain.topology import EMAIL_QUEUE, POISON_OUTBOX, Topology
from ops.commands.dead_letters import app
from runtime.dead_letters import DeadLetters, NewLetter, open_dead_letters
from runtime.process.errors import OperatorError
from runtime.queue import Failure, FailureKind, Queue, open_queue
from tests.fixtures.fix_databases import audited
from tests.fixtures.fix_stack import RunningStack

WAIT_S = 20.0
OF_NONE = "test.given-up"  # the name of no queue


def run(stack: RunningStack, *arguments: str) -> str:
    """The output of a command; raises its OperatorError."""
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(stack.folder.path)])
    if done.exception is not None:
        raise done.exception
    return done.output


@asynccontextmanager
async def opened(stack: RunningStack) -> AsyncIterator[tuple[DeadLetters, Queue]]:
    letters = open_dead_letters(SecretStr(stack.stack.catalogue_dsn))
    queue = open_queue(stack.stack.queue_url, Topology().queues)
    try:
        yield letters, queue
    finally:
        await letters.close()
        await queue.close()


def plant(stack: RunningStack, *letters: NewLetter) -> None:
    async def add() -> None:
        async with opened(stack) as (port, _):
            for letter in letters:
                await port.add(letter)

    asyncio.run(add())


def letter(number: int, **members: Any) -> NewLetter:
    values = {"queue": OF_NONE, "body": b"", "kind": FailureKind.MALFORMED, "reason": "x", **members}
    return NewLetter(message_id=str(number), **values)


def test_a_queue_that_does_not_exist_is_named(running_stack: RunningStack) -> None:
    with pytest.raises(OperatorError, match=rf"there is no queue nosuch: use one of .*{EMAIL_QUEUE}"):
        run(running_stack, "list", "--queue", "nosuch")


def test_dead_letters_are_listed_shown_replayed_and_deleted(running_stack: RunningStack) -> None:
    """A notice that no sender can read dies again when it is replayed."""
    history = (Failure(1_700_000_000_000, FailureKind.MALFORMED, "no notice"),)
    values = {"queue": EMAIL_QUEUE, "body": b"body", "headers": {"h": "1"}, "reason": "no notice", "attempts": 1}
    plant(running_stack, letter(7, **values, history=history))
    (first,) = json.loads(run(running_stack, "list", "--queue", EMAIL_QUEUE, "--json"))
    assert (first["queue"], first["message_id"], first["kind"]) == (EMAIL_QUEUE, "7", "malformed")
    assert (first["reason"], first["attempt"], first["replayable"]) == ("no notice", 1, True)
    assert first["id"] in run(running_stack, "list")
    shown = json.loads(run(running_stack, "show", first["id"], "--json"))
    assert base64.b64decode(shown["body_base64"]) == b"body" and shown["headers"] == {"h": "1"}
    assert "malformed: no notice" in run(running_stack, "show", first["id"])

    assert run(running_stack, "replay", first["id"]) == f"{first['id']} replayed.\n"
    assert audited(running_stack.stack.catalogue_dsn, f"dead_letter:{first['id']}") == [("dead_letter.replay", "done")]
    for command in ("replay", "show", "delete"):
        with pytest.raises(OperatorError, match="there is no dead letter"):
            run(running_stack, command, first["id"])
    deadline = time.monotonic() + WAIT_S
    while not (found := json.loads(run(running_stack, "list", "--queue", EMAIL_QUEUE, "--json"))):
        assert time.monotonic() < deadline, "the replayed message is still in its queue"
        time.sleep(0.1)
    (again,) = found
    assert again["id"] != first["id"]
    assert len(json.loads(run(running_stack, "show", again["id"], "--json"))["history"]) == 2
    assert json.loads(run(running_stack, "delete", again["id"], "--json")) == {"id": again["id"], "deleted": True}
    assert run(running_stack, "list", "--queue", EMAIL_QUEUE) == "There are no dead letters.\n"


def test_bytes_that_were_never_a_message_are_not_replayed(running_stack: RunningStack) -> None:
    plant(running_stack, letter(1, queue=POISON_OUTBOX, body=b"?", reason="no event", replayable=False))
    (row,) = json.loads(run(running_stack, "list", "--queue", POISON_OUTBOX, "--json"))
    assert row["replayable"] is False
    with pytest.raises(OperatorError, match="was never a queue message"):
        run(running_stack, "replay", row["id"])
    run(running_stack, "delete", row["id"])


def test_control_characters_of_a_letter_do_not_reach_the_terminal(running_stack: RunningStack) -> None:
    attack = "\x1b]0;owned\x07\r\n\u202e"
    history = (Failure(1_700_000_000_000, FailureKind.MALFORMED, attack),)
    planted = NewLetter(
        queue=OF_NONE, message_id=attack, body=b"", kind=FailureKind.MALFORMED, reason=attack, history=history
    )
    plant(running_stack, planted)
    (row,) = json.loads(run(running_stack, "list", "--queue", OF_NONE, "--json"))
    assert row["message_id"] == row["reason"] == attack
    escaped = r"\x1b]0;owned\x07\r\n\u202e"
    listed, shown = run(running_stack, "list", "--queue", OF_NONE), run(running_stack, "show", row["id"])
    assert (listed.count(escaped), shown.count(escaped)) == (1, 3)
    assert (listed + shown).replace("\n", "").isprintable()
    run(running_stack, "delete", row["id"])


def test_a_letter_of_a_queue_that_is_gone_is_not_replayed(running_stack: RunningStack) -> None:
    """Such as one of a shard that was removed: the command ended with a traceback."""
    plant(running_stack, letter(1, body=b"body"))
    (row,) = json.loads(run(running_stack, "list", "--queue", OF_NONE, "--json"))
    for _ in range(2):  # the first try has given its claim back
        with pytest.raises(OperatorError, match=f"this installation has no queue {OF_NONE}"):
            run(running_stack, "replay", row["id"])
    run(running_stack, "delete", row["id"])


def test_many_dead_letters_are_listed_over_pages_up_to_the_limit(running_stack: RunningStack) -> None:
    plant(running_stack, *(letter(number) for number in range(205)))
    for limit, expected in (("1000", 205), ("204", 204), ("3", 3)):
        found = json.loads(run(running_stack, "list", "--queue", OF_NONE, "--limit", limit, "--json"))
        assert [one["message_id"] for one in found] == [str(number) for number in range(expected)]

    found = json.loads(run(running_stack, "list", "--queue", OF_NONE, "--json"))

    async def delete_all() -> None:
        async with opened(running_stack) as (letters, _):
            for one in found:
                assert await letters.delete(one["id"])

    asyncio.run(delete_all())
