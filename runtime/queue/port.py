"""The queue port: the promises of a work queue, whatever carries it (Redis Streams, RabbitMQ).

Delivery is at least once and in no guaranteed order. Duplicates are allowed: a publisher repeats a publish that was not
confirmed, a broker repeats a delivery whose acknowledgement was lost, and an adapter may publish a retry before it
removes the original. Consumers must be idempotent. Performs no I/O.

Each promise on the two carriers:

    promise             Redis Streams                       RabbitMQ
    declaration         none: checks the names              queues, delay queues, policies: from the specs, in one place
    publish confirmed   the script's answer (synced AOF)    publisher confirm of a quorum queue
    QueueFull           exact bound in the script; counts   publishers count the ready messages; may be exceeded
                        messages in hand and retries        by what several of them publish between two looks
    settle confirmed    the script's answer                 written; one that is lost brings the message again
    prefetch            bound on entries read, not settled  basic.qos
    retry               sorted set by due time              publish to the delay queue of that delay, then ack
    attempt, failures   fields of the entry                 headers of the message
    headers             JSON in a field of the entry        headers of the message
    consumer died       XAUTOCLAIM after `claim_ms`         the broker requeues when the channel closes
    depth               XLEN, ZCARD                         passive declare: ready messages only
    barrier             no entry left up to the stream id   every consumer is asked, markers go through the delay
                        of the call, no retry left          queues; False when a consumer is silent

Dead letters are a port of their own (`runtime.dead_letters`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self

from runtime.process.errors import OperatorError

REASON_LENGTH_MAX = 500
HISTORY_LENGTH_MAX = 20
BODY_BYTES_MAX = 8 * 1024 * 1024  # below the limits of all carriers; RabbitMQ 4 takes 16 MiB


class QueueFull(Exception):
    """The queue is at its bound and took nothing; the caller waits and tries again."""

    def __init__(self, queue: str) -> None:
        """`queue` is the queue's name."""
        super().__init__(f"{queue} is at its bound")
        self.queue = queue


class QueueUnavailable(OperatorError):
    """The broker did not confirm: the operation happened or not.

    Repeating it is safe, since consumers are idempotent.
    """

    def __init__(self, queue: str, detail: str) -> None:
        """`detail` is the client's message."""
        super().__init__(f"{queue}: {detail}")
        self.queue = queue
        self.detail = detail


class UnknownQueue(ValueError):
    """The queue is not among the specs that the broker was opened with: a programmer's error."""

    def __init__(self, queue: str) -> None:
        """`queue` is the name that was used."""
        super().__init__(f"{queue} is not declared: add its spec to domain.topology")
        self.queue = queue


class MessageTooLarge(ValueError):
    """The body is larger than BODY_BYTES_MAX, so that no carrier takes it: a programmer's error."""

    def __init__(self, size: int) -> None:
        """`size` is in bytes."""
        super().__init__(f"a message of {size} bytes; at most {BODY_BYTES_MAX} are possible")
        self.size = size


def check_body(body: bytes) -> None:
    """Raise MessageTooLarge for a body beyond the bound."""
    if len(body) > BODY_BYTES_MAX:
        raise MessageTooLarge(len(body))


class FailureKind(StrEnum):
    """Why an attempt failed. Stored in queues and in dead letters: never renamed."""

    MALFORMED = "malformed"  # the bytes have no format that this release knows
    UNROUTABLE = "unroutable"  # belongs to no shard, lane or destination of this installation
    REFUSED_BY_DATABASE = "refused_by_database"  # a constraint or the data type
    REJECTED_BY_RECEIVER = "rejected_by_receiver"  # for good, such as SMTP 5xx
    DEFERRED_BY_RECEIVER = "deferred_by_receiver"  # not yet, such as SMTP 4xx
    NO_GRANT = "no_grant"  # an order waits for stock; spends no attempt
    QUEUE_FULL = "queue_full"  # no room for parts of the message; spends no attempt
    SHARD_AWAY = "shard_away"  # the account's database did not answer; spends no attempt
    PROVIDER_AWAY = "provider_away"  # the payment provider did not answer; spends no attempt
    UNKNOWN = "unknown"  # written by a release that knows more kinds

    @classmethod
    def _missing_(cls, value: object) -> FailureKind:  # noqa: ARG003 - the signature is the enum module's
        return cls.UNKNOWN


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry of a message's history: the time, the kind and the reason of a failed attempt."""

    at_ms: int
    kind: FailureKind
    reason: str


class Settlement(Protocol):
    """How an adapter settles a delivery; `Delivery` calls it."""

    async def ack(self, delivery: Delivery) -> None:
        """Remove the message."""
        ...

    async def retry(self, delivery: Delivery, *, delay_ms: int, failure: Failure) -> None:
        """Move the message to those that wait."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A message in the hands of a consumer. Settle it once, by `ack` or `retry`.

    After QueueUnavailable the message comes again unless it was settled after all; the consumer need not remember it.
    `attempt` counts from 1 and grows with `retry` only: a consumer that dies spends none. `failures` counts the
    failures since the message was published by their kind; `history` has the last HISTORY_LENGTH_MAX of them, and
    those from before a replay. `tag` is the adapter's own.
    `problem` says why the carrier's message could not be decoded; `body` then shows its raw content, and the consumer
    gives it up as malformed.
    """

    queue: str
    message_id: str
    body: bytes
    headers: Mapping[str, str]
    attempt: int
    first_seen_ms: int
    failures: Mapping[FailureKind, int]
    history: tuple[Failure, ...]
    tag: str
    settlement: Settlement = field(repr=False)
    problem: str | None = None

    async def ack(self) -> None:
        """The work is done and durable. Raises QueueUnavailable."""
        await self.settlement.ack(self)

    async def retry(self, delay_ms: int, kind: FailureKind, reason: str) -> None:
        """Deliver again, as the next attempt, `delay_ms` from now.

        An adapter may round up to a delay of the queue's spec.

        Raises QueueUnavailable, and QueueFull where waiting messages have a place of their own that is at its bound:
        the message stays with this consumer, and the caller repeats the call.
        """
        await self.settlement.retry(self, delay_ms=delay_ms, failure=failure_now(kind, reason))

    def history_with(self, failure: Failure) -> tuple[Failure, ...]:
        """The history after one more failure; the oldest are dropped at the bound."""
        return (*self.history, failure)[-HISTORY_LENGTH_MAX:]

    def failures_with(self, failure: Failure) -> dict[FailureKind, int]:
        """The counts after one more failure."""
        return {**self.failures, failure.kind: self.failures.get(failure.kind, 0) + 1}


def short_reason(reason: str) -> str:
    """The reason within its bound. Lone surrogates become question marks: no carrier and no database takes them."""
    return reason[:REASON_LENGTH_MAX].encode("utf-8", "replace").decode("utf-8")


def failure_now(kind: FailureKind, reason: str) -> Failure:
    """A failure of this moment, by the consumer's clock, with a short reason."""
    return Failure(time.time_ns() // 1_000_000, kind, short_reason(reason))


class Consumer(Protocol):
    """An open consumption: an async context manager and an async iterator of `Delivery`.

    Connection losses are handled inside: iteration goes on when the broker is back. Leaving gives back at once the
    deliveries that were not settled.
    """

    @property
    def problem(self) -> str | None:
        """Why nothing can be delivered at present, None when all is well; for readiness."""
        ...

    async def next_batch(self, *, count_max: int, wait_s: float) -> list[Delivery]:
        """At most `count_max` deliveries, as soon as there is one; empty after `wait_s` without any."""
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
    """Messages of a queue at about this moment: for metrics and people.

    Never a proof that a queue is quiet: a carrier may leave out messages in the hands of consumers. Use
    `Queue.barrier`.
    """

    messages: int
    retrying: int


class Queue(Protocol):
    """A broker of named work queues. It knows the queues of its specs; any other name raises UnknownQueue."""

    async def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str,
        headers: Mapping[str, str] | None = None,
        first_seen_ms: int | None = None,
        history: Sequence[Failure] = (),
    ) -> None:
        """Return when the broker has confirmed that the message is durable. Raises QueueFull, QueueUnavailable.

        Several publishes may be in flight at the same time, also to the same queue. `first_seen_ms` and `history` are
        those of a dead letter that is published again; its attempts begin at 1 once more.
        """
        ...

    def consume(self, queue: str, *, prefetch: int) -> Consumer:
        """A consumer that holds at most `prefetch` unsettled deliveries; enter it with `async with`."""
        ...

    async def depth(self, queue: str) -> QueueDepth:
        """About how many messages there are. Raises QueueUnavailable."""
        ...

    async def barrier(self, queue: str, *, wait_s: float) -> bool:
        """Whether every message that was published before this call is acknowledged within `wait_s`.

        True: each of them, with all its retries, was acknowledged (or was in a dead letter when its consumer
        acknowledged it). False: at least one was still in the queue, in the hands of a consumer, or waiting for a
        retry. Messages that are published during the call do not matter, and those that consumers publish in turn are
        such messages: a caller that must wait for them as well calls again. Raises QueueUnavailable.
        """
        ...

    async def close(self) -> None:
        """Close the connections; consumers must have been left."""
        ...
