"""Sales over HTTP, for staff: handlers and route table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from backoffice.sales import model
from backoffice.sales.documents import (
    Report,
    RestockInput,
    SaleChange,
    SaleInput,
    SaleList,
    SaleView,
    new_sale,
    report_view,
    sale_changes,
    sale_view,
)
from backoffice.sales.model import LanesTooMany, Sale, SaleStateConflict, WindowInvalid
from backoffice.sales.service import SaleMissing, SaleService, SkuMissing
from backoffice.sales.store import ItemsNotSellable, StockTooHigh
from backoffice.web.fields import Page, decode_cursor, encode_cursor
from backoffice.web.idempotency import idempotency_key, required_idempotency_key
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Route
from domain.problems import FieldError, Problem
from domain.sales import STOCK_MAX
from reservation.lane import LaneForgot
from runtime.audit import Action

_KIND = "sales"
_REPLAYED = {"idempotency-replayed": "true"}


class SaleRoutes:
    """The handlers."""

    def __init__(self, service: SaleService) -> None:
        """Uses the service, owns nothing."""
        self._service = service

    async def create(self, call: Call, body: SaleInput) -> Answer:
        """Create a draft; with an Idempotency-Key once per key and caller."""
        new = new_sale(body, created_by=call.who.user_id, idempotency_key=idempotency_key(call))
        with _refusals():
            sale, replayed = await self._service.create(new)
        headers = {"location": f"/v1/sales/{sale.id}", **(_REPLAYED if replayed else {})}
        return await self._answer(sale, 201, headers)

    async def get(self, call: Call) -> Answer:
        """One sale."""
        with _refusals():
            return await self._answer(await self._service.get(_sale_id(call)))

    async def page(self, _: Call, query: Page) -> Answer:
        """Sales, newest first."""
        found = await self._service.page(before=decode_cursor(_KIND, query.cursor), limit=query.limit + 1)
        shown = found[: query.limit]
        now_ms = await self._service.now_ms()
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=SaleList(items=[sale_view(sale, now_ms) for sale in shown], next_cursor=next_cursor))

    async def change(self, call: Call, body: SaleChange) -> Answer:
        """Change any member of a draft, or name and window of a published sale."""
        with _refusals():
            return await self._answer(await self._service.update(_sale_id(call), sale_changes(body)))

    async def delete(self, call: Call) -> Answer:
        """Delete a draft."""
        with _refusals():
            await self._service.delete(_sale_id(call))
        return Answer(204)

    async def publish(self, call: Call) -> Answer:
        """Publish the sale; repeating the request confirms or completes it."""
        with _refusals():
            try:
                sale = await self._service.publish(_sale_id(call))
            except ItemsNotSellable as error:
                raise Refused(Problem.SALE_STATE_CONFLICT, str(error)[:1000]) from error
            return await self._answer(sale)

    def transition(self, rule: Callable[[Sale, int], Sale], action: Action) -> Callable[[Call], Awaitable[Answer]]:
        """The handler that applies a rule of `sales.model`, recorded as `action`."""

        async def apply(call: Call) -> Answer:
            with _refusals():
                return await self._answer(await self._service.change(_sale_id(call), rule, action))

        return apply

    async def restock(self, call: Call, body: RestockInput) -> Answer:
        """Add units, once per Idempotency-Key."""
        sale_id = _sale_id(call)
        key = required_idempotency_key(call)
        with _refusals():
            sale, replayed = await self._service.restock(
                sale_id, sku=body.sku, quantity=body.quantity, key=key, created_by=call.who.user_id
            )
        return await self._answer(sale, headers=_REPLAYED if replayed else {})

    async def report(self, call: Call) -> Answer:
        """The numbers of a sale: units by state, refusals, invariants."""
        with _refusals():
            report = await self._service.report(_sale_id(call))
        return Answer(body=report_view(report, await self._service.now_ms()))

    async def _answer(self, sale: Sale, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        return Answer(status, sale_view(sale, await self._service.now_ms()), headers or {})


def _sale_id(call: Call) -> UUID:
    return call.path_id("sale_id", Problem.SALE_NOT_FOUND)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn the exceptions of this subject into problems."""
    try:
        yield
    except SaleMissing as error:
        raise Refused(Problem.SALE_NOT_FOUND) from error
    except SkuMissing as error:
        raise Refused(Problem.SKU_NOT_FOUND) from error
    except SaleStateConflict as error:
        raise Refused(Problem.SALE_STATE_CONFLICT, str(error)) from error
    except WindowInvalid as error:
        raise Refused(Problem.VALIDATION_FAILED, errors=error.errors) from error
    except LanesTooMany as error:
        raise invalid("/lanes", f"{error}: choose from 1 to {error.lanes_max}, or auto") from error
    except StockTooHigh as error:
        raise invalid("/quantity", f"the stock would exceed {STOCK_MAX} units") from error
    except ItemsNotSellable as error:
        errors = tuple(FieldError(f"/items/{place}/sku", reason) for place, reason in error.reasons.items())
        raise Refused(Problem.VALIDATION_FAILED, errors=errors) from error
    except LaneForgot as error:
        detail = "Redis has lost the stock of the sale. The sale must be rebuilt"
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, retry_after_s=10) from error


def routes(sales: SaleRoutes) -> tuple[Route, ...]:
    """The route table of this subject."""
    one = "/v1/sales/{sale_id}"
    conflict = (Problem.SALE_NOT_FOUND, Problem.SALE_STATE_CONFLICT)

    def transition(rule: Callable[[Sale, int], Sale], action: Action, summary: str) -> Route:
        return verb(sales.transition(rule, action), action, summary)

    def verb(handler: Callable[[Call], Awaitable[Answer]], action: Action, summary: str) -> Route:
        path = f"{one}/{action.partition('.')[2]}"
        return Route(
            "POST", path, handler, summary, "sales", roles=STAFF, answers=SaleView, problems=conflict, action=action
        )

    return (
        Route("GET", "/v1/sales", sales.page, "List sales", "sales", roles=STAFF, query=Page, answers=SaleList),
        Route(
            "POST",
            "/v1/sales",
            sales.create,
            "Create a sale as a draft",
            "sales",
            roles=STAFF,
            body=SaleInput,
            answers=SaleView,
            status=201,
            problems=(Problem.IDEMPOTENCY_KEY_REUSED,),
            headers=("Idempotency-Key",),
            action=Action.SALE_CREATE,
        ),
        Route(
            "GET",
            one,
            sales.get,
            "Read a sale",
            "sales",
            roles=STAFF,
            answers=SaleView,
            problems=(Problem.SALE_NOT_FOUND,),
        ),
        Route(
            "PATCH",
            one,
            sales.change,
            "Change a sale",
            "sales",
            roles=STAFF,
            body=SaleChange,
            answers=SaleView,
            problems=conflict,
            action=Action.SALE_CHANGE,
        ),
        Route(
            "DELETE",
            one,
            sales.delete,
            "Delete a draft",
            "sales",
            roles=STAFF,
            status=204,
            problems=conflict,
            action=Action.SALE_DELETE,
        ),
        verb(sales.publish, Action.SALE_PUBLISH, "Publish a sale"),
        transition(model.paused, Action.SALE_PAUSE, "Pause a sale: no orders until it is resumed"),
        transition(model.resumed, Action.SALE_RESUME, "Resume a paused sale"),
        transition(model.ended, Action.SALE_END, "End a sale: no more orders"),
        Route(
            "POST",
            f"{one}/restock",
            sales.restock,
            "Add units of a SKU",
            "sales",
            roles=STAFF,
            body=RestockInput,
            answers=SaleView,
            problems=(
                *conflict,
                Problem.SKU_NOT_FOUND,
                Problem.IDEMPOTENCY_KEY_MISSING,
                Problem.IDEMPOTENCY_KEY_REUSED,
            ),
            headers=("Idempotency-Key!",),
            action=Action.SALE_RESTOCK,
        ),
        Route(
            "GET",
            f"{one}/report",
            sales.report,
            "Read the numbers of a sale",
            "sales",
            roles=STAFF,
            answers=Report,
            problems=(Problem.SALE_NOT_FOUND,),
        ),
    )
