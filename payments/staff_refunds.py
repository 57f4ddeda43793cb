"""Refunds that staff ask for: in the transaction of the caller, on the shard of the order. Each line at most once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from domain import ids
from domain.payments import PaymentState
from domain.topology import DESTINATION_PAYMENT_EVENTS, DESTINATION_REFUNDS
from payments.ledger import tell
from payments.rows import refund_event, refund_message
from runtime.postgres.sql import load_sql

_SQL = load_sql("payments", "refunds.sql")


class NotPaid(Exception):
    """The order has no captured payment."""


class NotStoredYet(Exception):
    """The order is paid in Redis and not in its shard yet: repeat the request in a few seconds."""


class LineRefunded(Exception):
    """A line was refunded before, or is to be; the message names it."""


class NothingToRefund(Exception):
    """No line of the order is left, or the chosen ones cost nothing."""


class RequestReused(Exception):
    """The idempotency key was used for another refund of this order."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a paid order."""

    sku: str
    quantity: int
    unit_price_minor: int


@dataclass(frozen=True, slots=True)
class RefundOrder:
    """A request of staff. `skus` are the lines to refund, None for all that are left. `key` makes it happen once."""

    order_id: UUID
    lines: Sequence[Line]
    skus: frozenset[str] | None
    restock: bool
    key: str
    requested_by: UUID


@dataclass(frozen=True, slots=True)
class Requested:
    """The refund that a request made, now or before (`replayed`)."""

    refund_id: UUID
    skus: Sequence[str]
    amount_minor: int
    replayed: bool


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment as staff see it."""

    event_id: str
    state: str
    amount_minor: int
    currency: str
    due_minor: int
    refunded_minor: int
    received_at: datetime


@dataclass(frozen=True, slots=True)
class RefundRow:
    """A refund as staff see it."""

    id: UUID
    event_id: str
    amount_minor: int
    currency: str
    reason: str
    state: str
    lines: list[str] | None
    restock: bool
    requested_by: UUID | None
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class ToRestock:
    """A refund with units that are still to be put on sale."""

    id: UUID
    order_id: UUID
    sale_id: UUID
    lines: list[str]
    requested_by: UUID


async def request_refund(connection: AsyncConnection[TupleRow], wanted: RefundOrder) -> Requested:
    """Store the refund, its message and its event. NotPaid, NotStoredYet, LineRefunded, NothingToRefund,
    RequestReused.

    Requests for one order come one after the other: the payment's row is locked.
    """
    names: dict[str, Any] = {"order_id": wanted.order_id, "key": wanted.key}
    payment = await (await connection.execute(_SQL["lock_payment"], names)).fetchone()
    if payment is None:
        raise NotPaid
    event_id, user_id, sale_id, currency, state, rest_minor, is_stored = payment
    known = await (await connection.execute(_SQL["find_request"], names)).fetchone()
    if known is not None:
        refund_id, skus, amount_minor, restock = known
        if restock != wanted.restock or (wanted.skus is not None and wanted.skus != set(skus)):
            raise RequestReused
        return Requested(refund_id, skus, amount_minor, replayed=True)
    if state == PaymentState.RECEIVED:
        raise NotPaid
    if not is_stored:
        raise NotStoredYet  # Redis might still lose the payment, and then the whole of it goes back
    done = {sku for (sku,) in await (await connection.execute(_SQL["refunded_lines"], names)).fetchall()}
    lines = [
        line for line in wanted.lines if (line.sku not in done if wanted.skus is None else line.sku in wanted.skus)
    ]
    if again := sorted({line.sku for line in lines} & done):
        raise LineRefunded(", ".join(again))
    amount_minor = sum(line.quantity * line.unit_price_minor for line in lines)
    if not lines or amount_minor == 0 or amount_minor > rest_minor:
        raise NothingToRefund  # a payment that goes back as a whole has no rest
    refund_id, skus = ids.new_uuid7(), [line.sku for line in lines]
    values = {
        **names, "id": refund_id, "refund_id": refund_id, "event_id": event_id, "amount_minor": amount_minor,
        "currency": currency, "lines": skus, "requested_by": wanted.requested_by, "restock": wanted.restock,
    }  # fmt: skip
    for statement in ("add_request", "add_lines", "owe"):
        await connection.execute(_SQL[statement], values)
    event = refund_event(
        PaymentState.REFUND_DUE, refund_id=refund_id, event_id=event_id, order_id=wanted.order_id, user_id=user_id,
        sale_id=sale_id, amount_minor=amount_minor, currency=currency, reason="staff",
    )  # fmt: skip
    message = refund_message(refund_id, wanted.order_id)
    await tell(connection, {DESTINATION_PAYMENT_EVENTS: [event], DESTINATION_REFUNDS: [message]})
    return Requested(refund_id, skus, amount_minor, replayed=False)


async def is_known(connection: AsyncConnection[TupleRow], order_id: UUID, key: str) -> bool:
    """Whether a refund of the order was stored under this key."""
    cursor = await connection.execute(_SQL["find_request"], {"order_id": order_id, "key": key})
    return await cursor.fetchone() is not None


async def note_restocked(connection: AsyncConnection[TupleRow], refund_id: UUID) -> None:
    """The refund's units are on sale again, or cannot be any more."""
    await connection.execute(_SQL["restocked"], {"refund_id": refund_id})


async def to_restock(
    connection: AsyncConnection[TupleRow], *, age: timedelta, after: UUID, limit: int
) -> list[ToRestock]:
    """Refunds of the shard behind the refund `after`, older than `age`, with units that are still to be put on sale."""
    cursor = connection.cursor(row_factory=class_row(ToRestock))
    page = {"age": age, "after": after, "limit": limit}
    return await (await cursor.execute(_SQL["to_restock"], page)).fetchall()


async def money_of_order(
    connection: AsyncConnection[TupleRow], order_id: UUID
) -> tuple[list[PaymentRow], list[RefundRow]]:
    """Every payment and refund of an order, oldest first."""
    payments = connection.cursor(row_factory=class_row(PaymentRow))
    refunds = connection.cursor(row_factory=class_row(RefundRow))
    return (
        await (await payments.execute(_SQL["payments_of_order"], {"order_id": order_id})).fetchall(),
        await (await refunds.execute(_SQL["refunds_of_order"], {"order_id": order_id})).fetchall(),
    )
