"""`dead-letters`: look at what workers gave up, put it back into its queue, or remove it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ops.commands.options import AsJson, StateDir, print_json
from ops.target import resolve
from runtime.process.errors import OperatorError
from runtime.queue import DeadLetter, DeadLetters, NotReplayable, open_queue

PAGE = 200

app = typer.Typer(no_args_is_help=True, help="What workers gave up: list, show, replay, delete.")
T = TypeVar("T")
LetterId = Annotated[str, typer.Argument(metavar="ID", help="As `list` prints it.")]


@app.command("list")
def list_letters(
    queue: Annotated[str | None, typer.Option(help="Of this queue only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1000,
    as_json: AsJson = False,
    state_dir: StateDir = None,
) -> None:
    """Dead letters, oldest first in each queue."""

    async def read(letters: DeadLetters) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        cursor: str | None = None
        while len(found) < limit:
            page, cursor = await letters.list(queue, cursor=cursor, limit=min(PAGE, limit - len(found)))
            found += page
            if cursor is None:
                break
        return found

    found = _with_letters(state_dir, read)
    if as_json:
        print_json([_summary(letter) for letter in found])
        return
    for letter in found:
        print(f"{letter.id}  {_time(letter.died_ms)}  {letter.reason}")
    if not found:
        print("There are no dead letters.")


@app.command()
def show(letter_id: LetterId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """One dead letter with its history; the body in base64. Exit status 1 if there is none."""
    letter = _with_letters(state_dir, lambda letters: letters.get(letter_id))
    if letter is None:
        raise OperatorError(_missing(letter_id))
    document = _summary(letter) | {
        "headers": dict(letter.headers),
        "history": [{"at": _time(failure.at_ms), "reason": failure.reason} for failure in letter.history],
        "body_base64": base64.b64encode(letter.body).decode(),
    }
    if as_json:
        print_json(document)
        return
    for failure in document.pop("history"):
        print(f"{failure['at']}  {failure['reason']}")
    for name, value in document.items():
        print(f"{name:<12} {value}")


@app.command()
def replay(letter_id: LetterId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Put a dead letter back into its queue. Exit status 1 if it is not there or never was a message."""
    try:
        done = _with_letters(state_dir, lambda letters: letters.replay(letter_id))
    except NotReplayable as error:
        raise OperatorError(str(error)) from error
    _report(letter_id, done, "replayed", as_json=as_json)


@app.command()
def delete(letter_id: LetterId, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Remove a dead letter for good. Exit status 1 if it is not there."""
    _report(letter_id, _with_letters(state_dir, lambda letters: letters.delete(letter_id)), "deleted", as_json=as_json)


def _with_letters(state_dir: Path | None, operation: Callable[[DeadLetters], Awaitable[T]]) -> T:
    settings = resolve(state_dir, needs=["queue_url"]).settings

    async def work() -> T:
        queue = open_queue(settings.queue_url)
        try:
            return await operation(queue.dead_letters)
        finally:
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
        "reason": letter.reason,
        "attempt": letter.attempt,
        "replayable": letter.attempt > 0,
        "first_seen": _time(letter.first_seen_ms),
        "died": _time(letter.died_ms),
    }


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
