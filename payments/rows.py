"""Rows of payments as the ledger reads them, and the events that tell of them. Performs no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from domain.payments import PaymentState, RefundReason

PAYMENT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Payment:
    """A row of `payments`. `settles`: it may pay its order. Amounts are in minor units of the currency."""

    event_id: str
    order_id: UUID
    user_id: UUID
    sale_id: UUID
    reference: str
    amount_minor: int
    currency: str
    state: PaymentState
    settles: bool
    due_minor: int = 0
    refunded_minor: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payment that arrives: its order is known, and `reason` says why it cannot pay it, if it cannot."""

    event_id: str
    order_id: UUID
    user_id: UUID
    sale_id: UUID
    reference: str
    amount_minor: int
    currency: str
    reason: RefundReason | None


def payment_event(payment: Payment, kind: str, *, of: str = "", **more: object) -> dict[str, Any]:
    """`payment.<kind>` for the log of order events: `captured`, `refund_due` or `refunded`.

    `of` is the refund of an event that a payment may have several times, so that each has an id of its own. `more` are
    further members of `data`.
    """
    return {
        "id": f"{of or payment.event_id}:{kind}",
        "type": f"payment.{kind}",
        "schema": PAYMENT_SCHEMA,
        "key": str(payment.order_id),
        "time_ms": int(time.time() * 1000),
        "data": {
            "event_id": payment.event_id,
            "order_id": str(payment.order_id),
            "user_id": str(payment.user_id),
            "sale_id": str(payment.sale_id),
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            **more,
        },
    }


def refund_message(refund_id: UUID, order_id: UUID) -> dict[str, Any]:
    """The message for the queue of refunds: the row has everything else."""
    return {
        "id": str(refund_id),
        "type": "refund.due",
        "schema": PAYMENT_SCHEMA,
        "key": str(order_id),
        "data": {"refund_id": str(refund_id), "order_id": str(order_id)},
    }
