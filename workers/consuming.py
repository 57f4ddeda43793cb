"""Shared by the consumers of work queues: pausing through transient faults, settling messages, giving messages up.

Knows nothing of the work itself. A transient fault (a server away, a lock, no room) passes without any change to the
message: it pauses consumption with the messages unacknowledged, and spends no attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import psycopg
import structlog
from redis.exceptions import RedisError

from runtime.dead_letters import DeadLetters, DeadLettersFull, DeadLettersUnavailable, NewLetter
from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.queue import Delivery, FailureKind, QueueFull, QueueUnavailable
from runtime.queue.port import failure_now

PAUSE_S_MAX = 5.0
TRANSIENT: tuple[type[Exception], ...] = (
    psycopg.Error,
    RedisError,
    QueueUnavailable,
    DeadLettersUnavailable,
    OSError,
    TimeoutError,
)
# Of PostgreSQL's errors, those of the data (SQLSTATE classes 22 and 23): no wait ends them. The quota's own CHECK is
# one of them: the quota was read under its lock, so an order that does not fit never will. Every other error passes or
# needs an operator (connection, locks, time-outs, a full disk, an old schema), and never costs a message an attempt.
REFUSED: tuple[type[psycopg.Error], ...] = (psycopg.DataError, psycopg.IntegrityError)
# The message waits for something outside of it.
FREE_FAILURES = frozenset(
    {FailureKind.NO_GRANT, FailureKind.QUEUE_FULL, FailureKind.SHARD_AWAY, FailureKind.PROVIDER_AWAY}
)
NO_ROOM: tuple[type[Exception], ...] = (QueueFull, DeadLettersFull)

_REASON_LENGTH_MAX = 300

log = structlog.get_logger()
T = TypeVar("T")


class Stopping(Exception):
    """The process is to stop during a pause: the messages in hand stay unacknowledged and come again."""


class Patience:
    """The pauses of one part of a process."""

    def __init__(
        self,
        service: Service,
        *,
        report: Callable[[str, str | None], None],
        count_pause: Callable[[str], None],
    ) -> None:
        """`report(waits_for, problem)` sets readiness, with None after all waits; `count_pause` counts each pause."""
        self._waits: dict[str, dict[object, str]] = {}  # what is waited for -> operation -> problem
        self._service = service
        self._report = report
        self._count_pause = count_pause

    async def through_faults(
        self,
        waits_for: str,
        operation: Callable[[], Awaitable[T]],
        *,
        transient: tuple[type[Exception], ...] = TRANSIENT,
    ) -> T:
        """Repeat the operation until it succeeds, with growing, jittered pauses.

        Raises Stopping when the process is to stop during a pause, every error that is not in `transient`, and those
        in REFUSED: the caller settles the message that caused it.
        """
        backoff = Backoff(longest_s=PAUSE_S_MAX)
        waits, me = self._waits.setdefault(waits_for, {}), object()
        try:
            while True:
                try:
                    return await operation()
                except REFUSED:
                    raise
                except transient as error:
                    self._count_pause(waits_for)
                    waits[me] = type(error).__name__
                    self._report(waits_for, waits[me])
                    log.warning("paused", waits_for=waits_for, error=f"{type(error).__name__}: {error}".strip())
                    if await self._service.pause(backoff.next_s()):
                        raise Stopping from error
        finally:
            # Several operations run at once: one that succeeds must not hide another that still waits.
            waits.pop(me, None)
            self._report(waits_for, next(iter(waits.values()), None))


class Consuming(Patience):
    """The pauses and settlements of one consumer."""

    def __init__(
        self,
        service: Service,
        letters: DeadLetters,
        *,
        report: Callable[[str, str | None], None],
        count_pause: Callable[[str], None],
    ) -> None:
        """As of Patience; `letters` takes messages that are given up."""
        super().__init__(service, report=report, count_pause=count_pause)
        self._letters = letters

    async def readable(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """The deliveries that the carrier could decode; the others are given up as malformed. Raises Stopping."""
        readable = []
        for delivery in deliveries:
            if delivery.problem is None:
                readable.append(delivery)
                continue
            log.error(
                "message dead-lettered", queue=delivery.queue, message=delivery.message_id, reason=delivery.problem
            )
            await self.give_up(delivery, FailureKind.MALFORMED, delivery.problem)
        return readable

    async def ack(self, delivery: Delivery) -> None:
        """Acknowledge. After an unconfirmed acknowledgement the message comes again."""
        await self._settle(delivery, delivery.ack)

    async def retry(self, delivery: Delivery, delay_ms: int, kind: FailureKind, reason: str) -> None:
        """Retry later; waits for room where the waiting messages are at their bound."""
        await self._settle(delivery, lambda: delivery.retry(delay_ms, kind, reason))

    async def give_up(self, delivery: Delivery, kind: FailureKind, reason: str) -> None:
        """Move the message to the dead letters.

        Add, then acknowledge: a crash between the two brings the message again, and adding it again makes no second
        letter. While the dead letters are away or full, the message stays with this consumer.
        """
        letter = letter_of(delivery, kind, reason)
        await self.through_faults("dead letters", lambda: self._letters.add(letter), transient=(*TRANSIENT, *NO_ROOM))
        await self.ack(delivery)

    async def _settle(self, delivery: Delivery, operation: Callable[[], Awaitable[None]]) -> None:
        try:
            await self.through_faults("queue", operation, transient=NO_ROOM)
        except QueueUnavailable as error:
            log.warning("message not settled, it comes again", queue=delivery.queue, error=error.detail)


def failures_of_its_own(delivery: Delivery) -> int:
    """The failures that spent an attempt."""
    return sum(count for kind, count in delivery.failures.items() if kind not in FREE_FAILURES)


def letter_of(delivery: Delivery, kind: FailureKind, reason: str) -> NewLetter:
    """The dead letter of a message after this last failure."""
    return NewLetter(
        queue=delivery.queue,
        message_id=delivery.message_id,
        body=delivery.body,
        headers=delivery.headers,
        kind=kind,
        reason=reason,
        attempts=delivery.attempt,
        first_seen_ms=delivery.first_seen_ms,
        history=delivery.history_with(failure_now(kind, reason)),
        replayable=delivery.problem is None,
    )


def reason_of(error: psycopg.Error) -> str:
    """One line for the dead letter: SQLSTATE and the database's message."""
    text = error.diag.message_primary or type(error).__name__
    return f"{error.sqlstate or 'none'} {text}"[:_REASON_LENGTH_MAX]
