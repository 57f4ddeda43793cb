"""What clients saw: every request with all its attempts, from invocation to answer. Performs no I/O.

An attempt ends as `OK` (a 2xx), `REFUSED` (a typed answer that promises that nothing was done) or `UNKNOWN` (504, no answer,
a broken connection: done or not). A request is as good as the attempts allow: one OK makes it OK; it is REFUSED only if
no attempt is UNKNOWN, or if the last one was made when all was quiet again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

Lines = tuple[tuple[str, int], ...]  # SKU and quantity, in the order of the request


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer says of an order. `lines`: SKU, quantity and unit price, in the order of the answer."""

    sale_id: UUID
    status: str
    lines: tuple[tuple[str, int, int], ...]
    total_minor: int
    currency: str
    reserved_at_ms: int
    expires_at_ms: int


class Ending(Enum):
    """How an attempt, or a request as a whole, ended."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Attempt:
    """One HTTP exchange. Times in seconds of the monotonic clock; `lag_s` is by how much the client itself was late."""

    invoked_at: float
    returned_at: float
    ending: Ending
    status: int = 0  # 0: no answer
    code: str = ""  # of a problem; of a broken connection: what broke
    order_id: UUID | None = None
    told: Told | None = None  # of a 2xx
    replayed: bool = False
    body_hash: int = 0  # of a 2xx: the same order must be told in the same words
    lag_s: float = 0.0
    fault: str = ""  # what is wrong with the answer as such: not typed, not readable
    settled: bool = False  # made when all was quiet: its answer is final


@dataclass(slots=True)
class OrderRequest:
    """One order that a user wants, under one key. `misuse`: its key belongs to another request with other lines."""

    user_id: UUID
    key: str
    lines: Lines
    attempts: list[Attempt] = field(default_factory=list)
    misuse: bool = False
    cancels: list[Attempt] = field(default_factory=list)

    @property
    def ending(self) -> Ending:
        """See the module."""
        return _ending(self.attempts)

    @property
    def cancel_ending(self) -> Ending | None:
        """Of the cancellation; None when none was asked for."""
        return _ending(self.cancels) if self.cancels else None

    @property
    def order_ids(self) -> set[UUID]:
        """Every order id that was answered; one, if all is well."""
        return {attempt.order_id for attempt in self.attempts if attempt.order_id is not None}


def _ending(attempts: list[Attempt]) -> Ending:
    if any(attempt.ending is Ending.OK for attempt in attempts):
        return Ending.OK
    if any(attempt.settled and attempt.ending is Ending.REFUSED for attempt in attempts):
        return Ending.REFUSED
    if not attempts or any(attempt.ending is Ending.UNKNOWN for attempt in attempts):
        return Ending.UNKNOWN
    return Ending.REFUSED


@dataclass(slots=True)
class History:
    """All requests of one crowd at one sale. `silences`: spans in which the edge itself was stopped or gone."""

    sale_id: UUID
    requests: list[OrderRequest] = field(default_factory=list)
    silences: list[tuple[float, float]] = field(default_factory=list)

    def attempts(self) -> Iterator[Attempt]:
        """Every attempt at an order or a cancellation."""
        for request in self.requests:
            yield from request.attempts
            yield from request.cancels

    def excused(self, attempt: Attempt) -> bool:
        """Whether the edge could not answer this attempt in time because it was itself stopped or gone meanwhile."""
        return any(begin <= attempt.returned_at and attempt.invoked_at <= end for begin, end in self.silences)
