"""Which events are announced, and the notice that each becomes. Performs no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from domain import ids
from domain.events import ORDER_SCHEMA, PAYMENT_SCHEMA, Event, EventMalformed, event_type, read_event
from domain.notices import NoticeKind, OrderNews, amount, currency, parse_lines, time_ms
from domain.payments import RefundReason

EVENT_ID_LENGTH_MAX: Final = 400  # of a payment: the provider's id of at most 255 characters, and a word
ANNOUNCED: Final = {
    "order.reserved": NoticeKind.ORDER_RESERVED,
    "order.paid": NoticeKind.ORDER_PAID,
    "order.cancelled": NoticeKind.ORDER_CANCELLED,
    "order.expired": NoticeKind.ORDER_EXPIRED,
    "payment.refunded": NoticeKind.ORDER_REFUNDED,
}
# A buyer hears of a captured payment by the paid order, and of money that is due when it has gone back.
SILENT: Final = frozenset({"order.rejected", "payment.captured", "payment.refund_due"})


class NotAnnounced(Exception):
    """The event becomes no notice; `reason` is a label of a metric."""

    def __init__(self, reason: str) -> None:
        """`reason` is one of a few words."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Draft:
    """An event to announce, before it is known whether its buyer has an account and wants to be told."""

    kind: NoticeKind
    event_id: str
    user_id: UUID
    order: OrderNews


def draft_of(headers: Mapping[str, str], value: bytes, *, with_reserved: bool) -> Draft:
    """The draft of a record's event. Raises NotAnnounced for an event that is not for buyers or is not understood.

    Most events of a sale are `order.reserved`: only their type is read, unless `with_reserved`.
    """
    type_ = event_type(headers)
    kind = ANNOUNCED.get(type_)
    if kind is None and type_:
        raise NotAnnounced("other type" if type_ in SILENT else "unknown type")
    if kind is NoticeKind.ORDER_RESERVED and not with_reserved:
        raise NotAnnounced("other type")
    try:
        event = read_event(headers, value)
    except EventMalformed as error:
        raise NotAnnounced("malformed") from error
    assert kind is not None, "an event has a type"
    if event.schema != (PAYMENT_SCHEMA if kind is NoticeKind.ORDER_REFUNDED else ORDER_SCHEMA):
        raise NotAnnounced("unknown schema")
    try:
        return _draft(kind, event)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAnnounced("malformed") from error


def _draft(kind: NoticeKind, event: Event) -> Draft:
    data = event.data
    order_id, user_id = ids.parse_uuid(data["order_id"]), ids.parse_uuid(data["user_id"])
    if len(event.id) > EVENT_ID_LENGTH_MAX:
        raise ValueError("not an event id")
    if order_id is None or user_id is None:
        raise ValueError("not ids")
    at_ms, money = time_ms(event.time_ms), currency(data["currency"])
    if kind is NoticeKind.ORDER_REFUNDED:
        order = OrderNews(order_id, at_ms, money, amount(data["amount_minor"]), reason=RefundReason(data["reason"]))
    else:
        total, lines = amount(data["total_minor"]), parse_lines(data["items"])
        order = OrderNews(order_id, at_ms, money, total, lines, time_ms(data["expires_at_ms"]))
    return Draft(kind, event.id, user_id, order)
