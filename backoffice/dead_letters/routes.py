"""Dead letters over HTTP, for staff: read messages that workers gave up, replay them, or remove them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backoffice.dead_letters.documents import (
    LetterList,
    LetterPage,
    LetterView,
    Replayed,
    letter_summary,
    letter_view,
)
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.audit import Action
from runtime.dead_letters import (
    BeingReplayed,
    DeadLetters,
    DeadLettersUnavailable,
    NotReplayable,
    QueueIsGone,
    Replay,
    replay,
)
from runtime.queue import Queue, QueueFull, QueueUnavailable

ID_LENGTH_MAX = 200
_MISSING = "The dead letter does not exist"


class DeadLetterRoutes:
    """The handlers."""

    def __init__(self, letters: DeadLetters, queue: Queue) -> None:
        """Uses them, owns nothing."""
        self._letters = letters
        self._queue = queue

    async def page(self, _: Call, query: LetterPage) -> Answer:
        """Dead letters of one queue or of all."""
        with _refusals():
            try:
                letters, cursor = await self._letters.list(query.queue, cursor=query.cursor, limit=query.limit)
            except ValueError as error:
                raise invalid("/cursor", "is not a cursor of this list") from error
        return Answer(body=LetterList(items=[letter_summary(letter) for letter in letters], next_cursor=cursor))

    async def get(self, call: Call) -> Answer:
        """One dead letter."""
        with _refusals():
            letter = await self._letters.get(_letter_id(call))
        if letter is None:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(body=letter_view(letter))

    async def replay(self, call: Call) -> Answer:
        """Put it back into its queue as a first attempt. A repeated request gets the same answer for a day."""
        letter_id = _letter_id(call)
        with _refusals():
            result = await replay(self._letters, self._queue, letter_id)
        if result is Replay.NOT_FOUND:
            raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(body=Replayed(id=letter_id))

    async def delete(self, call: Call) -> Answer:
        """Remove it for good."""
        with _refusals():
            if not await self._letters.delete(_letter_id(call)):
                raise Refused(Problem.NOT_FOUND, _MISSING)
        return Answer(204)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn the exceptions of both ports into problems."""
    try:
        yield
    except NotReplayable as error:
        raise invalid("/letter_id", "was never a queue message. Fix its source, then delete the letter") from error
    except QueueIsGone as error:
        detail = "belongs to a queue that this installation does not have. Declare the queue again or delete the letter"
        raise invalid("/letter_id", detail) from error
    except QueueFull as error:
        raise Refused(Problem.OVERLOADED, "The queue is full. Try again", retry_after_s=1) from error
    except BeingReplayed as error:
        detail = "Another request is replaying this dead letter. Try again"
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, retry_after_s=1) from error
    except (QueueUnavailable, DeadLettersUnavailable) as error:
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, retry_after_s=1) from error


def _letter_id(call: Call) -> str:
    letter_id = call.path_params["letter_id"]
    if not (len(letter_id) <= ID_LENGTH_MAX and letter_id.isascii() and letter_id.isprintable()):
        raise Refused(Problem.NOT_FOUND, _MISSING)
    return letter_id


def routes(letters: DeadLetterRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
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
            "Replay a dead letter: put it back into its queue",
            "operations",
            roles=STAFF,
            answers=Replayed,
            problems=(*missing, Problem.VALIDATION_FAILED),
            action=Action.DEAD_LETTER_REPLAY,
        ),
        Route(
            "DELETE",
            one,
            letters.delete,
            "Delete a dead letter",
            "operations",
            roles=STAFF,
            status=204,
            problems=missing,
            action=Action.DEAD_LETTER_DELETE,
        ),
    )
