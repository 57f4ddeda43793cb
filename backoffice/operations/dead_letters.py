"""Dead letters over HTTP, for staff: look at what workers gave up, put it back into its queue, or remove it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field
from redis.asyncio import Redis

from backoffice.web.fields import Page, Resource, Time
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.queue import DeadLetter, DeadLetters, NotReplayable, QueueFull, QueueUnavailable

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_REPLAYED_KEY_PREFIX = "flashsale:replayed:"  # in the cache Redis
REPLAYED_S = 24 * 3600  # a repeated replay is answered like the first one for so long
ID_LENGTH_MAX = 200


class LetterPage(Page):
    """Query of the list."""

    queue: Annotated[str | None, Field(min_length=1, max_length=100)] = None


class LetterSummary(Resource):
    """A message that was given up. `attempt` is 0 for what never was a message, and cannot be replayed."""

    id: str
    queue: str
    message_id: str
    reason: str
    attempt: int
    replayable: bool
    first_seen_at: Time
    died_at: Time


class LetterFailure(Resource):
    """One attempt that failed."""

    at: Time
    reason: str


class LetterView(LetterSummary):
    """A dead letter with all that is known of it. `body` is null when it is not text."""

    headers: dict[str, str]
    history: list[LetterFailure]
    body: str | None
    body_base64: str


class LetterList(Resource):
    """A page of dead letters, oldest first in each queue."""

    items: list[LetterSummary]
    next_cursor: str | None


class Replayed(Resource):
    """The message is back in its queue."""

    id: str
    replayed: bool = True


class DeadLetterRoutes:
    """The operations."""

    def __init__(self, letters: DeadLetters, cache: Redis) -> None:
        """Uses them, owns nothing; `cache` remembers for a day what was replayed."""
        self._letters = letters
        self._cache = cache

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
        """Put it back into its queue as a first attempt. Repeating is answered alike for a day, and changes nothing."""
        letter_id = _letter_id(call)
        key = _REPLAYED_KEY_PREFIX + letter_id
        with _refusals():
            if await self._letters.get(letter_id) is not None:
                # Marked before it is moved: who repeats after a lost reply finds either the letter or the mark.
                first = await self._cache.set(key, 1, ex=REPLAYED_S, nx=True)
                if await self._letters.replay(letter_id):
                    return Answer(body=Replayed(id=letter_id))
                if first:
                    await self._cache.delete(key)  # somebody removed it meanwhile
            if await self._cache.exists(key):
                return Answer(body=Replayed(id=letter_id))
        raise Refused(Problem.NOT_FOUND, "There is no such dead letter")

    async def delete(self, call: Call) -> Answer:
        """Remove it for good."""
        with _refusals():
            if not await self._letters.delete(_letter_id(call)):
                raise Refused(Problem.NOT_FOUND, "There is no such dead letter")
        return Answer(204)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the queue says, as problems."""
    try:
        yield
    except NotReplayable as error:
        raise invalid("/letter_id", "never was a message of a queue: mend what it came from, then delete it") from error
    except QueueFull as error:
        raise Refused(Problem.OVERLOADED, "The queue is full", retry_after_s=1) from error
    except QueueUnavailable as error:
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
        "reason": letter.reason,
        "attempt": letter.attempt,
        "replayable": letter.attempt > 0,
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
        history=[LetterFailure(at=_moment(failure.at_ms), reason=failure.reason) for failure in letter.history],
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
