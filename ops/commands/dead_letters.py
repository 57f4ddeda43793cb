"""`dead-letters`: list and show messages that workers gave up, replay them into their queues, delete them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import typer

from domain.topology import POISON_ENTRIES, POISON_EVENTS, POISON_OUTBOX
from ops.commands.options import AsJson, StateDir, print_json
from ops.target import resolve
from runtime.audit import act_as, operator_act
from runtime.dead_letters import (
    PAGE_LETTERS_MAX,
    BeingReplayed,
    DeadLetter,
    DeadLetters,
    NotReplayable,
    QueueIsGone,
    Replay,
    open_dead_letters,
)
from runtime.dead_letters import replay as replay_letter
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings
from runtime.queue import Queue, QueueFull, open_queue

app = typer.Typer(no_args_is_help=True, help="Messages that workers gave up: list, show, replay, delete.")
NEEDS: Final = ("queue_url", "catalogue_dsn")
T = TypeVar("T")
LetterId = Annotated[str, typer.Argument(metavar="ID", help="The id that `list` prints.")]


@app.command("list")
def list_letters(
    queue: Annotated[str | None, typer.Option(help="Only letters of this queue.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Longest list.")] = 1000,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """List dead letters, oldest first."""

    async def read(letters: DeadLetters, _: Queue) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        cursor: str | None = None
        while len(found) < limit:
            page, cursor = await letters.list(queue, cursor=cursor, limit=min(PAGE_LETTERS_MAX, limit - len(found)))
            found += page
            if cursor is None:
                break
        return found

    settings = resolve(state_dir, needs=NEEDS).settings
    found = _with_letters(settings, read)
    known = [*(spec.name for spec in settings.topology.queues), POISON_ENTRIES, POISON_EVENTS, POISON_OUTBOX]
    if queue is not None and not found and queue not in known:
        raise OperatorError(f"there is no queue {queue}: use one of {', '.join(known)}")
    if as_json:
        print_json([_summary(letter) for letter in found])
        return
    for letter in found:
        print(f"{letter.id}  {_time(letter.died_ms)}  {letter.queue}  {letter.kind}: {_shown(letter.reason)}")
    if not found:
        print("There are no dead letters.")


@app.command()
def show(letter_id: LetterId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Show one dead letter with its history; the body in base64. Exit status 1 if there is none."""
    settings = resolve(state_dir, needs=NEEDS).settings
    letter = _with_letters(settings, lambda letters, _: letters.get(letter_id))
    if letter is None:
        raise OperatorError(_missing(letter_id))
    document = _summary(letter) | {
        "headers": dict(letter.headers),
        "history": [
            {"at": _time(failure.at_ms), "kind": failure.kind.value, "reason": failure.reason}
            for failure in letter.history
        ],
        "body_base64": base64.b64encode(letter.body).decode(),
    }
    if as_json:
        print_json(document)
        return
    for failure in document.pop("history"):
        print(f"{failure['at']}  {failure['kind']}: {_shown(failure['reason'])}")
    for name, value in document.items():
        print(f"{name:<12} {_shown(str(value))}")


@app.command()
def replay(letter_id: LetterId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Put a dead letter back into its queue. Exit status 1 if there is none, or if it was never a queue message."""
    settings = resolve(state_dir, needs=NEEDS).settings
    try:
        result = _with_letters(settings, lambda letters, queue: replay_letter(letters, queue, letter_id))
    except (NotReplayable, QueueIsGone, BeingReplayed, QueueFull) as error:
        raise OperatorError(str(error)) from error
    if result is Replay.DONE_BEFORE:
        raise OperatorError(f"there is no dead letter {letter_id} any more: it was replayed")
    _report(letter_id, result is Replay.DONE, "replayed", as_json=as_json)


@app.command()
def delete(letter_id: LetterId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Remove a dead letter for good. Exit status 1 if there is none.

    A change of an order in it is lost: invariant B of its sale is violated from then on.
    """
    settings = resolve(state_dir, needs=NEEDS).settings
    done = _with_letters(settings, lambda letters, _: letters.delete(letter_id))
    _report(letter_id, done, "deleted", as_json=as_json)


def _with_letters(settings: Settings, operation: Callable[[DeadLetters, Queue], Awaitable[T]]) -> T:
    async def work() -> T:
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        letters = open_dead_letters(settings.catalogue_dsn, letters_max=settings.dead_letters_max)
        try:
            with act_as(operator_act()):
                return await operation(letters, queue)
        finally:
            await letters.close()
            await queue.close()

    return asyncio.run(work())


def _report(letter_id: str, done: bool, word: str, *, as_json: bool) -> None:
    if not done:
        raise OperatorError(_missing(letter_id))
    if as_json:
        print_json({"id": letter_id, word: True})
    else:
        print(f"{letter_id} {word}.")


def _missing(letter_id: str) -> str:
    return f"there is no dead letter {letter_id}: see flashsale dead-letters list"


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "queue": letter.queue,
        "message_id": letter.message_id,
        "kind": letter.kind.value,
        "reason": letter.reason,
        "attempt": letter.attempts,
        "replayable": letter.replayable,
        "first_seen": _time(letter.first_seen_ms),
        "died": _time(letter.died_ms),
    }


def _shown(text: str) -> str:
    """The text on one line; control characters, which a message of another program may contain, are escaped."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
