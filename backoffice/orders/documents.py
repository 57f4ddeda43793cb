"""Orders as JSON: query and response models. Performs no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from backoffice.orders.store import Filter, Order, Transition
from backoffice.web.fields import Model, Page, Resource, Sku, Time, decode_cursor, encode_cursor, query_id
from backoffice.web.messages import invalid
from domain.orders import LINES_MAX, QUANTITY_MAX, OrderStatus
from domain.payments import NO_PAYMENT, PaymentState, shown_state
from payments.staff_refunds import PaymentRow, RefundRow

_KIND = "orders"
Status = Literal["reserved", "paid", "cancelled", "expired", "rejected"]


class LineView(Resource):
    """One SKU of an order."""

    sku: str
    quantity: int
    unit_price_minor: int


class OrderView(Resource):
    """An order."""

    order_id: UUID
    user_id: UUID
    sale_id: UUID
    status: Status
    items: list[LineView]
    total_minor: int
    currency: str
    reserved_at: Time
    expires_at: Time


class TransitionView(Resource):
    """One version of an order, with its time."""

    version: int
    status: Status
    at: Time


class PaymentView(Resource):
    """Money that came for an order: one event of the provider."""

    event_id: str
    state: Literal["received", "captured", "refund_due", "refunded"]
    amount_minor: int
    currency: str
    due_minor: int
    refunded_minor: int
    received_at: Time


class RefundView(Resource):
    """Money that goes back, or went back; `lines` only for a refund that staff asked for."""

    id: UUID
    event_id: str
    amount_minor: int
    currency: str
    reason: Literal["late", "second", "mismatch", "lost", "staff"]
    state: Literal["due", "done", "refused"]
    lines: list[str] | None
    restock: bool
    requested_by: UUID | None
    created_at: Time
    changed_at: Time


class OrderWithHistory(OrderView):
    """An order with all its versions and all its money, oldest first."""

    payment: Literal["none", "captured", "refund_due", "refunded"]
    history: list[TransitionView]
    payments: list[PaymentView]
    refunds: list[RefundView]


class LineInput(Model):
    """A line to refund. `quantity`, if it is given, must be the line's: a line is refunded as a whole."""

    sku: Sku
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)] | None = None


class RefundInput(Model):
    """A refund: all lines that are left, or some; `restock` puts their units on sale again."""

    lines: (
        Annotated[
            list[Sku | LineInput], Field(min_length=1, max_length=LINES_MAX, json_schema_extra={"uniqueItems": True})
        ]
        | None
    ) = None
    restock: bool = False


class OrderList(Resource):
    """A page of orders, newest first."""

    items: list[OrderView]
    next_cursor: str | None


class OrderQuery(Page):
    """Filters of the list."""

    user_id: str | None = Field(None, json_schema_extra={"format": "uuid"})
    sale_id: str | None = Field(None, json_schema_extra={"format": "uuid"})
    status: Status | None = None


def order_filter(query: OrderQuery) -> Filter:
    """The filter of a query; Refused for an invalid id or cursor."""
    return Filter(
        user_id=query_id("/user_id", query.user_id),
        sale_id=query_id("/sale_id", query.sale_id),
        status=None if query.status is None else OrderStatus[query.status.upper()],
        before=decode_cursor(_KIND, query.cursor),
    )


def order_list(orders: Iterable[Order], *, now: datetime, next_after: UUID | None) -> OrderList:
    """A page with statuses at a time; `next_after`: the last order of the page, None on the last page."""
    items = [OrderView.model_validate(_members(order, now)) for order in orders]
    return OrderList(items=items, next_cursor=None if next_after is None else encode_cursor(_KIND, next_after))


def order_with_history(
    order: Order, history: Iterable[Transition], money: tuple[list[PaymentRow], list[RefundRow]], *, now: datetime
) -> OrderWithHistory:
    """An order with its status at a time, its versions and its money."""
    payments, refunds = money
    shown = shown_state([PaymentState(payment.state) for payment in payments])
    if shown == NO_PAYMENT and order.status == OrderStatus.PAID:
        shown = PaymentState.CAPTURED.value
    steps = [{"version": step.version, "status": OrderStatus(step.status).label, "at": step.at} for step in history]
    more = {
        "payment": shown,
        "history": steps,
        "payments": [asdict(one) for one in payments],
        "refunds": [asdict(one) for one in refunds],
    }
    return OrderWithHistory.model_validate({**_members(order, now), **more})


def _members(order: Order, now: datetime) -> dict[str, object]:
    return {
        "order_id": order.id,
        "user_id": order.user_id,
        "sale_id": order.sale_id,
        "status": order.status_at(now).label,
        "items": order.lines,
        "total_minor": order.total_minor,
        "currency": order.currency,
        "reserved_at": order.reserved_at,
        "expires_at": order.expires_at,
    }


def quantities(lines: list[str | LineInput] | None) -> dict[str, int | None] | None:
    """The chosen lines, with a quantity where one was given; None for all. Refused for a line that is given twice."""
    if lines is None:
        return None
    chosen: dict[str, int | None] = {}
    for place, line in enumerate(lines):
        sku, quantity = (line, None) if isinstance(line, str) else (line.sku, line.quantity)
        if sku in chosen:
            raise invalid(f"/lines/{place}", "given twice")
        chosen[sku] = quantity
    return chosen
