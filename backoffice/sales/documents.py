"""Sales as JSON: request and response models, and the conversion from and to `sales.model`. Performs no I/O."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from backoffice.sales.model import EPOCH, LANES_MAX, Item, LaneChoice, NewSale, Sale, SaleChanges, SaleReport
from backoffice.web.fields import Change, Model, Moment, Name, PriceMinor, Resource, Sku, Time
from domain import ids
from domain.sales import PER_USER_LIMIT_MAX, SKUS_MAX, STOCK_MAX, SaleState

HOLD_S_MAX = 86_400
BUYERS_MAX = 1_000_000_000

HoldSeconds = Annotated[int, Field(ge=1, le=HOLD_S_MAX)]
Buyers = Annotated[
    int, Field(ge=1, le=BUYERS_MAX, description="Buyers expected in the first seconds; `lanes: auto` uses the number")
]


def _lanes(value: Any) -> LaneChoice:
    if value == "auto" or (type(value) is int and 1 <= value <= LANES_MAX):
        choice: LaneChoice = value
        return choice
    raise ValueError(f"must be an integer from 1 to {LANES_MAX}, or auto")


Lanes = Annotated[
    LaneChoice,
    PlainValidator(_lanes),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": LANES_MAX}, {"const": "auto"}],
            "description": "Lanes over which the stock is spread; auto: from the expected buyers, or the stock",
        }
    ),
]


class ItemInput(Model):
    """One SKU to sell."""

    sku: Sku
    stock: Annotated[int, Field(ge=0, le=STOCK_MAX)]
    price_minor: PriceMinor
    per_user_limit: Annotated[int, Field(ge=0, le=PER_USER_LIMIT_MAX, description="0: no limit")] = 0


Items = Annotated[list[ItemInput], Field(min_length=1, max_length=SKUS_MAX)]


def _check_distinct(items: list[ItemInput]) -> None:
    if len({item.sku for item in items}) != len(items):
        raise ValueError("items: each SKU may appear only once")


class SaleInput(Model):
    """A sale to create."""

    name: Name
    starts_at: Moment
    ends_at: Moment
    hold_seconds: HoldSeconds
    lanes: Lanes = 1
    expected_buyers: Buyers | None = None
    items: Items

    @model_validator(mode="after")
    def _consistent(self) -> SaleInput:
        _check_distinct(self.items)
        return self


class SaleChange(Change):
    """Members to change. After publishing only the name and the window can change."""

    name: Name | None = None
    starts_at: Moment | None = None
    ends_at: Moment | None = None
    hold_seconds: HoldSeconds | None = None
    lanes: Lanes | None = None
    expected_buyers: Buyers | None = None
    items: Items | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SaleChange:
        _check_distinct(self.items or [])
        return self


class RestockInput(Model):
    """Units to add to one SKU."""

    sku: Sku
    quantity: Annotated[int, Field(ge=1, le=STOCK_MAX)]


class ItemView(Resource):
    """One SKU of a sale; `stock` is the initial stock."""

    sku: str
    stock: int
    price_minor: int
    per_user_limit: int


class SaleView(Resource):
    """A sale. `lanes`: over so many lanes its stock is spread, also when `lanes_auto` chose the number."""

    id: UUID
    name: str
    state: SaleState
    starts_at: Time
    ends_at: Time
    hold_seconds: int
    currency: str
    lanes: int
    lanes_auto: bool
    expected_buyers: int | None
    items: list[ItemView]


class SaleList(Resource):
    """A page of sales, newest first."""

    items: list[SaleView]
    next_cursor: str | None


class ReportItem(Resource):
    """The units of one SKU by state; `available` includes units in transit between lanes."""

    sku: str
    initial: int
    restocked: int
    available: int
    reserved: int
    paid: int
    rejected: int


class Invariants(Resource):
    """The reconciler's verdicts; null if the sale is not judged yet, and when the verdict is older than 15 s."""

    A: bool | None
    B: bool | None


class Report(Resource):
    """The numbers of a sale: stock, refusals by code, invariants.

    `deep_look_at`: since when the invariants include every stored order; null if they do not, or are null.
    """

    sale_id: UUID
    state: SaleState
    items: list[ReportItem]
    refused: dict[str, int]
    invariants: Invariants
    deep_look_at: Time | None


def new_sale(body: SaleInput, *, created_by: UUID, idempotency_key: str | None) -> NewSale:
    """The sale that a request asks for, under a new id."""
    return NewSale(
        id=ids.new_uuid7(),
        name=body.name,
        starts_at=body.starts_at,
        ends_at=body.ends_at,
        hold_seconds=body.hold_seconds,
        lanes=body.lanes,
        expected_buyers=body.expected_buyers,
        items=_items(body.items),
        created_by=created_by,
        idempotency_key=idempotency_key,
        fingerprint=None if idempotency_key is None else _fingerprint(body),
    )


def _fingerprint(body: SaleInput) -> bytes:
    """Digest of a request, without the members that it leaves out: the same in releases that do not know them."""
    return hashlib.sha256(body.model_dump_json(exclude_none=True).encode()).digest()


def sale_changes(body: SaleChange) -> SaleChanges:
    """The changes that a request asks for."""
    return SaleChanges(
        name=body.name,
        starts_at=body.starts_at,
        ends_at=body.ends_at,
        hold_seconds=body.hold_seconds,
        lanes=body.lanes,
        expected_buyers=body.expected_buyers,
        items=None if body.items is None else _items(body.items),
    )


def sale_view(sale: Sale, now_ms: int) -> SaleView:
    """The sale with its state at a time."""
    return SaleView(
        id=sale.id,
        name=sale.name,
        state=sale.state(now_ms),
        starts_at=sale.starts_at,
        ends_at=sale.ends_at,
        hold_seconds=sale.hold_seconds,
        currency=sale.currency,
        lanes=sale.lane_count,
        lanes_auto=sale.lanes_auto,
        expected_buyers=sale.expected_buyers,
        items=[ItemView.model_validate(item, from_attributes=True) for item in sale.items],
    )


def report_view(report: SaleReport, now_ms: int) -> Report:
    """The report with the sale's state at a time."""
    items = [
        ReportItem(
            sku=item.sku,
            initial=item.stock,
            restocked=report.restocked.get(index, 0),
            available=max(0, stock.unsold),  # the lanes are not read at one moment
            reserved=stock.reserved,
            paid=stock.paid,
            rejected=stock.rejected,
        )
        for index, (item, stock) in enumerate(zip(report.sale.items, report.stock, strict=True))
    ]
    deep_at_ms = report.verdict.deep_at_ms
    return Report(
        sale_id=report.sale.id,
        state=report.sale.state(now_ms),
        items=items,
        refused=dict(report.refused),
        invariants=Invariants(A=report.verdict.a, B=report.verdict.b),
        deep_look_at=None if deep_at_ms is None else EPOCH + timedelta(milliseconds=deep_at_ms),
    )


def _items(items: list[ItemInput]) -> tuple[Item, ...]:
    return tuple(Item(item.sku, item.stock, item.price_minor, item.per_user_limit) for item in items)
