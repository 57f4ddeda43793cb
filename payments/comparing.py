"""Compares the provider's ledger with our rows of payments and refunds, and names every difference. Performs no I/O.

Both ledgers move while they are read. So rows are read first, then the provider's entries, then the rows of the entries
that have no match yet; and an entry younger than `grace` is under way, because its webhook may be, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from domain.ids import parse_uuid
from domain.payments import RefundState
from payments.providers.port import ProviderEntry

GRACE: Final = timedelta(minutes=5)
REFUND_OVERDUE: Final = timedelta(hours=1)


class Kind(StrEnum):
    """A difference. The names are part of the command's output."""

    PAYMENT_WITHOUT_ROW = "payment_without_row"  # money came, and the shop does not know
    ROW_WITHOUT_PAYMENT = "row_without_payment"  # the shop knows money that did not come
    PAYMENT_DIFFERS = "payment_differs"  # in its order, amount or currency
    PAYMENT_TWICE = "payment_twice"  # the provider lists it twice
    REFUND_WITHOUT_ROW = "refund_without_row"  # money went back, and the shop did not ask for that
    REFUND_NOT_AT_PROVIDER = "refund_not_at_provider"  # done here, not there
    REFUND_NOT_STORED = "refund_not_stored"  # done there, not here
    REFUND_DIFFERS = "refund_differs"
    REFUND_OVERDUE = "refund_overdue"
    REFUND_REFUSED = "refund_refused"  # by the provider, for good: the money is still due


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A row of `payments`."""

    event_id: str
    order_id: UUID
    amount_minor: int
    currency: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class RefundRow:
    """A row of `refunds`."""

    refund_id: UUID
    order_id: UUID
    amount_minor: int
    currency: str
    state: RefundState
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference. `id`: event id of a payment, refund id of a refund, or the provider's own id without either.

    `ours` and `theirs` say the two sides, None for a side that has nothing.
    """

    kind: Kind
    id: str
    order_id: UUID | None
    ours: str | None
    theirs: str | None
    at: datetime


@dataclass(slots=True)
class Rows:
    """Our side: rows by id. `judged`: those that must be at the provider, too; the rest only explains entries."""

    payments: dict[str, PaymentRow] = field(default_factory=dict)
    refunds: dict[UUID, RefundRow] = field(default_factory=dict)
    judged_payments: set[str] = field(default_factory=set)
    judged_refunds: set[UUID] = field(default_factory=set)

    def judges(self, entry: ProviderEntry) -> bool:
        """Whether the row of an entry is judged, however old the entry is."""
        if entry.is_refund:
            return parse_uuid(entry.id) in self.judged_refunds
        return entry.id in self.judged_payments

    def __len__(self) -> int:
        """All rows."""
        return len(self.payments) + len(self.refunds)


@dataclass(slots=True)
class Comparison:
    """A verdict. Sums are minor units by currency."""

    since: datetime
    at: datetime
    differences: list[Difference] = field(default_factory=list)
    under_way: int = 0
    payments: int = 0
    refunds: int = 0
    payments_minor: Counter[str] = field(default_factory=Counter)
    refunds_minor: Counter[str] = field(default_factory=Counter)


def missing(rows: Rows, entries: Sequence[ProviderEntry]) -> bool:
    """Whether a row that is judged has no entry: older entries may have it."""
    payments = {entry.id for entry in entries if not entry.is_refund}
    refunds = {parse_uuid(entry.id) for entry in entries if entry.is_refund}
    done = {id_ for id_ in rows.judged_refunds if rows.refunds[id_].state is RefundState.DONE}
    return bool(rows.judged_payments - payments or done - refunds)


def unexplained(rows: Rows, entries: Sequence[ProviderEntry], *, since: datetime) -> tuple[set[str], set[UUID]]:
    """Event ids and refund ids to read again: entries without a row, and refunds that are not done in their rows."""
    payments: set[str] = set()
    refunds: set[UUID] = set()
    for entry in entries:
        if not entry.is_refund:
            if entry.at >= since and entry.id not in rows.payments:
                payments.add(entry.id)
        elif (refund_id := parse_uuid(entry.id)) is not None:
            row = rows.refunds.get(refund_id)
            if (row is None and entry.at >= since) or (row is not None and row.state is not RefundState.DONE):
                refunds.add(refund_id)
    return payments, refunds


def compare(
    rows: Rows,
    entries: Sequence[ProviderEntry],
    *,
    since: datetime,
    now: datetime,
    grace: timedelta = GRACE,
    overdue: timedelta = REFUND_OVERDUE,
) -> Comparison:
    """The verdict about rows that are `judged`, and about entries from `since` on. Older entries only explain rows."""
    comparison = Comparison(since, now)
    seen_payments: dict[str, ProviderEntry] = {}
    seen_refunds: dict[UUID, ProviderEntry] = {}
    for entry in entries:
        judged = rows.judges(entry)
        if entry.at >= since:
            judged = True
            _count(comparison, entry)
        found = _judge_refund(entry, rows, seen_refunds) if entry.is_refund else _judge(entry, rows, seen_payments)
        if found is None or not judged:
            continue
        if found.kind in _PASSING and entry.at > now - grace:
            comparison.under_way += 1
        else:
            comparison.differences.append(found)
    comparison.differences += _missing(rows, seen_payments, seen_refunds)
    comparison.differences += _open(rows.refunds, seen_refunds, before=now - overdue)
    comparison.differences.sort(key=lambda difference: (difference.at, difference.kind, difference.id))
    return comparison


# Differences that a webhook or an answer on its way explains.
_PASSING: Final = frozenset({Kind.PAYMENT_WITHOUT_ROW, Kind.REFUND_NOT_STORED})


def _count(comparison: Comparison, entry: ProviderEntry) -> None:
    if entry.is_refund:
        comparison.refunds += 1
        comparison.refunds_minor[entry.currency] += entry.amount_minor
    else:
        comparison.payments += 1
        comparison.payments_minor[entry.currency] += entry.amount_minor


def _judge(entry: ProviderEntry, rows: Rows, seen: dict[str, ProviderEntry]) -> Difference | None:
    row = rows.payments.get(entry.id)
    theirs = _side(entry.order_id, entry.amount_minor, entry.currency)
    if entry.id in seen:
        before = seen[entry.id]
        ours = _side(before.order_id, before.amount_minor, before.currency)
        return Difference(Kind.PAYMENT_TWICE, entry.id, entry.order_id, ours, theirs, entry.at)
    seen[entry.id] = entry
    if row is None:
        name = entry.id or entry.reference
        return Difference(Kind.PAYMENT_WITHOUT_ROW, name, entry.order_id, None, theirs, entry.at)
    ours = _side(row.order_id, row.amount_minor, row.currency)
    return None if ours == theirs else Difference(Kind.PAYMENT_DIFFERS, entry.id, row.order_id, ours, theirs, entry.at)


def _judge_refund(entry: ProviderEntry, rows: Rows, seen: dict[UUID, ProviderEntry]) -> Difference | None:
    refund_id = parse_uuid(entry.id)
    row = None if refund_id is None else rows.refunds.get(refund_id)
    theirs = _side(entry.order_id, entry.amount_minor, entry.currency)
    if refund_id is None or row is None or refund_id in seen:
        name = entry.id or entry.reference
        return Difference(Kind.REFUND_WITHOUT_ROW, name, entry.order_id, None, theirs, entry.at)
    seen[refund_id] = entry
    ours = _side(row.order_id, row.amount_minor, row.currency)
    if ours != theirs:
        return Difference(Kind.REFUND_DIFFERS, entry.id, row.order_id, ours, theirs, entry.at)
    if row.state is not RefundState.DONE:
        return Difference(Kind.REFUND_NOT_STORED, entry.id, row.order_id, row.state.value, theirs, entry.at)
    return None


def _missing(
    rows: Rows, payments: Mapping[str, ProviderEntry], refunds: Mapping[UUID, ProviderEntry]
) -> Iterator[Difference]:
    """Rows that the provider does not know."""
    for event_id in rows.judged_payments - payments.keys():
        row = rows.payments[event_id]
        ours = _side(row.order_id, row.amount_minor, row.currency)
        yield Difference(Kind.ROW_WITHOUT_PAYMENT, event_id, row.order_id, ours, None, row.received_at)
    for refund_id in rows.judged_refunds - refunds.keys():
        refund = rows.refunds[refund_id]
        if refund.state is RefundState.DONE:
            ours = _side(refund.order_id, refund.amount_minor, refund.currency)
            yield Difference(
                Kind.REFUND_NOT_AT_PROVIDER, str(refund_id), refund.order_id, ours, None, refund.created_at
            )  # fmt: skip


def _open(
    refunds: Mapping[UUID, RefundRow], at_provider: Mapping[UUID, ProviderEntry], *, before: datetime
) -> Iterator[Difference]:
    """Refunds that are due for long, or refused; those that the provider has made have a difference of their own."""
    for refund in refunds.values():
        if refund.refund_id in at_provider or refund.state is RefundState.DONE:
            continue
        if refund.state is RefundState.REFUSED or refund.created_at < before:
            kind = Kind.REFUND_REFUSED if refund.state is RefundState.REFUSED else Kind.REFUND_OVERDUE
            ours = _side(refund.order_id, refund.amount_minor, refund.currency)
            yield Difference(kind, str(refund.refund_id), refund.order_id, ours, None, refund.created_at)


def _side(order_id: UUID | None, amount_minor: int, currency: str) -> str:
    return f"{amount_minor} {currency}, {'no order' if order_id is None else f'order {order_id}'}"
