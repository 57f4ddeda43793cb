"""Orders over HTTP, for staff."""

from __future__ import annotations

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import Field

from backoffice.orders.store import Filter, Order, Orders, Transition, moment
from backoffice.stores import Stores
from backoffice.web.fields import Page, Resource, Time, decode_cursor, encode_cursor, query_id
from backoffice.web.messages import STAFF, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.orders import OrderStatus
from domain.problems import Problem

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
    """One version of an order and when it came to be."""

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
    """Which orders."""

    user_id: str | None = Field(None, json_schema_extra={"format": "uuid"})
    sale_id: str | None = Field(None, json_schema_extra={"format": "uuid"})
    status: Status | None = None


class OrderRoutes:
    """The operations."""

    def __init__(self, stores: Stores, orders: Orders) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._orders = orders

    async def page(self, _: Call, query: OrderQuery) -> Answer:
        """Orders of all shards, newest first."""
        wanted = Filter(
            user_id=query_id("/user_id", query.user_id),
            sale_id=query_id("/sale_id", query.sale_id),
            status=None if query.status is None else OrderStatus[query.status.upper()],
            before=decode_cursor(_KIND, query.cursor),
        )
        now = moment(await self._stores.now_ms())
        found = await self._orders.page(wanted, limit=query.limit + 1, now=now)
        shown = found[: query.limit]
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        items = [OrderView.model_validate(_members(order, now)) for order in shown]
        return Answer(body=OrderList(items=items, next_cursor=next_cursor))

    async def get(self, call: Call) -> Answer:
        """One order with its history, also when it is not stored yet."""
        found = await self._orders.get(call.path_id("order_id", Problem.ORDER_NOT_FOUND))
        if found is None:
            raise Refused(Problem.ORDER_NOT_FOUND)
        order, history = found
        members = _members(order, moment(await self._stores.now_ms()))
        return Answer(body=OrderWithHistory.model_validate({**members, "history": [_step(step) for step in history]}))


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


def _step(step: Transition) -> dict[str, object]:
    return {"version": step.version, "status": OrderStatus(step.status).label, "at": step.at}


def routes(orders: OrderRoutes) -> tuple[Route, ...]:
    """Operations of this subject."""
    return (
        Route(
            "GET", "/v1/orders", orders.page, "List orders", "orders", roles=STAFF, query=OrderQuery, answers=OrderList
        ),
        Route(
            "GET",
            "/v1/orders/{order_id}",
            orders.get,
            "Read an order with its history",
            "orders",
            roles=STAFF,
            answers=OrderWithHistory,
            problems=(Problem.ORDER_NOT_FOUND,),
        ),
    )
