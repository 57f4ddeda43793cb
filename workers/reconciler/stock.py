"""Judges invariant A from lanes, ledger, grants, quotas and stored units. Performs no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from domain.sales import SaleDefinition, Stock
from reservation.transfers import Records, uncredited
from workers.reconciler.verdict import Finding


@dataclass(frozen=True, slots=True)
class LaneLook:
    """A lane's state hash at one moment. `stocks` by sale, by SKU index; None for a sale that the lane does not know.

    `closed`: for sales that cannot be sold in the lane until they are rebuilt, the reason. `malformed`: for sales with
    malformed counters, the indices of those SKUs. `problem`: why the hash as a whole cannot be read; empty if it can.
    `records`: the lane's records of transfers, for sales over many lanes.
    """

    seq: int
    stocks: Mapping[UUID, list[Stock] | None]
    closed: Mapping[UUID, str] = field(default_factory=dict)
    malformed: Mapping[UUID, tuple[int, ...]] = field(default_factory=dict)
    problem: str = ""
    records: Mapping[UUID, Records] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LostRange:
    """Entries of a lane that were accepted and no longer exist, inclusive; recorded by a rebuild."""

    lane: int
    first: int
    last: int
    noted_ms: int


@dataclass(frozen=True, slots=True)
class UnknownTail:
    """A lane went back while it may have been taking orders: entries after `after` are unknown."""

    lane: int
    after: int
    noticed_ms: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """Entries of a sale whose dead letters were deleted, and one of their orders."""

    entries: int
    order_id: UUID


@dataclass(slots=True)
class LedgerLook:
    """The catalogue's row of one SKU with its grants: shard -> (total, seq)."""

    stock: int
    granted: int
    grants: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UnitsLook:
    """One SKU in one shard: units of stored reserved and paid orders, and the quota."""

    held: int
    granted: int
    seq: int
    sold: int


def lanes_against_ledger(
    sale: SaleDefinition, lanes: Mapping[int, LaneLook], ledger: Mapping[str, LedgerLook]
) -> Iterator[Finding]:
    """Every lane balanced, and the lanes together have exactly the stock of the ledger."""
    known: list[list[Stock]] = []
    for lane in sale.lanes:
        stocks = lanes[lane].stocks.get(sale.sale_id)
        if stocks is None:
            yield Finding(f"lane {lane} does not know the sale", certain=False)
            return
        known.append(stocks)
        for item, stock in zip(sale.items, stocks, strict=True):
            if not stock.is_balanced:
                yield Finding(f"{item.sku}: lane {lane} is not balanced: {stock}")
    moving: dict[int, int] = {}
    records = {lane: lanes[lane].records[sale.sale_id] for lane in sale.lanes if sale.sale_id in lanes[lane].records}
    for transfer in uncredited(records):
        moving[transfer.sku_index] = moving.get(transfer.sku_index, 0) + transfer.units
    for index, item in enumerate(sale.items):
        total = Stock.total(stocks[index] for stocks in known)
        row = ledger.get(item.sku)
        if row is None:
            yield Finding(f"{item.sku}: not in the ledger")
            continue
        if total.borrowed > total.lent:
            yield Finding(f"{item.sku}: lanes borrowed {total.borrowed} units, lent {total.lent}", certain=False)
        elif total.lent - total.borrowed != moving.get(index, 0):
            # Lanes are not read at one moment. The same totals at two looks: no transfer was under way in between.
            yield Finding(
                f"{item.sku}: lanes lent {total.lent} units and borrowed {total.borrowed}, "
                f"their records have {moving.get(index, 0)} in transit",
                certain=False,
            )
        if total.allotted != row.stock:
            # A restock raises the ledger first: for a moment the ledger has more than the lanes.
            yield Finding(f"{item.sku}: ledger has {row.stock} units, lanes were given {total.allotted}", certain=False)


def damage(sale: SaleDefinition, lanes: Mapping[int, LaneLook]) -> Iterator[Finding]:
    """Lanes and counters that cannot be read. No rebuild or restock under way writes such a value."""
    for lane in sale.lanes:
        if lanes[lane].problem:
            yield Finding(f"lane {lane} cannot be read: {lanes[lane].problem}")
        for index in lanes[lane].malformed.get(sale.sale_id, ()):
            yield Finding(f"{sale.items[index].sku}: lane {lane} has malformed counters")


def guard(ledger: Mapping[str, LedgerLook]) -> Iterator[Finding]:
    """The catalogue's half: grants within the stock, and the ledger's sum of grants is right."""
    for sku, row in ledger.items():
        total = sum(total for total, _ in row.grants.values())
        if row.granted != total:
            yield Finding(f"{sku}: ledger says {row.granted} units are granted, grants are {total}")
        if total > row.stock:
            yield Finding(f"{sku}: {total} units granted of {row.stock}")


def shard_against_grants(
    shard: int, skus: Mapping[str, UnitsLook], ledger: Mapping[str, LedgerLook]
) -> Iterator[Finding]:
    """One shard's half: it sells within its grant, and counts as sold the units that it stores."""
    for sku, units in skus.items():
        if units.held != units.sold:
            yield Finding(
                f"{sku}: shard {shard} stores {units.held} reserved or paid units, counts {units.sold} as sold"
            )
        if units.sold > units.granted:
            yield Finding(f"{sku}: shard {shard} sold {units.sold} of {units.granted} granted units")
        total, seq = ledger[sku].grants.get(shard, (0, 0)) if sku in ledger else (0, 0)
        if units.granted > total:
            # The shard was read before the catalogue: a release may have happened in between.
            yield Finding(
                f"{sku}: shard {shard} has {units.granted} units by grant {units.seq}, catalogue gave {total} by {seq}",
                certain=False,
            )


def shards_against_ledger(
    ledger: Mapping[str, LedgerLook], shards: Sequence[Mapping[str, UnitsLook]]
) -> Iterator[Finding]:
    """The shards together store no more units than there are."""
    for sku, row in ledger.items():
        held = sum(skus[sku].held for skus in shards if sku in skus)
        if held > row.stock:
            yield Finding(f"{sku}: {held} units stored as sold of {row.stock}: oversold")


@dataclass(frozen=True, slots=True)
class Difference:
    """Units of one SKU that Redis counts as reserved or paid, those of stored orders, and those of dead letters."""

    sku: str
    here: int
    there: int
    dead: int

    @property
    def units(self) -> int:
        """Units that nothing explains."""
        return abs(self.here - self.there - self.dead)

    @property
    def text(self) -> str:
        """For people."""
        beside = f", {self.dead} in the dead letters" if self.dead else ""
        return f"{self.sku}: {self.here} reserved or paid units in Redis, {self.there} stored{beside}"


def lanes_against_shards(
    sale: SaleDefinition,
    lanes: Mapping[int, LaneLook],
    shards: Sequence[Mapping[str, UnitsLook]],
    refused: Mapping[str, int],
) -> list[Difference]:
    """Where Redis and PostgreSQL count other units. Call it only at rest, with every entry stored or dead-lettered.

    `refused`: units by SKU that the sale's dead letters add to those of the stored orders.
    """
    differences = []
    for index, item in enumerate(sale.items):
        stocks = [known[index] for lane in sale.lanes if (known := lanes[lane].stocks.get(sale.sale_id)) is not None]
        here = sum(stock.reserved + stock.paid for stock in stocks)
        there = sum(skus[item.sku].held for skus in shards if item.sku in skus)
        difference = Difference(item.sku, here, there, refused.get(item.sku, 0))
        if difference.units:
            differences.append(difference)
    return differences
