"""What an event changes in the figures. Performs no I/O.

An order has each state at most once, so an order's change is known by order id and state. Payment events are known by
their id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from domain import ids
from domain.events import ORDER_SCHEMA, PAYMENT_SCHEMA, EventMalformed, event_type, read_event

TIME_MS_MAX: Final = 253_402_300_799_000  # the year 9999
COUNT_MAX: Final = (1 << 31) - 1
AMOUNT_MAX: Final = (1 << 53) - 1
SKU_LENGTH_MAX: Final = 64
LINES_MAX: Final = 8


class Change(IntEnum):
    """The kind of a change. Stored in `counted`: never renumbered."""

    RESERVED = 0
    PAID = 1
    CANCELLED = 2
    EXPIRED = 3
    REJECTED = 4
    REFUNDED = 16


CHANGES: Final = {
    "order.reserved": Change.RESERVED,
    "order.paid": Change.PAID,
    "order.cancelled": Change.CANCELLED,
    "order.expired": Change.EXPIRED,
    "order.rejected": Change.REJECTED,
    "payment.refunded": Change.REFUNDED,
}
UNCOUNTED: Final = frozenset({"payment.captured", "payment.refund_due"})


class NotCounted(Exception):
    """The event changes no figure; `reason` is a label of a metric."""

    def __init__(self, reason: str) -> None:
        """`reason` is one of a few words."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Counted:
    """A change of an order. `key` and `change` identify it. Amounts are in minor units; `lines` are SKU and quantity.

    `reserved_at_ms` is 0 for payment events.
    """

    key: UUID
    change: Change
    at_ms: int
    sale_id: UUID
    currency: str
    amount_minor: int
    lines: tuple[tuple[str, int], ...] = ()
    reserved_at_ms: int = 0


def change_of(headers: Mapping[str, str], value: bytes) -> Counted:
    """The change of a record. Raises NotCounted."""
    type_ = event_type(headers)
    change = CHANGES.get(type_)
    if change is None:
        raise NotCounted("other type" if type_ in UNCOUNTED else "unknown type")
    try:
        event = read_event(headers, value)
    except EventMalformed as error:
        raise NotCounted("malformed") from error
    if event.schema != (PAYMENT_SCHEMA if change is Change.REFUNDED else ORDER_SCHEMA):
        raise NotCounted("unknown schema")
    data = event.data
    try:
        sale_id, currency = _uuid(data["sale_id"]), _currency(data["currency"])
        at_ms = _number(event.time_ms, TIME_MS_MAX)
        if change is Change.REFUNDED:
            key = UUID(bytes=blake2b(event.id.encode(), digest_size=ids.ID_BYTES).digest())
            return Counted(key, change, at_ms, sale_id, currency, _number(data["amount_minor"], AMOUNT_MAX))
        return Counted(
            _uuid(data["order_id"]), change, at_ms, sale_id, currency, _number(data["total_minor"], AMOUNT_MAX),
            _lines(data["items"]), _number(data["reserved_at_ms"], TIME_MS_MAX),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotCounted("malformed") from error


def _uuid(text: Any) -> UUID:
    found = ids.parse_uuid(text)
    if found is None:
        raise ValueError("not an id")
    return found


def _currency(text: Any) -> str:
    if not (isinstance(text, str) and len(text) == 3 and text.isascii() and text.isalpha()):
        raise ValueError("not a currency")
    return text


def _number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not a number in range")
    return value


def _lines(items: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(items, list) or len(items) > LINES_MAX:
        raise ValueError("not the lines of an order")
    return tuple((_sku(item["sku"]), _number(item["quantity"], COUNT_MAX)) for item in items)


def _sku(text: Any) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= SKU_LENGTH_MAX or "\0" in text:
        raise ValueError("not a SKU")
    return text
