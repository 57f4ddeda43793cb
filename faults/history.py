"""The clients' history: every request with all its attempts, from invocation to answer. Performs no I/O.

An attempt ends as `OK` (a 2xx), `REFUSED` (a typed answer: nothing was done) or `UNKNOWN` (504, no answer, a broken
connection: done or not). A request is OK if one attempt is OK. It is REFUSED if no attempt is UNKNOWN, or if the last
attempt was made when no other was in flight any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

Lines = tuple[tuple[str, int], ...]  # SKU and quantity, in the order of the request


@dataclass(frozen=True, slots=True)
class Told:
    """An order as an answer describes it. `lines`: SKU, quantity and unit price, in the order of the answer."""

    sale_id: UUID
    status: str
    lines: tuple[tuple[str, int, int], ...]
    total_minor: int
    currency: str
    reserved_at_ms: int
    expires_at_ms: int


class Ending(Enum):
    """Outcome of an attempt, or of a request as a whole."""

    OK = "ok"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Attempt:
    """One HTTP exchange. Times in seconds of the monotonic clock; `lag_s`: delay of the client itself."""

    invoked_at: float
    returned_at: float
    ending: Ending
    status: int = 0  # 0: no answer
    code: str = ""  # of a problem; for a broken connection, its error
    order_id: UUID | None = None
    told: Told | None = None  # of a 2xx
    replayed: bool = False
    body_hash: int = 0  # of a 2xx: answers about one order must be equal
    lag_s: float = 0.0
    fault: str = ""  # defect of the answer itself, such as an untyped problem
    settled: bool = False  # made when no other attempt was in flight: its answer is final
    patience_s: float = 0.0  # added to the deadline of orders: a call of the payment provider is part of the request
    payment_url: str = ""  # of a 2xx to a request for payment: the provider's page


@dataclass(slots=True)
class OrderRequest:
    """One order of a user under one key. `misuse`: the key belongs to another request with other lines.

    `clicks`: payments that the provider's page confirmed to the buyer.
    """

    user_id: UUID
    key: str
    lines: Lines
    attempts: list[Attempt] = field(default_factory=list)
    misuse: bool = False
    cancels: list[Attempt] = field(default_factory=list)
    payments: list[Attempt] = field(default_factory=list)
    clicks: int = 0

    @property
    def ending(self) -> Ending:
        """Outcome of the request, as the module defines it."""
        return _ending(self.attempts)

    @property
    def cancel_ending(self) -> Ending | None:
        """Outcome of the cancellation; None without one."""
        return _ending(self.cancels) if self.cancels else None

    @property
    def is_payable(self) -> bool:
        """Whether it was accepted, and its buyer neither cancelled it nor asked to pay."""
        return self.ending is Ending.OK and not (self.misuse or self.cancels or self.payments)

    @property
    def order_ids(self) -> set[UUID]:
        """All order ids in answers; a correct system gives one."""
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
    """All requests at one sale. `silences`: spans in which the edge itself was stopped or gone."""

    sale_id: UUID
    requests: list[OrderRequest] = field(default_factory=list)
    silences: list[tuple[float, float]] = field(default_factory=list)

    def attempts(self) -> Iterator[Attempt]:
        """Every attempt at an order, a cancellation or a payment."""
        for request in self.requests:
            yield from request.attempts
            yield from request.cancels
            yield from request.payments

    def excused(self, attempt: Attempt) -> bool:
        """Whether the edge was stopped or gone during this attempt, so that it could not answer in time."""
        return any(begin <= attempt.returned_at and attempt.invoked_at <= end for begin, end in self.silences)
