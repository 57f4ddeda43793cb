"""Orders over HTTP, for staff: handlers and route table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from backoffice.orders.changes import NotOnSale, OrderChanges, OrderMissing, OrderStateConflict, UnknownLine
from backoffice.orders.documents import (
    OrderList,
    OrderQuery,
    OrderWithHistory,
    RefundInput,
    order_filter,
    order_list,
    order_with_history,
    quantities,
)
from backoffice.orders.service import OrderService
from backoffice.web.idempotency import required_idempotency_key
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Route
from domain.problems import Problem
from payments.staff_refunds import LineRefunded, NothingToRefund, NotPaid, RequestReused
from reservation.lane import LaneForgot
from runtime.audit.entries import Action


class OrderRoutes:
    """The handlers."""

    def __init__(self, service: OrderService, changes: OrderChanges) -> None:
        """Uses them, owns nothing."""
        self._service = service
        self._changes = changes

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
        return await self._answer(_order_id(call))

    async def cancel(self, call: Call) -> Answer:
        """Cancel a reserved order; its units are on sale again."""
        required_idempotency_key(call)  # the effect is the same for every key: an order is cancelled once
        order_id = _order_id(call)
        with _refusals():
            await self._changes.cancel(order_id)
        return await self._answer(order_id)

    async def refund(self, call: Call, body: RefundInput) -> Answer:
        """Give back the money of a paid order, or of some of its lines."""
        key = required_idempotency_key(call)
        order_id = _order_id(call)
        with _refusals():
            requested = await self._changes.refund(
                order_id,
                quantities=quantities(body.lines),
                restock=body.restock,
                key=key,
                requested_by=call.who.user_id,
            )
        return await self._answer(order_id, replayed=requested.replayed)

    async def _answer(self, order_id: UUID, *, replayed: bool = False) -> Answer:
        found = await self._service.get(order_id)
        if found is None:
            raise Refused(Problem.ORDER_NOT_FOUND)
        order, history = found
        money = await self._service.money(order_id)
        body = order_with_history(order, history, money, now=await self._service.now())
        return Answer(body=body, headers={"idempotency-replayed": "true"} if replayed else {})


def _order_id(call: Call) -> UUID:
    return call.path_id("order_id", Problem.ORDER_NOT_FOUND)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn the exceptions of this subject into problems."""
    try:
        yield
    except OrderMissing as error:
        raise Refused(Problem.ORDER_NOT_FOUND) from error
    except OrderStateConflict as error:
        raise Refused(Problem.ORDER_STATE_CONFLICT, str(error)) from error
    except NotPaid as error:
        raise Refused(Problem.ORDER_STATE_CONFLICT, "No payment was captured for this order") from error
    except LineRefunded as error:
        raise Refused(Problem.ORDER_STATE_CONFLICT, f"Refunded before: {error}") from error
    except NothingToRefund as error:
        raise Refused(Problem.ORDER_STATE_CONFLICT, "No amount is left to refund") from error
    except RequestReused as error:
        raise Refused(Problem.IDEMPOTENCY_KEY_REUSED) from error
    except UnknownLine as error:
        raise invalid("/lines", f"the order has no such line: {error}") from error
    except LaneForgot as error:
        detail = "Redis has lost the stock of the sale. The sale must be rebuilt"
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, retry_after_s=10) from error
    except NotOnSale as error:
        raise Refused(Problem.SALE_STATE_CONFLICT, "The sale takes no units: refund without restock") from error


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
        Route(
            "POST",
            "/v1/orders/{order_id}/cancel",
            orders.cancel,
            "Cancel a reserved order",
            "orders",
            roles=STAFF,
            answers=OrderWithHistory,
            problems=(Problem.ORDER_NOT_FOUND, Problem.ORDER_STATE_CONFLICT, Problem.IDEMPOTENCY_KEY_MISSING),
            headers=("Idempotency-Key!",),
            action=Action.ORDER_CANCEL,
        ),
        Route(
            "POST",
            "/v1/orders/{order_id}/refund",
            orders.refund,
            "Refund a paid order or some of its lines",
            "orders",
            roles=STAFF,
            body=RefundInput,
            answers=OrderWithHistory,
            problems=(
                Problem.ORDER_NOT_FOUND,
                Problem.ORDER_STATE_CONFLICT,
                Problem.SALE_STATE_CONFLICT,
                Problem.IDEMPOTENCY_KEY_MISSING,
                Problem.IDEMPOTENCY_KEY_REUSED,
            ),
            headers=("Idempotency-Key!",),
            action=Action.ORDER_REFUND,
        ),
    )
