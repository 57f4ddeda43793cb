"""The port of dead letters: messages that workers gave up, kept for people to look at, replay or delete.

Dead letters are no queue. Listing them takes nothing and spends no delivery, on whatever carrier the queues are.
A consumer adds a letter and then acknowledges its message: a crash between the two brings the message again, and adding
it again makes no second letter. Performs no I/O.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from runtime.process.errors import OperatorError
from runtime.queue.port import Failure, FailureKind, short_reason

PAGE_LETTERS_MAX = 200
_LENGTHS = struct.Struct(">QQ")


class DeadLettersFull(Exception):
    """The dead letters of a queue are at their bound. Nothing was added: the message stays where it is."""

    def __init__(self, queue: str) -> None:
        """`queue` is the queue of the letter that found no room."""
        super().__init__(f"the dead letters of {queue} are at their bound: replay or delete some")
        self.queue = queue


class DeadLettersUnavailable(OperatorError):
    """The database did not answer. The operation happened or not, and is safe to repeat."""

    def __init__(self, detail: str) -> None:
        """`detail` is the client's message."""
        super().__init__(f"dead letters: {detail}")
        self.detail = detail


def identity_of(queue: str, message_id: str, body: bytes) -> bytes:
    """SHA-256 of queue, message id and body, with lengths so that no two of them run into each other."""
    first, second = queue.encode(), message_id.encode()
    return hashlib.sha256(_LENGTHS.pack(len(first), len(second)) + first + second + body).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLetter:
    """A letter to be added. Its identity is (queue, message id, body).

    `attempts` is 0, and `replayable` false, for bytes that were never a message of a queue. `first_seen_ms` is None for
    "now". `reason` is stored as `runtime.queue.port.short_reason` of it. NUL in a text is replaced: PostgreSQL cannot
    store it.
    """

    queue: str
    message_id: str
    body: bytes
    kind: FailureKind
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 0
    first_seen_ms: int | None = None
    history: tuple[Failure, ...] = ()
    replayable: bool = True

    @property
    def short_reason(self) -> str:
        """The reason as it is stored."""
        return short_reason(self.reason)

    @property
    def identity(self) -> bytes:
        """SHA-256 of queue, message id and body."""
        return identity_of(self.queue, self.message_id, self.body)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `id` names it among all queues, in characters that need no escape in a URL.

    `kind` and `reason` are those of the last failure, which is also the last entry of `history`. A letter that cannot
    be replayed was never a message of a queue; its headers name its source.
    """

    id: str
    queue: str
    message_id: str
    body: bytes
    headers: Mapping[str, str]
    kind: FailureKind
    reason: str
    attempts: int
    replayable: bool
    first_seen_ms: int
    died_ms: int
    history: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to replay a letter, until it is given back or its lease ends. `token` differs from later claims'."""

    letter: DeadLetter
    token: UUID


class DeadLetters(Protocol):
    """The dead letters of all queues. Every operation raises DeadLettersUnavailable and is safe to repeat then."""

    async def add(self, letter: NewLetter) -> str:
        """Store a letter and return its id. DeadLettersFull when its queue has as many as it may have.

        A letter that is there already is brought up to date, also at the bound. If it is being replayed, the message
        has died again: it becomes a letter with a new id.
        """
        ...

    async def list(
        self, queue: str | None, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[DeadLetter], str | None]:
        """A page of one queue or, with None, of all, in the order of addition; and the cursor of the next page.

        `limit` is 1..PAGE_LETTERS_MAX. ValueError for a cursor that this method did not make.
        """
        ...

    async def get(self, letter_id: str) -> DeadLetter | None:
        """One letter, also while it is being replayed; None when there is none of that id."""
        ...

    async def delete(self, letter_id: str) -> bool:
        """Remove for good; False when it was not there. A replay under way may still put the message into its queue."""
        ...

    async def count(self) -> Mapping[str, int]:
        """Letters by queue, without the queues that have none."""
        ...

    async def claim(self, letter_id: str, *, lease_ms: int) -> Claim | None:
        """Take the right to replay a letter for `lease_ms`; of many callers one gets it.

        None when there is no such letter, another claim holds it, or it cannot be replayed.
        """
        ...

    async def release(self, claim: Claim) -> None:
        """Give a claim back: the letter stays and may be claimed at once. Without effect for a claim that has ended."""
        ...

    async def finish(self, claim: Claim) -> None:
        """Remove a claimed letter that is back in its queue, and remember its id for a day.

        Without effect for a claim that was taken over, or whose message has died again meanwhile.
        """
        ...

    async def was_replayed(self, letter_id: str) -> bool:
        """Whether a letter of this id was replayed within the last day."""
        ...

    async def close(self) -> None:
        """Close the connections that the adapter opened itself."""
        ...
