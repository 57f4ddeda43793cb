"""A sale as the catalogue stores it, and the rules for its changes. Performs no I/O.

Each rule takes a sale and the current Redis time and returns the changed sale, or raises `SaleStateConflict`. A result
equal to the argument means that nothing has to change: the request is a repeat.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from domain.problems import FieldError
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, SaleState, Stock, state_at
from reservation.verdicts import Judged

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LANES_MAX = 100  # of a sale; the cluster may have fewer
# `auto`: so many buyers a lane. They come within seconds, and a lane takes more than 20,000 orders a second.
BUYERS_PER_LANE = 100_000
# `auto`: at least so many units of each SKU a lane. With fewer, most of the sale is the gathering of the last units.
UNITS_PER_LANE_MIN = 100

LaneChoice = int | Literal["auto"]


class Stage(StrEnum):
    """The progress of publishing."""

    DRAFT = "draft"
    LOADING = "loading"  # loaded_epoch is committed: lanes may have the sale, edges cannot see it yet
    PUBLISHED = "published"


class SaleStateConflict(Exception):
    """The state of the sale does not allow the change; the message is shown to the client."""


class LanesTooMany(Exception):
    """The cluster has fewer lanes than the sale asks for."""

    def __init__(self, lanes_max: int) -> None:
        """`lanes_max`: the lanes of the cluster."""
        super().__init__(f"the cluster has {lanes_max} lanes")
        self.lanes_max = lanes_max


class WindowInvalid(Exception):
    """Start and end do not fit together, or do not fit the time."""

    def __init__(self, errors: tuple[FieldError, ...]) -> None:
        """`errors` point to the members of the request."""
        super().__init__("; ".join(error.detail for error in errors))
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Item:
    """One SKU of a sale; `stock` is the initial stock."""

    sku: str
    stock: int
    price_minor: int
    per_user_limit: int


@dataclass(frozen=True, slots=True)
class NewSale:
    """A sale to create; `idempotency_key` and `fingerprint` are both set or both None."""

    id: UUID
    name: str
    starts_at: datetime
    ends_at: datetime
    hold_seconds: int
    lanes: LaneChoice
    expected_buyers: int | None
    items: tuple[Item, ...]
    created_by: UUID
    idempotency_key: str | None = None
    fingerprint: bytes | None = None


@dataclass(frozen=True, slots=True)
class SaleChanges:
    """Members to change; None leaves a member as it is. Member names are those of the API."""

    name: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    hold_seconds: int | None = None
    lanes: LaneChoice | None = None
    expected_buyers: int | None = None
    items: tuple[Item, ...] | None = None

    @property
    def names(self) -> list[str]:
        """Names of the members to change."""
        return [name for name in self.__slots__ if getattr(self, name) is not None]


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
    lanes_auto: bool
    expected_buyers: int | None
    lanes: tuple[int, ...]
    epoch: int
    version: int
    items: tuple[Item, ...]

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Sale:
        """From a row as `sales.sql` selects it."""
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
            lanes_auto=row["lanes_auto"],
            expected_buyers=row["expected_buyers"],
            lanes=tuple(row["lanes"] or ()),
            epoch=row["epoch"],
            version=row["version"],
            items=tuple(Item(**item) for item in row["items"]),
        )

    @property
    def definition(self) -> SaleDefinition:
        """The definition for lanes and edges. Exists only after the lanes are fixed."""
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
        """Whether Redis still has the published sale: until `kept` after its end. Later only PostgreSQL has it."""
        return now_ms < unix_ms(self.ends_at) + kept // timedelta(milliseconds=1)

    def index_of(self, sku: str) -> int | None:
        """The SKU index; None if the sale does not have the SKU."""
        return next((index for index, item in enumerate(self.items) if item.sku == sku), None)

    @property
    def _lane_state(self) -> LaneSaleState:
        if self.ended:
            return LaneSaleState.ENDED
        return LaneSaleState.PAUSED if self.paused else LaneSaleState.RUNNING


@dataclass(frozen=True, slots=True)
class SaleReport:
    """A sale in numbers: restocked units and stock by SKU index, refusals by code, verdicts by invariant."""

    sale: Sale
    restocked: Mapping[int, int]
    stock: Sequence[Stock]
    refused: Mapping[str, int]
    verdict: Judged


def unix_ms(time: datetime) -> int:
    """Milliseconds since 1970, exact (a float would round)."""
    return (time - EPOCH) // timedelta(milliseconds=1)


def paused(sale: Sale, now_ms: int) -> Sale:
    """No orders until the sale is resumed. Only an open sale can be paused; a scheduled one can be moved or ended."""
    state = _alive(sale, now_ms, "paused")
    if state is not SaleState.PAUSED and not state.may_become(SaleState.PAUSED):
        raise SaleStateConflict(f"The sale is {state}. Only an open sale can be paused")
    return replace(sale, paused=True)


def resumed(sale: Sale, now_ms: int) -> Sale:
    """Orders again, within the window."""
    _alive(sale, now_ms, "resumed")
    return replace(sale, paused=False)


def ended(sale: Sale, now_ms: int) -> Sale:
    """No more orders; the window ends now. A sale that has ended by time stays unchanged."""
    if sale.stage is not Stage.PUBLISHED:
        raise SaleStateConflict("A draft cannot be ended")
    if sale.state(now_ms) is SaleState.ENDED:
        return sale
    return replace(sale, ended=True, ends_at=EPOCH + timedelta(milliseconds=now_ms))


def changed(sale: Sale, now_ms: int, *, changes: SaleChanges) -> Sale:
    """A published sale with another name or window; also raises WindowInvalid."""
    state = _alive(sale, now_ms, "changed")
    fixed = sorted({"hold_seconds", "lanes", "expected_buyers", "items"}.intersection(changes.names))
    if fixed:
        raise SaleStateConflict(f"The sale is published: {', '.join(fixed)} cannot change any more")
    starts_at = changes.starts_at or sale.starts_at
    if starts_at != sale.starts_at and unix_ms(sale.starts_at) <= now_ms:
        raise SaleStateConflict(f"The sale is {state}. Its start has passed and cannot move")
    result = replace(sale, name=changes.name or sale.name, starts_at=starts_at, ends_at=changes.ends_at or sale.ends_at)
    # Checked on the sale to write: a concurrent request may have moved the other end of the window.
    check_window(result.starts_at, result.ends_at, now_ms, named=changes.names)
    return result


def count_of_lanes(choice: LaneChoice, items: Sequence[Item], *, expected_buyers: int | None, lanes_max: int) -> int:
    """The number of lanes of a sale; LanesTooMany.

    `auto`: a lane for each BUYERS_PER_LANE expected buyers (as many as units if no number is given), as long as each
    lane gets UNITS_PER_LANE_MIN units of every SKU that has stock.
    """
    if choice != "auto":
        if choice > lanes_max:
            raise LanesTooMany(lanes_max)
        return choice
    stocks = [item.stock for item in items if item.stock]
    if not stocks:
        return 1
    buyers = expected_buyers or sum(stocks)
    wanted = -(-buyers // BUYERS_PER_LANE)
    return max(1, min(wanted, min(stocks) // UNITS_PER_LANE_MIN, lanes_max, LANES_MAX))


def changed_draft(sale: Sale, now_ms: int, *, changes: SaleChanges, lanes_max: int) -> Sale:
    """A draft with any member changed; raises WindowInvalid, LanesTooMany."""
    choice: LaneChoice = changes.lanes or ("auto" if sale.lanes_auto else sale.lane_count)
    items = sale.items if changes.items is None else changes.items
    buyers = changes.expected_buyers or sale.expected_buyers
    result = replace(
        sale,
        name=changes.name or sale.name,
        starts_at=changes.starts_at or sale.starts_at,
        ends_at=changes.ends_at or sale.ends_at,
        hold_seconds=changes.hold_seconds or sale.hold_seconds,
        lane_count=count_of_lanes(choice, items, expected_buyers=buyers, lanes_max=lanes_max),
        lanes_auto=choice == "auto",
        expected_buyers=buyers,
        items=items,
    )
    check_window(result.starts_at, result.ends_at, now_ms, named=changes.names)
    return result


def check_window(starts_at: datetime, ends_at: datetime, now_ms: int, *, named: Collection[str]) -> None:
    """Raise WindowInvalid for an impossible window. Errors point only to members that the request names."""
    errors = []
    if "ends_at" in named:
        if starts_at >= ends_at:
            errors.append(FieldError("/ends_at", "must be later than starts_at"))
        if unix_ms(ends_at) <= now_ms:
            errors.append(FieldError("/ends_at", "must be in the future"))
    elif "starts_at" in named:
        if starts_at >= ends_at:
            errors.append(FieldError("/starts_at", "must be earlier than ends_at"))
        if unix_ms(ends_at) <= now_ms:
            errors.append(FieldError("/starts_at", "ends_at is in the past; change it as well"))
    if "starts_at" in named and unix_ms(starts_at) < 0:
        errors.append(FieldError("/starts_at", "must not be before 1970"))
    if errors:
        raise WindowInvalid(tuple(errors))


def check_restockable(sale: Sale, now_ms: int) -> None:
    """Raise SaleStateConflict if no units may be added."""
    _alive(sale, now_ms, "restocked")


def _alive(sale: Sale, now_ms: int, verb: str) -> SaleState:
    if sale.stage is Stage.DRAFT:
        raise SaleStateConflict(f"A draft cannot be {verb}")
    if sale.stage is Stage.LOADING:
        raise SaleStateConflict("The sale is being published. Repeat the request in a few seconds")
    state = sale.state(now_ms)
    if state is SaleState.ENDED:
        raise SaleStateConflict("The sale has ended")
    return state
