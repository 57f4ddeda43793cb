"""Payments: the states of money that came, and the reasons for which it goes back. Performs no I/O.

A payment is one event of the provider that says that money was captured for an order. It is a row of its own, because
money that came must not vanish, whatever the state of its order is.

    received -> captured                 it pays its order
    received -> refund_due -> refunded   it came late, or a second time, or its order is lost
                refund_due -> refunded   its amount or currency is not the order's
    captured -> refund_due -> refunded   staff refund the whole order
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final
from uuid import UUID

EVENT_ID_LENGTH_MAX = 255
REFERENCE_LENGTH_MAX = 255
UNKNOWN_ID: Final = UUID(int=0)  # user and sale of a payment while its order is not known


class PaymentState(StrEnum):
    """State of a payment. Stored in shards: never renamed."""

    RECEIVED = "received"  # its order has not been settled yet
    CAPTURED = "captured"
    REFUND_DUE = "refund_due"
    REFUNDED = "refunded"

    @property
    def is_shown(self) -> bool:
        """Whether buyers see it: `received` shows as `none`, because it is not known yet whether the order gets it."""
        return self is not PaymentState.RECEIVED


class RefundReason(StrEnum):
    """Why money goes back. Stored in shards: never renamed."""

    LATE = "late"  # the order was cancelled, expired or rejected, or its hold was over
    SECOND = "second"  # another payment pays the order, or is about to
    MISMATCH = "mismatch"  # another amount or currency than the order's
    LOST = "lost"  # the order exists no more: Redis lost it before it was stored
    STAFF = "staff"


class RefundState(StrEnum):
    """State of a refund. Stored in shards: never renamed."""

    DUE = "due"
    DONE = "done"
    REFUSED = "refused"  # by the provider, for good: a dead letter; the money is still due


NO_PAYMENT = "none"  # what an order without any payment shows


def shown_state(states: list[PaymentState]) -> str:
    """The `payment` of an order: the payment that pays it, else the one that counts most for a buyer."""
    shown = (PaymentState.CAPTURED, PaymentState.REFUND_DUE, PaymentState.REFUNDED)
    return next((state.value for state in shown if state in states), NO_PAYMENT)
