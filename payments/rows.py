"""Rows of payments as the ledger reads them, and the events that tell of them. Performs no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from domain import ids
from domain.events import PAYMENT_SCHEMA
from domain.payments import UNKNOWN_ID, PaymentState, RefundReason

REFUND_SCHEMA = 1  # of the messages in the queue of refunds
# Versions of a payment and of a refund, which each grow with its states.
_PAYMENT_VERSIONS = {PaymentState.CAPTURED: 1, PaymentState.REFUND_DUE: 2}
_REFUND_VERSIONS = {PaymentState.REFUND_DUE: 1, PaymentState.REFUNDED: 2}


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

    @property
    def waits_for_order(self) -> bool:
        """Whether it came for an order that was not known, and nothing is decided yet."""
        return self.state is PaymentState.RECEIVED and self.sale_id == UNKNOWN_ID


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payment that arrives, with `UNKNOWN_ID` for an unknown order. `reason` says why it cannot pay its order."""

    event_id: str
    order_id: UUID
    user_id: UUID
    sale_id: UUID
    reference: str
    amount_minor: int
    currency: str
    reason: RefundReason | None


def payment_event(payment: Payment, state: PaymentState, reason: RefundReason | None = None) -> dict[str, Any]:
    """`payment.captured` or `payment.refund_due` of a payment. `id` is stable over redelivery."""
    return _event(
        payment.event_id, state, _PAYMENT_VERSIONS[state],
        {
            "event_id": payment.event_id,
            "order_id": str(payment.order_id),
            "user_id": str(payment.user_id),
            "sale_id": str(payment.sale_id),
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            **({} if reason is None else {"reason": reason.value}),
        },
    )  # fmt: skip


def refund_event(
    state: PaymentState, *, refund_id: UUID, event_id: str, order_id: UUID, user_id: UUID, sale_id: UUID,
    amount_minor: int, currency: str, reason: str,
) -> dict[str, Any]:  # fmt: skip
    """`payment.refund_due` or `payment.refunded` of one refund; a payment may have several."""
    return _event(
        str(refund_id), state, _REFUND_VERSIONS[state],
        {
            "refund_id": str(refund_id),
            "event_id": event_id,
            "order_id": str(order_id),
            "user_id": str(user_id),
            "sale_id": str(sale_id),
            "amount_minor": amount_minor,
            "currency": currency,
            "reason": reason,
        },
    )  # fmt: skip


def _event(subject: str, state: PaymentState, version: int, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{subject}:{state.value}",
        "type": f"payment.{state.value}",
        "schema": PAYMENT_SCHEMA,
        "key": data["user_id"],
        "subject": subject,
        "version": version,
        "time_ms": int(time.time() * 1000),
        "data": data,
    }


class MalformedRefund(ValueError):
    """The bytes are not a message of a refund."""


def refund_message(refund_id: UUID, order_id: UUID) -> dict[str, Any]:
    """The message for the queue of refunds: the row has everything else."""
    return {
        "id": str(refund_id),
        "type": "refund.due",
        "schema": REFUND_SCHEMA,
        "key": str(order_id),
        "data": {"refund_id": str(refund_id), "order_id": str(order_id)},
    }


def parse_refund(body: bytes) -> tuple[UUID, UUID]:
    """Inverse of `refund_message`: refund id and order id. MalformedRefund for anything else."""
    try:
        event = orjson.loads(body)
        schema, data = event["schema"], event["data"]
        refund_id, order_id = ids.parse_uuid(data["refund_id"]), ids.parse_uuid(data["order_id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedRefund("not a refund") from error
    if schema != REFUND_SCHEMA or refund_id is None or order_id is None or not ids.is_order_id(order_id):
        raise MalformedRefund("schema or ids")
    return refund_id, order_id
