"""Notices: messages to a person, on their way to a sender: from a shard's outbox, or from the event log of orders.

Performs no I/O. A notice never carries a secret. It has the kind of the message and the recipient; the token of a
mailed link is made together with the mail, so that no table, queue or dead letter ever holds one. It goes to an account
(`user_id`) or to the account of an address (`email_folded`): the notification worker then finds out whether such an
account exists, and the caller does not learn it. The notice that an account has left an address has both: it goes to
the address, and its link undoes the change of the account. A notice of an order goes to an account and has the order's
content.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from domain import ids
from domain.orders import LINES_MAX, QUANTITY_MAX, SKU_LENGTH_MAX
from domain.payments import RefundReason

NOTICE_SCHEMA = 1


class Channel(StrEnum):
    """How a notice reaches a person. Part of the id of a notice of an order: never renamed."""

    EMAIL = "email"
    PUSH = "push"


class NoticeKind(StrEnum):
    """Kinds of notices. Stored in outboxes, queues and preferences: never renamed."""

    VERIFY_EMAIL = "verify_email"
    PASSWORD_RESET = "password_reset"
    PASSWORD_CHANGED = "password_changed"
    EMAIL_CHANGED = "email_changed"
    WEBHOOK_DISABLED = "webhook_disabled"
    ORDER_RESERVED = "order_reserved"
    ORDER_PAID = "order_paid"
    ORDER_CANCELLED = "order_cancelled"
    ORDER_EXPIRED = "order_expired"
    ORDER_REFUNDED = "order_refunded"


# Notices that a buyer may switch off; those of the security of an account always go out.
ORDER_KINDS: Final = (
    NoticeKind.ORDER_RESERVED,
    NoticeKind.ORDER_PAID,
    NoticeKind.ORDER_CANCELLED,
    NoticeKind.ORDER_EXPIRED,
    NoticeKind.ORDER_REFUNDED,
)


class MalformedNotice(ValueError):
    """The bytes are not a notice of a schema that this code knows."""


@dataclass(frozen=True, slots=True)
class NoticeLine:
    """A line of an order; the price is of one unit, in minor units."""

    sku: str
    quantity: int
    unit_price_minor: int


@dataclass(frozen=True, slots=True)
class OrderNews:
    """The content of a notice of an order. `amount_minor` is the order's total, or the amount of a refund.

    `at_ms` is the time of the event. Only a refund has a `reason`, and has no lines and no end of a hold.
    """

    order_id: UUID
    at_ms: int
    currency: str
    amount_minor: int
    lines: tuple[NoticeLine, ...] = ()
    expires_at_ms: int | None = None
    reason: RefundReason | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """One of `user_id` and `email_folded` is set, for EMAIL_CHANGED both. A notice of an order has `order`.

    `id` is a UUIDv7, so a newer one is greater; for an order it follows from the event and the channel.
    """

    id: UUID
    kind: NoticeKind
    user_id: UUID | None = None
    email_folded: str | None = None
    order: OrderNews | None = None

    @property
    def key(self) -> str:
        """User id or address: selects the partition."""
        return str(self.user_id) if self.user_id is not None else str(self.email_folded)

    @property
    def at_ms(self) -> int:
        """The time of the event or of the request, Unix ms."""
        return self.order.at_ms if self.order is not None else self.id.int >> 80


def notice_to_user(kind: NoticeKind, user_id: UUID) -> Notice:
    """A new notice to an account."""
    return Notice(ids.new_uuid7(), kind, user_id=user_id)


def notice_to_address(kind: NoticeKind, email_folded: str) -> Notice:
    """A new notice to the account of an address, if there is one."""
    return Notice(ids.new_uuid7(), kind, email_folded=email_folded)


def notice_of_left_address(user_id: UUID, email_folded: str) -> Notice:
    """A new notice to the address that an account has just left."""
    return Notice(ids.new_uuid7(), NoticeKind.EMAIL_CHANGED, user_id=user_id, email_folded=email_folded)


def notice_of_order(kind: NoticeKind, user_id: UUID, order: OrderNews, *, event_id: str, channel: Channel) -> Notice:
    """The notice of an event on a channel: the same id each time."""
    assert kind in ORDER_KINDS
    return Notice(id_of_order_notice(channel, event_id), kind, user_id=user_id, order=order)


def id_of_order_notice(channel: Channel, event_id: str) -> UUID:
    """The id of the notice of an event on a channel."""
    return ids.id_of_name(f"notice\0{channel}\0{event_id}")


def notice_event(notice: Notice) -> dict[str, Any]:
    """The event of an outbox row, and the message of a queue."""
    data: dict[str, Any] = {}
    if notice.user_id is not None:
        data["user_id"] = str(notice.user_id)
    if notice.email_folded is not None:
        data["email"] = notice.email_folded
    if notice.order is not None:
        data["order"] = _order_document(notice.order)
    return {
        "id": str(notice.id),
        "type": f"notice.{notice.kind.value}",
        "schema": NOTICE_SCHEMA,
        "key": notice.key,
        "data": data,
    }


def parse_notice(body: bytes) -> Notice:
    """Inverse of `notice_event` and `json`; MalformedNotice for anything else."""
    try:
        event = json.loads(body)
        schema, data = event["schema"], event["data"]
        kind = NoticeKind(event["type"].removeprefix("notice."))
        notice_id = ids.parse_uuid(event["id"])
        user_id, email = data.get("user_id"), data.get("email")
        user = None if user_id is None else ids.parse_uuid(user_id)
        order = _parse_order(data["order"]) if kind in ORDER_KINDS else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedNotice("not a notice") from error
    if schema != NOTICE_SCHEMA:
        raise MalformedNotice(f"schema {schema}")
    parts = (user_id is not None) + (email is not None)
    wanted = 2 if kind is NoticeKind.EMAIL_CHANGED else 1
    if notice_id is None or parts != wanted or (user_id is not None and user is None):
        raise MalformedNotice("ids")
    if kind in ORDER_KINDS and user is None:
        raise MalformedNotice("an order without its user")
    if email is not None and not (isinstance(email, str) and email.isascii() and email.isprintable()):
        raise MalformedNotice("email")  # PostgreSQL would refuse a NUL at each attempt
    return Notice(notice_id, kind, user, email, order)


def parse_lines(items: Any) -> tuple[NoticeLine, ...]:
    """Lines out of a JSON value, as events and notices have them; ValueError, KeyError or TypeError for others."""
    if not isinstance(items, list) or not 1 <= len(items) <= LINES_MAX:
        raise ValueError("not 1 to 8 lines")
    return tuple(_parse_line(item) for item in items)


def amount(value: Any) -> int:
    """An amount in minor units out of a JSON value; ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("not an amount")
    return value


def currency(value: Any) -> str:
    """A currency code out of a JSON value; ValueError for anything else."""
    if not isinstance(value, str) or len(value) != 3 or not (value.isascii() and value.isalpha()):
        raise ValueError("not a currency")
    return value


def time_ms(value: Any) -> int:
    """Unix milliseconds out of a JSON value, before the year 4000; ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 64_000_000_000_000:
        raise ValueError("not a time")
    return value


def _parse_line(item: Any) -> NoticeLine:
    sku, quantity = item["sku"], item["quantity"]
    if not isinstance(sku, str) or not 1 <= len(sku) <= SKU_LENGTH_MAX or not sku.isprintable():
        raise ValueError("not a SKU")
    if type(quantity) is not int or not 1 <= quantity <= QUANTITY_MAX:
        raise ValueError("not a quantity")
    return NoticeLine(sku, quantity, amount(item["unit_price_minor"]))


def _order_document(order: OrderNews) -> dict[str, Any]:
    document: dict[str, Any] = {
        "order_id": str(order.order_id),
        "time_ms": order.at_ms,
        "currency": order.currency,
        "amount_minor": order.amount_minor,
    }
    if order.lines:
        document["items"] = [
            {"sku": line.sku, "quantity": line.quantity, "unit_price_minor": line.unit_price_minor}
            for line in order.lines
        ]
    if order.expires_at_ms is not None:
        document["expires_at_ms"] = order.expires_at_ms
    if order.reason is not None:
        document["reason"] = order.reason.value
    return document


def _parse_order(document: Any) -> OrderNews:
    order_id = ids.parse_uuid(document["order_id"])
    if order_id is None:
        raise ValueError("not an order id")
    expires, reason = document.get("expires_at_ms"), document.get("reason")
    return OrderNews(
        order_id,
        time_ms(document["time_ms"]),
        currency(document["currency"]),
        amount(document["amount_minor"]),
        parse_lines(document["items"]) if "items" in document else (),
        None if expires is None else time_ms(expires),
        None if reason is None else RefundReason(reason),
    )
