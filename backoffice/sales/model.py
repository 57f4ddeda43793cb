"""A sale as the catalogue has it, and which changes are legal when. Performs no I/O.

Each rule takes a sale and the time (Redis time) and gives the changed sale; `NotNow` says why not. Equal to the sale that
came in means that there is nothing to do: a repeated request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from domain.sales import LaneSaleState, SaleDefinition, SaleItem, SaleState, state_at

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Stage(StrEnum):
    """How far publishing has come."""

    DRAFT = "draft"
    LOADING = "loading"  # loaded_epoch is committed: lanes may know the sale, buyers cannot see it yet
    PUBLISHED = "published"


class NotNow(Exception):
    """The sale's state does not allow it; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Item:
    """One SKU of a sale; `stock` is what it began with."""

    sku: str
    stock: int
    price_minor: int
    per_user_limit: int


@dataclass(frozen=True, slots=True)
class Sale:
    """A row of `sales` with its items in index order."""

    id: UUID
    name: str
    stage: Stage
    paused: bool
    ended: bool
    starts_at: datetime
    ends_at: datetime
    hold_seconds: int
    currency: str
    lane_count: int
    lanes: tuple[int, ...]
    epoch: int
    version: int
    items: tuple[Item, ...]

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Sale:
        """Of a row as `sales.sql` selects it."""
        return cls(
            id=row["id"],
            name=row["name"],
            stage=Stage(row["stage"]),
            paused=row["paused"],
            ended=row["ended"],
            starts_at=row["starts_at"],
            ends_at=row["ends_at"],
            hold_seconds=row["hold_seconds"],
            currency=row["currency"],
            lane_count=row["lane_count"],
            lanes=tuple(row["lanes"] or ()),
            epoch=row["epoch"],
            version=row["version"],
            items=tuple(Item(**item) for item in row["items"]),
        )

    @property
    def definition(self) -> SaleDefinition:
        """What lanes and edges are told. Only once lanes are fixed."""
        assert self.lanes, "a draft has no definition"
        return SaleDefinition(
            sale_id=self.id,
            name=self.name,
            epoch=self.epoch,
            version=self.version,
            state=self._lane_state,
            starts_at_ms=unix_ms(self.starts_at),
            ends_at_ms=unix_ms(self.ends_at),
            hold_ms=self.hold_seconds * 1000,
            currency=self.currency,
            lanes=self.lanes,
            items=tuple(SaleItem(item.sku, item.price_minor, item.per_user_limit) for item in self.items),
        )

    def state(self, now_ms: int) -> SaleState:
        """The state to present at a time."""
        if self.stage is not Stage.PUBLISHED:
            return SaleState.DRAFT
        return state_at(
            self._lane_state,
            starts_at_ms=unix_ms(self.starts_at),
            ends_at_ms=unix_ms(self.ends_at),
            now_ms=now_ms,
        )

    def is_kept(self, now_ms: int, *, kept: timedelta) -> bool:
        """Whether Redis still has a published sale: until `kept` after its end. Later only PostgreSQL knows of it."""
        return now_ms < unix_ms(self.ends_at) + kept // timedelta(milliseconds=1)

    def index_of(self, sku: str) -> int | None:
        """The SKU's index, None when the sale does not have it."""
        return next((index for index, item in enumerate(self.items) if item.sku == sku), None)

    @property
    def _lane_state(self) -> LaneSaleState:
        if self.ended:
            return LaneSaleState.ENDED
        return LaneSaleState.PAUSED if self.paused else LaneSaleState.RUNNING


def unix_ms(time: datetime) -> int:
    """Milliseconds since 1970, exact (floats are not)."""
    return (time - EPOCH) // timedelta(milliseconds=1)


def paused(sale: Sale, now_ms: int) -> Sale:
    """No orders until resumed. Only an open sale is paused; one that is to come can be moved or ended."""
    state = _alive(sale, now_ms, "paused")
    if state is not SaleState.PAUSED and not state.may_become(SaleState.PAUSED):
        raise NotNow(f"The sale is {state}: only an open one can be paused")
    return replace(sale, paused=True)


def resumed(sale: Sale, now_ms: int) -> Sale:
    """Orders again, within the window."""
    _alive(sale, now_ms, "resumed")
    return replace(sale, paused=False)


def ended(sale: Sale, now_ms: int) -> Sale:
    """No orders any more; the window ends now. A sale that is over by time is left as it is."""
    if sale.stage is not Stage.PUBLISHED:
        raise NotNow("A draft cannot be ended")
    if sale.state(now_ms) is SaleState.ENDED:
        return sale
    return replace(sale, ended=True, ends_at=EPOCH + timedelta(milliseconds=now_ms))


def changed(
    sale: Sale,
    now_ms: int,
    *,
    name: str | None,
    starts_at: datetime | None,
    ends_at: datetime | None,
    frozen: tuple[str, ...],
) -> Sale:
    """A published sale with another name or window; `frozen` are members asked for that never change after publishing."""
    state = _alive(sale, now_ms, "changed")
    if frozen:
        raise NotNow(f"Published: {', '.join(frozen)} cannot change any more")
    if starts_at is not None and starts_at != sale.starts_at and unix_ms(sale.starts_at) <= now_ms:
        raise NotNow(f"The sale is {state}: its start has passed and cannot move")
    return replace(sale, name=name or sale.name, starts_at=starts_at or sale.starts_at, ends_at=ends_at or sale.ends_at)


def restockable(sale: Sale, now_ms: int) -> None:
    """Whether units may be added."""
    _alive(sale, now_ms, "restocked")


def _alive(sale: Sale, now_ms: int, what: str) -> SaleState:
    if sale.stage is not Stage.PUBLISHED:
        raise NotNow(f"A draft cannot be {what}" if sale.stage is Stage.DRAFT else "The sale is just being published")
    state = sale.state(now_ms)
    if state is SaleState.ENDED:
        raise NotNow("The sale has ended")
    return state
