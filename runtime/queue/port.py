"""The queue port: what a work queue promises, whatever carries it (Redis Streams, later RabbitMQ).

Delivery is at least once and in no guaranteed order: consumers must be idempotent. Performs no I/O.

What each promise becomes on the two carriers:

    promise             Redis Streams                       RabbitMQ
    publish confirmed   the script's answer (synced AOF)    publisher confirm of a quorum queue
    QueueFull           length bound in the script          overflow=reject-publish, basic.nack
    prefetch            bound on entries read, not settled  basic.qos
    retry               sorted set by due time              one delay queue per delay, dead-lettered back
    dead letters        a stream per queue                  a queue per queue, read by get
    consumer died       XAUTOCLAIM after `claim_ms`         the broker requeues when the channel closes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from runtime.process.errors import OperatorError

REASON_LENGTH_MAX = 500
HISTORY_LENGTH_MAX = 20
DEAD_LETTERS_PAGE_MAX = 200


class QueueFull(Exception):
    """The queue is at its bound and took nothing; the publisher waits and tries again."""

    def __init__(self, queue: str) -> None:
        """Of the queue's name."""
        super().__init__(f"{queue} is at its bound")
        self.queue = queue


class QueueUnavailable(OperatorError):
    """The broker did not confirm: the operation happened or not. Repeating it is safe, since consumers are idempotent."""

    def __init__(self, queue: str, detail: str) -> None:
        """`detail` is the client's own words."""
        super().__init__(f"{queue}: {detail}")
        self.queue = queue
        self.detail = detail


class NotReplayable(Exception):
    """The dead letter never was a message: no queue would take it. The place it came from is in its headers."""

    def __init__(self, letter_id: str) -> None:
        """Of the dead letter's id."""
        super().__init__(f"{letter_id} never was a message of a queue: mend what it came from, then delete it")
        self.letter_id = letter_id


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry of a message's history: when an attempt failed, and why."""

    at_ms: int
    reason: str


class Settlement(Protocol):
    """How an adapter settles what it delivered; `Delivery` calls it."""

    async def ack(self, delivery: Delivery) -> None:
        """Remove the message."""
        ...

    async def retry(self, delivery: Delivery, *, delay_ms: int, reason: str) -> None:
        """Move the message to the waiting ones."""
        ...

    async def dead_letter(self, delivery: Delivery, *, reason: str) -> None:
        """Move the message to the dead letters."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message in the hands of a consumer. Settle it once: `ack`, `retry` or `dead_letter`; each raises QueueUnavailable.

    After QueueUnavailable the message comes again unless it was settled after all; the consumer need not remember it.
    `attempt` counts from 1 and grows with `retry` only: a consumer that dies spends none. `tag` is the adapter's own.
    """

    queue: str
    message_id: str
    body: bytes
    headers: Mapping[str, str]
    attempt: int
    first_seen_ms: int
    history: tuple[Failure, ...]
    tag: str
    settlement: Settlement = field(repr=False)

    async def ack(self) -> None:
        """The work is done and durable."""
        await self.settlement.ack(self)

    async def retry(self, delay_ms: int, reason: str) -> None:
        """Deliver again, as the next attempt, `delay_ms` from now. An adapter may round up to a delay that it has."""
        await self.settlement.retry(self, delay_ms=delay_ms, reason=reason)

    async def dead_letter(self, reason: str) -> None:
        """Give up: keep the message with its history for people. QueueFull when the dead letters are at their bound."""
        await self.settlement.dead_letter(self, reason=reason)


class Consumer(Protocol):
    """An open consumption: an async context manager and an async iterator of `Delivery`.

    Connection losses are handled inside: iteration goes on when the broker is back. Leaving gives back at once what
    was delivered and not settled.
    """

    @property
    def problem(self) -> str | None:
        """Why nothing can be delivered at present, None when all is well; for readiness."""
        ...

    async def next_batch(self, *, count_max: int, wait_s: float) -> list[Delivery]:
        """What is there, at most `count_max`, as soon as there is one; empty after `wait_s` without any."""
        ...

    def __aiter__(self) -> Self:
        """The consumer itself."""
        ...

    async def __anext__(self) -> Delivery:
        """The next delivery; waits for it. Ends when the consumer was closed."""
        ...

    async def __aenter__(self) -> Self:
        """Start to consume."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop and give back."""
        ...


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Messages of a queue: waiting or in the hands of a consumer, waiting for a retry, dead."""

    messages: int
    retrying: int
    dead: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `id` names it among all queues, in characters that need no escape in a URL.

    `attempt` is 0 for what never was a message (`DeadLetters.add`).
    """

    id: str
    queue: str
    message_id: str
    body: bytes
    headers: Mapping[str, str]
    reason: str
    attempt: int
    first_seen_ms: int
    died_ms: int
    history: tuple[Failure, ...]


class DeadLetters(Protocol):
    """The dead letters of all queues. Each operation raises QueueUnavailable."""

    async def add(
        self, queue: str, body: bytes, *, message_id: str, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Put there what could not even become a message (confirmed, at least once). QueueFull at the bound."""
        ...

    async def list(
        self, queue: str | None, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[list[DeadLetter], str | None]:
        """A page of one queue or, with None, of all, oldest first in each queue; and the cursor of the next page.

        `limit` is 1..DEAD_LETTERS_PAGE_MAX. ValueError for a cursor that this method did not make.
        """
        ...

    async def get(self, letter_id: str) -> DeadLetter | None:
        """One dead letter; None when there is none of that id."""
        ...

    async def replay(self, letter_id: str) -> bool:
        """Put the message back into its queue as a first attempt that keeps its history; False when it is not there.

        NotReplayable for what `add` put there.
        """
        ...

    async def delete(self, letter_id: str) -> bool:
        """Remove for good; False when it was not there."""
        ...


class Queue(Protocol):
    """A broker of named work queues, which come into being at first use."""

    @property
    def dead_letters(self) -> DeadLetters:
        """What was given up."""
        ...

    async def publish(
        self, queue: str, body: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Return when the broker has confirmed that the message is durable. Raises QueueFull, QueueUnavailable.

        Several publishes may be in flight at the same time, also to the same queue.
        """
        ...

    def consume(self, queue: str, *, prefetch: int) -> Consumer:
        """A consumer that holds at most `prefetch` unsettled deliveries; enter it with `async with`."""
        ...

    async def depth(self, queue: str) -> QueueDepth:
        """How much is there. Raises QueueUnavailable."""
        ...

    async def close(self) -> None:
        """Close the connections; consumers must have been left."""
        ...
