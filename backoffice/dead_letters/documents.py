"""Dead letters as JSON: query and response models. Performs no I/O."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from backoffice.web.fields import Page, Resource, Time
from runtime.dead_letters import DeadLetter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


def letter_summary(letter: DeadLetter) -> LetterSummary:
    """A dead letter without headers, history and body."""
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


def letter_view(letter: DeadLetter) -> LetterView:
    """A whole dead letter."""
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
