"""Dead letters over HTTP, for staff: read messages that workers gave up, replay them, or remove them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from backoffice.web.fields import Page, Resource, Time
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.dead_letters import (
    BeingReplayed,
    DeadLetter,
    DeadLetters,
    DeadLettersUnavailable,
    NotReplayable,
    Replay,
    replay,
)
from runtime.queue import Queue, QueueFull, QueueUnavailable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ID_LENGTH_MAX = 200


class LetterPage(Page):
    """Query of the list."""

    queue: Annotated[str | None, Field(min_length=1, max_length=100)] = None


class LetterSummary(Resource):
    """A message that was given up. `kind` and `reason` are those of its last failure.

    A letter that is not `replayable` was never a queue message, and its `attempt` is 0.
    """

    id: str
    queue: str
    message_id: str
    kind: str
    reason: str
    attempt: int
    replayable: bool
    first_seen_at: Time
    died_at: Time


class LetterFailure(Resource):
    """One attempt that failed."""

    at: Time
    kind: str
    reason: str


class LetterView(LetterSummary):
    """A dead letter with headers, history and body. `body` is null when it is not text."""

    headers: dict[str, str]
    history: list[LetterFailure]
    body: str | None
    body_base64: str


class LetterList(Resource):
    """A page of dead letters, oldest first."""

    items: list[LetterSummary]
    next_cursor: str | None


class Replayed(Resource):
    """The message is back in its queue."""

    id: str
    replayed: bool = True


class DeadLetterRoutes:
    """The operations."""

    def __init__(self, letters: DeadLetters, queue: Queue) -> None:
        """Uses both, owns neither."""
        self._letters = letters
        self._queue = queue

    async def page(self, _: Call, query: LetterPage) -> Answer:
        """Dead letters of one queue or of all."""
        with _refusals():
            try:
                letters, cursor = await self._letters.list(query.queue, cursor=query.cursor, limit=query.limit)
            except ValueError as error:
                raise invalid("/cursor", "is not a cursor of this list") from error
        return Answer(body=LetterList(items=[_summary(letter) for letter in letters], next_cursor=cursor))

    async def get(self, call: Call) -> Answer:
        """One dead letter."""
        with _refusals():
            letter = await self._letters.get(_letter_id(call))
        if letter is None:
            raise Refused(Problem.NOT_FOUND, "There is no such dead letter")
        return Answer(body=_view(letter))

    async def replay(self, call: Call) -> Answer:
        """Put it back into its queue as a first attempt. A repeated request gets the same answer for a day."""
        letter_id = _letter_id(call)
        with _refusals():
            result = await replay(self._letters, self._queue, letter_id)
        if result is Replay.NOT_FOUND:
            raise Refused(Problem.NOT_FOUND, "There is no such dead letter")
        return Answer(body=Replayed(id=letter_id))

    async def delete(self, call: Call) -> Answer:
        """Remove it for good."""
        with _refusals():
            if not await self._letters.delete(_letter_id(call)):
                raise Refused(Problem.NOT_FOUND, "There is no such dead letter")
        return Answer(204)


@contextmanager
def _refusals() -> Iterator[None]:
    """The ports' errors as problems."""
    try:
        yield
    except NotReplayable as error:
        raise invalid("/letter_id", "was never a queue message; fix its source, then delete the letter") from error
    except QueueFull as error:
        raise Refused(Problem.OVERLOADED, "The queue is full; try again", retry_after_s=1) from error
    except BeingReplayed as error:
        detail = "Another request is replaying this dead letter; try again"
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, retry_after_s=1) from error
    except (QueueUnavailable, DeadLettersUnavailable) as error:
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, retry_after_s=1) from error


def _letter_id(call: Call) -> str:
    letter_id = call.path_params["letter_id"]
    if not (len(letter_id) <= ID_LENGTH_MAX and letter_id.isascii() and letter_id.isprintable()):
        raise Refused(Problem.NOT_FOUND, "There is no such dead letter")
    return letter_id


def _summary(letter: DeadLetter) -> LetterSummary:
    return LetterSummary(**_members(letter))


def _members(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "queue": letter.queue,
        "message_id": letter.message_id,
        "kind": letter.kind.value,
        "reason": letter.reason,
        "attempt": letter.attempts,
        "replayable": letter.replayable,
        "first_seen_at": _moment(letter.first_seen_ms),
        "died_at": _moment(letter.died_ms),
    }


def _view(letter: DeadLetter) -> LetterView:
    try:
        text = letter.body.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    return LetterView(
        **_members(letter),
        headers=dict(letter.headers),
        history=[
            LetterFailure(at=_moment(failure.at_ms), kind=failure.kind.value, reason=failure.reason)
            for failure in letter.history
        ],
        body=text,
        body_base64=base64.b64encode(letter.body).decode("ascii"),
    )


def _moment(unix_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=unix_ms)


def routes(letters: DeadLetterRoutes) -> tuple[Route, ...]:
    """Operations of this subject."""
    one = "/v1/dead-letters/{letter_id}"
    missing = (Problem.NOT_FOUND,)
    return (
        Route(
            "GET",
            "/v1/dead-letters",
            letters.page,
            "List dead letters",
            "operations",
            roles=STAFF,
            query=LetterPage,
            answers=LetterList,
        ),
        Route(
            "GET",
            one,
            letters.get,
            "Read a dead letter",
            "operations",
            roles=STAFF,
            answers=LetterView,
            problems=missing,
        ),
        Route(
            "POST",
            f"{one}/replay",
            letters.replay,
            "Put a dead letter back into its queue",
            "operations",
            roles=STAFF,
            answers=Replayed,
            problems=(*missing, Problem.VALIDATION_FAILED),
        ),
        Route(
            "DELETE",
            one,
            letters.delete,
            "Remove a dead letter for good",
            "operations",
            roles=STAFF,
            status=204,
            problems=missing,
        ),
    )
