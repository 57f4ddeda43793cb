"""Sales over HTTP, for staff."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated
from uuid import UUID

from pydantic import Field, model_validator

from backoffice.sales import model
from backoffice.sales.lanes import LaneForgot, SaleLanes
from backoffice.sales.model import Item, NotNow, Sale, Stage, unix_ms
from backoffice.sales.service import KeyClash, SaleMissing, SaleService, SkuMissing
from backoffice.sales.store import KeyReused, NewSale, ProductsMissing, Sales, StockTooHigh
from backoffice.stores import Stores
from backoffice.web.fields import (
    Change,
    Model,
    Moment,
    Name,
    Page,
    PriceMinor,
    Resource,
    Sku,
    Time,
    decode_cursor,
    encode_cursor,
)
from backoffice.web.idempotency import idempotency_key, required_idempotency_key
from backoffice.web.messages import STAFF, Answer, Call, Refused, invalid
from backoffice.web.routing import Route
from domain import ids
from domain.problems import FieldError, Problem
from domain.sales import PER_USER_LIMIT_MAX, SKUS_MAX, STOCK_MAX, SaleState

_KIND = "sales"
HOLD_S_MAX = 86_400
LANES_MAX = 1  # more when lanes can lend one another stock

HoldSeconds = Annotated[int, Field(ge=1, le=HOLD_S_MAX)]
Lanes = Annotated[int, Field(ge=1, le=LANES_MAX)]


class ItemInput(Model):
    """One SKU to sell."""

    sku: Sku
    stock: Annotated[int, Field(ge=0, le=STOCK_MAX)]
    price_minor: PriceMinor
    per_user_limit: Annotated[int, Field(ge=0, le=PER_USER_LIMIT_MAX, description="0: no limit")] = 0


Items = Annotated[list[ItemInput], Field(min_length=1, max_length=SKUS_MAX)]


def _distinct(items: list[ItemInput]) -> None:
    if len({item.sku for item in items}) != len(items):
        raise ValueError("items: a SKU is there twice")


class SaleInput(Model):
    """A sale to make."""

    name: Name
    starts_at: Moment
    ends_at: Moment
    hold_seconds: HoldSeconds
    lanes: Lanes = 1
    items: Items

    @model_validator(mode="after")
    def _consistent(self) -> SaleInput:
        _distinct(self.items)
        return self


class SaleChange(Change):
    """A published sale takes a name and a window only."""

    name: Name | None = None
    starts_at: Moment | None = None
    ends_at: Moment | None = None
    hold_seconds: HoldSeconds | None = None
    lanes: Lanes | None = None
    items: Items | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SaleChange:
        _distinct(self.items or [])
        return self


class RestockInput(Model):
    """Units to add to one SKU."""

    sku: Sku
    quantity: Annotated[int, Field(ge=1, le=STOCK_MAX)]


class ItemView(Resource):
    """One SKU of a sale; `stock` is what it began with."""

    sku: str
    stock: int
    price_minor: int
    per_user_limit: int


class SaleView(Resource):
    """A sale."""

    id: UUID
    name: str
    state: SaleState
    starts_at: Time
    ends_at: Time
    hold_seconds: int
    currency: str
    lanes: int
    items: list[ItemView]


class SaleList(Resource):
    """A page of sales, newest first."""

    items: list[SaleView]
    next_cursor: str | None


class ReportItem(Resource):
    """Where the units of one SKU are; `available` includes those in transit between lanes."""

    sku: str
    initial: int
    restocked: int
    available: int
    reserved: int
    paid: int
    rejected: int


class Invariants(Resource):
    """The reconciler's last verdicts; null while one cannot be judged."""

    A: bool | None
    B: bool | None


class Report(Resource):
    """A sale in numbers."""

    sale_id: UUID
    state: SaleState
    items: list[ReportItem]
    refused: dict[str, int]
    invariants: Invariants


class SaleRoutes:
    """The operations."""

    def __init__(self, stores: Stores, sales: Sales, lanes: SaleLanes, service: SaleService) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._sales = sales
        self._lanes = lanes
        self._service = service

    async def create(self, call: Call, body: SaleInput) -> Answer:
        """A draft; with an Idempotency-Key once per key and caller."""
        key = idempotency_key(call)
        new = NewSale(
            id=ids.new_uuid7(),
            name=body.name,
            starts_at=body.starts_at,
            ends_at=body.ends_at,
            hold_seconds=body.hold_seconds,
            lane_count=body.lanes,
            items=_items(body.items),
            created_by=call.who.user_id,
            idempotency_key=key,
            fingerprint=None if key is None else hashlib.sha256(body.model_dump_json().encode()).digest(),
        )
        now_ms = await self._stores.now_ms()
        with _refusals():
            if key is None or not await self._sales.was_made(new):
                _check_window(body, now_ms, asked=body.model_fields_set)
            sale_id, replayed = await self._sales.create(new)
            sale = await self._service.get(sale_id)
        headers = {"location": f"/v1/sales/{sale_id}"}
        if replayed:
            headers["idempotency-replayed"] = "true"
        return Answer(201, _view(sale, now_ms), headers)

    async def get(self, call: Call) -> Answer:
        """One sale."""
        with _refusals():
            return await self._shown(await self._service.get(_sale_id(call)))

    async def page(self, _: Call, query: Page) -> Answer:
        """Sales, newest first."""
        found = await self._sales.page(before=decode_cursor(_KIND, query.cursor), limit=query.limit + 1)
        shown = found[: query.limit]
        now_ms = await self._stores.now_ms()
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=SaleList(items=[_view(sale, now_ms) for sale in shown], next_cursor=next_cursor))

    async def change(self, call: Call, body: SaleChange) -> Answer:
        """Another name or window; of a draft, anything."""
        sale_id = _sale_id(call)
        with _refusals():
            for _ in range(2):  # a draft may be published meanwhile: then the rules of published sales hold
                sale = await self._service.get(sale_id)
                if sale.stage is not Stage.DRAFT:
                    return await self._shown(await self._service.change(sale_id, _rule(body)))
                draft = _changed_draft(sale, body)
                _check_window(draft, await self._stores.now_ms(), asked=body.model_fields_set)
                if await self._sales.change_draft(draft):
                    return await self._shown(await self._service.get(sale_id))
        raise Refused(Problem.SALE_STATE_CONFLICT, "The sale is being changed by others, try again")

    async def publish(self, call: Call) -> Answer:
        """Bring the sale before buyers; repeating confirms or completes it."""
        with _refusals():
            try:
                sale = await self._service.publish(_sale_id(call))
            except ProductsMissing as error:
                raise Refused(Problem.SALE_STATE_CONFLICT, str(error)[:1000]) from error
            return await self._shown(sale)

    def transition(self, rule: Callable[[Sale, int], Sale]) -> Callable[[Call], Awaitable[Answer]]:
        """The operation that applies a rule of `sales.model`."""

        async def apply(call: Call) -> Answer:
            with _refusals():
                return await self._shown(await self._service.change(_sale_id(call), rule))

        return apply

    async def restock(self, call: Call, body: RestockInput) -> Answer:
        """Add units, once per Idempotency-Key."""
        sale_id = _sale_id(call)
        key = required_idempotency_key(call)
        with _refusals():
            sale, replayed = await self._service.restock(
                sale_id, sku=body.sku, quantity=body.quantity, key=key, created_by=call.who.user_id
            )
        return replace(await self._shown(sale), headers={"idempotency-replayed": "true"} if replayed else {})

    async def report(self, call: Call) -> Answer:
        """Where every unit is, what was refused, and whether the invariants hold."""
        with _refusals():
            sale = await self._service.get(_sale_id(call))
            stock = await self._service.stock(sale)
        restocked = await self._sales.restocked_units(sale.id)
        verdict = await self._lanes.verdict(sale.id)
        items = [
            ReportItem(
                sku=item.sku,
                initial=item.stock,
                restocked=restocked.get(index, 0),
                available=count.available + count.lent - count.borrowed,
                reserved=count.reserved,
                paid=count.paid,
                rejected=count.rejected,
            )
            for index, (item, count) in enumerate(zip(sale.items, stock, strict=True))
        ]
        report = Report(
            sale_id=sale.id,
            state=sale.state(await self._stores.now_ms()),
            items=items,
            refused=await self._lanes.refused(sale.id),
            invariants=Invariants(A=verdict.get("A"), B=verdict.get("B")),
        )
        return Answer(body=report)

    async def _shown(self, sale: Sale) -> Answer:
        return Answer(body=_view(sale, await self._stores.now_ms()))


def _sale_id(call: Call) -> UUID:
    return call.path_id("sale_id", Problem.SALE_NOT_FOUND)


def _items(items: list[ItemInput]) -> tuple[Item, ...]:
    return tuple(Item(item.sku, item.stock, item.price_minor, item.per_user_limit) for item in items)


def _view(sale: Sale, now_ms: int) -> SaleView:
    return SaleView(
        id=sale.id,
        name=sale.name,
        state=sale.state(now_ms),
        starts_at=sale.starts_at,
        ends_at=sale.ends_at,
        hold_seconds=sale.hold_seconds,
        currency=sale.currency,
        lanes=sale.lane_count,
        items=[ItemView.model_validate(item, from_attributes=True) for item in sale.items],
    )


def _check_window(sale: Sale | SaleInput, now_ms: int, *, asked: Set[str]) -> None:
    """Refused for a window that cannot be, at the place of a member that was asked for; others are not judged."""
    errors = []
    if "ends_at" in asked:
        if sale.starts_at >= sale.ends_at:
            errors.append(FieldError("/ends_at", "must be later than starts_at"))
        if unix_ms(sale.ends_at) <= now_ms:
            errors.append(FieldError("/ends_at", "must be in the future"))
    elif "starts_at" in asked:
        if sale.starts_at >= sale.ends_at:
            errors.append(FieldError("/starts_at", "must be earlier than ends_at"))
        if unix_ms(sale.ends_at) <= now_ms:
            errors.append(FieldError("/starts_at", "ends_at has passed: move it, too"))
    if "starts_at" in asked and unix_ms(sale.starts_at) < 0:
        errors.append(FieldError("/starts_at", "must be later than 1970"))
    if errors:
        raise Refused(Problem.VALIDATION_FAILED, errors=tuple(errors))


def _rule(body: SaleChange) -> Callable[[Sale, int], Sale]:
    frozen = tuple(sorted(body.model_fields_set & {"hold_seconds", "lanes", "items"}))
    return partial(_change, body=body, frozen=frozen)


def _change(sale: Sale, now_ms: int, *, body: SaleChange, frozen: tuple[str, ...]) -> Sale:
    changed = model.changed(sale, now_ms, name=body.name, starts_at=body.starts_at, ends_at=body.ends_at, frozen=frozen)
    # Here, of the sale that is written: another change may have moved the other end since the request came.
    _check_window(changed, now_ms, asked=body.model_fields_set)
    return changed


def _changed_draft(sale: Sale, body: SaleChange) -> Sale:
    return replace(
        sale,
        name=body.name or sale.name,
        starts_at=body.starts_at or sale.starts_at,
        ends_at=body.ends_at or sale.ends_at,
        hold_seconds=body.hold_seconds or sale.hold_seconds,
        lane_count=body.lanes or sale.lane_count,
        items=sale.items if body.items is None else _items(body.items),
    )


@contextmanager
def _refusals() -> Iterator[None]:
    """What the layers below say, as problems."""
    try:
        yield
    except SaleMissing as error:
        raise Refused(Problem.SALE_NOT_FOUND) from error
    except SkuMissing as error:
        raise Refused(Problem.SKU_NOT_FOUND) from error
    except NotNow as error:
        raise Refused(Problem.SALE_STATE_CONFLICT, str(error)) from error
    except (KeyReused, KeyClash) as error:
        raise Refused(Problem.IDEMPOTENCY_KEY_REUSED, "The Idempotency-Key was used with something else") from error
    except StockTooHigh as error:
        raise invalid("/quantity", f"the stock would be beyond {STOCK_MAX}") from error
    except ProductsMissing as error:
        errors = tuple(FieldError(f"/items/{place}/sku", reason) for place, reason in error.reasons.items())
        raise Refused(Problem.VALIDATION_FAILED, errors=errors) from error
    except LaneForgot as error:
        detail = "Redis has lost the sale's stock; the sale must be rebuilt"
        raise Refused(Problem.DEPENDENCY_UNAVAILABLE, detail, retry_after_s=10) from error


def routes(sales: SaleRoutes) -> tuple[Route, ...]:
    """Operations of this subject."""
    one = "/v1/sales/{sale_id}"
    conflict = (Problem.SALE_NOT_FOUND, Problem.SALE_STATE_CONFLICT)

    def act(verb: str, handler: Callable[[Call], Awaitable[Answer]], summary: str) -> Route:
        return Route(
            "POST", f"{one}/{verb}", handler, summary, "sales", roles=STAFF, answers=SaleView, problems=conflict
        )

    return (
        Route("GET", "/v1/sales", sales.page, "List sales", "sales", roles=STAFF, query=Page, answers=SaleList),
        Route(
            "POST",
            "/v1/sales",
            sales.create,
            "Make a sale (a draft)",
            "sales",
            roles=STAFF,
            body=SaleInput,
            answers=SaleView,
            status=201,
            problems=(Problem.IDEMPOTENCY_KEY_REUSED,),
            headers=("Idempotency-Key",),
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
        ),
        act("publish", sales.publish, "Bring a sale before buyers"),
        act("pause", sales.transition(model.paused), "Take no orders until resumed"),
        act("resume", sales.transition(model.resumed), "Take orders again"),
        act("end", sales.transition(model.ended), "Take no orders any more"),
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
        ),
        Route(
            "GET",
            f"{one}/report",
            sales.report,
            "A sale in numbers",
            "sales",
            roles=STAFF,
            answers=Report,
            problems=(Problem.SALE_NOT_FOUND,),
        ),
    )
