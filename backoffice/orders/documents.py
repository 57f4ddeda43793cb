"""Orders as JSON: query and response models. Performs no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from backoffice.orders.store import Filter, Order, Transition
from backoffice.web.fields import Page, Resource, Time, decode_cursor, encode_cursor, query_id
from domain.orders import OrderStatus

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


class OrderWithHistory(OrderView):
    """An order with all its versions, oldest first."""

    history: list[TransitionView]


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


def order_with_history(order: Order, history: Iterable[Transition], *, now: datetime) -> OrderWithHistory:
    """An order with its status at a time, and its versions."""
    steps = [{"version": step.version, "status": OrderStatus(step.status).label, "at": step.at} for step in history]
    return OrderWithHistory.model_validate({**_members(order, now), "history": steps})


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
