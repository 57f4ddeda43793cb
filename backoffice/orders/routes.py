"""Orders over HTTP, for staff: handlers and route table."""

from __future__ import annotations

from backoffice.orders.documents import (
    OrderList,
    OrderQuery,
    OrderWithHistory,
    order_filter,
    order_list,
    order_with_history,
)
from backoffice.orders.service import OrderService
from backoffice.web.messages import STAFF, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.problems import Problem


class OrderRoutes:
    """The handlers."""

    def __init__(self, service: OrderService) -> None:
        """Uses the service, owns nothing."""
        self._service = service

    async def page(self, _: Call, query: OrderQuery) -> Answer:
        """Orders of all shards, newest first."""
        wanted = order_filter(query)
        now = await self._service.now()
        found = await self._service.page(wanted, limit=query.limit + 1, now=now)
        shown = found[: query.limit]
        next_after = shown[-1].id if len(found) > query.limit else None
        return Answer(body=order_list(shown, now=now, next_after=next_after))

    async def get(self, call: Call) -> Answer:
        """One order with its history, stored or not."""
        found = await self._service.get(call.path_id("order_id", Problem.ORDER_NOT_FOUND))
        if found is None:
            raise Refused(Problem.ORDER_NOT_FOUND)
        order, history = found
        return Answer(body=order_with_history(order, history, now=await self._service.now()))


def routes(orders: OrderRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
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
