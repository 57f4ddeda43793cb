"""Deep looks: every order, every version and every proved place again, apart from the quick looks.

A pass scans all shards at once, each in slices under a snapshot of its own (`scanning`), and then reads the places of
each lane again in chunks. Between two slices it rests as long as the slice took. Its results are parts, one for each
shard and each lane, with the time of their reading:

    shard part     units against quotas and grants, versions against orders
    lane part      places against the watermark
    comparison     Redis against the shards; only for sales that stood still when the snapshots were taken

A part that fails keeps its last result, which counts for a bounded time only: an old part proves nothing. One that was
found violated stays violated until it is read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from domain.orders import QUANTITY_MAX, OrderStatus
from domain.sales import SaleDefinition
from workers.reconciler.notes import Notes
from workers.reconciler.progress import LaneProgress, Recount
from workers.reconciler.reading import Away, Reading
from workers.reconciler.scanning import REFUSED_MAX, Contradiction, ShardPart, ShardScan
from workers.reconciler.stock import (
    LaneLook,
    LedgerLook,
    lanes_against_shards,
    shard_against_grants,
    shards_against_ledger,
)
from workers.reconciler.verdict import Finding

DEEP_EVERY_S: Final = 15.0
# Deep looks may take this share of the time, so they become rarer as the tables grow.
DEEP_SHARE_MAX: Final = 0.1
DEEP_AGE_S_MAX: Final = 120.0  # an older part proves nothing; longer only if passes take so long themselves

log = structlog.get_logger()


@dataclass(slots=True)
class Part:
    """The results about one shard or one lane. `by_sale` is empty for a lane; `in_lanes` are findings by lane."""

    at_ms: int
    read_at: float  # monotonic
    sales: frozenset[UUID] | None = None
    by_sale: dict[UUID, list[Finding]] = field(default_factory=dict)
    lost_by_sale: dict[UUID, list[Finding]] = field(default_factory=dict)
    in_lanes: dict[int, list[Finding]] = field(default_factory=dict)


@dataclass(slots=True)
class Comparison:
    """A sale in all shards together: against the ledger, and against Redis at its last rest in this epoch."""

    epoch: int
    oversold: list[Finding] = field(default_factory=list)
    differences: list[Finding] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """All contradictions."""
        return [*self.oversold, *self.differences]


class DeepLooks:
    """The parts, and the passes that renew them. `run_pass` is one pass; the rest only reads the results."""

    def __init__(
        self,
        reading: Reading,
        progress: Mapping[int, LaneProgress],
        *,
        every_s: float = DEEP_EVERY_S,
        share_max: float = DEEP_SHARE_MAX,
        age_s_max: float = DEEP_AGE_S_MAX,
    ) -> None:
        """`progress` is that of the quick looks, `reading` is not. With a `share_max` of 1 or more there is no rest."""
        self._reading = reading
        self._progress = progress
        self._every_s = every_s
        self._share_max = share_max
        self._age_s_max = age_s_max
        self._notes = [Notes(shard, reading.catalogue) for shard in reading.shards]
        self._due_at = 0.0
        self._affordable_at = 0.0
        self._cycle_s = 0.0  # from the start of a pass to the start of the next
        self.shards: dict[int, Part] = {}
        self.lanes: dict[int, Part] = {}
        self.comparisons: dict[UUID, Comparison] = {}
        self.problems: dict[str, str] = {}
        self.slices = 0
        self.cut_slices = 0

    def is_due(self, sales: Iterable[UUID]) -> bool:
        """Whether a pass should begin: it is time, or a sale was never looked at and a pass is affordable."""
        now = time.monotonic()
        return now >= self._due_at or (now >= self._affordable_at and any(map(self._is_new, sales)))

    def demand(self) -> None:
        """Make a pass due now."""
        self._due_at = 0.0

    def keep(self, sale_ids: Iterable[UUID]) -> None:
        """Forget comparisons of all other sales: they have left Redis."""
        left = set(sale_ids)
        self.comparisons = {sale_id: found for sale_id, found in self.comparisons.items() if sale_id in left}

    # Results

    def about_a(self, sale_id: UUID) -> list[Finding]:
        """Contradictions about a sale's stock."""
        found = [finding for part in self.shards.values() for finding in part.by_sale.get(sale_id, ())]
        return [*found, *self.comparisons[sale_id].findings] if sale_id in self.comparisons else found

    def about_b(self, sale: SaleDefinition) -> list[Finding]:
        """Contradictions about a sale's entries and their lanes."""
        found = [finding for part in self.shards.values() for finding in part.lost_by_sale.get(sale.sale_id, ())]
        parts = (*self.shards.values(), *self.lanes.values())
        return [*found, *(f for lane in sale.lanes for part in parts for f in part.in_lanes.get(lane, ()))]

    def missing(self, sale: SaleDefinition) -> list[str]:
        """Shards without which nothing of the sale is proved: never read, or too long ago."""
        return [
            text
            for shard in range(len(self._reading.shards))
            if (text := self._missing(f"shard {shard}", self.shards.get(shard), sale.sale_id)) is not None
        ]

    def unexplained(self, sale_id: UUID) -> list[str]:
        """Differences between Redis and the shards that dead letters may explain: the stock is not proved."""
        comparison = self.comparisons.get(sale_id)
        return [] if comparison is None else comparison.unexplained

    def missing_lanes(self, sale: SaleDefinition) -> list[str]:
        """Lanes without which the sale's entries are not proved."""
        return [
            text
            for lane in sale.lanes
            if (text := self._missing(f"lane {lane}", self.lanes.get(lane), sale.sale_id)) is not None
        ]

    def at_ms(self, sale: SaleDefinition) -> int | None:
        """Redis time of the oldest part that the sale's verdicts rest on; None if one was never read."""
        shards = [self.shards.get(shard) for shard in range(len(self._reading.shards))]
        parts = [*shards, *(self.lanes.get(lane) for lane in sale.lanes)]
        times = [part.at_ms for part in parts if part is not None and _covers(part, sale.sale_id)]
        return min(times) if len(times) == len(parts) else None

    def ages_s(self) -> dict[str, float]:
        """Seconds since each shard was read, by part."""
        now = time.monotonic()
        return {f"shard-{shard}": now - part.read_at for shard, part in self.shards.items()}

    def _missing(self, name: str, part: Part | None, sale_id: UUID) -> str | None:
        problem = f" ({self.problems[name]})" if name in self.problems else ""
        if part is None or not _covers(part, sale_id):
            return f"{name} was not read yet{problem}"
        age_s = time.monotonic() - part.read_at
        if age_s > max(self._age_s_max, 2.5 * self._cycle_s):
            return f"{name} was last read {age_s:.0f} s ago{problem}"
        return None

    def _is_new(self, sale_id: UUID) -> bool:
        return not self.shards or any(not _covers(part, sale_id) for part in self.shards.values())

    # Passes

    async def run_pass(self, sales: list[SaleDefinition]) -> None:
        """Renew all parts. A database that is away leaves its parts as they are. Raises the errors of Redis."""
        began = time.monotonic()
        self._reading.begin_look()
        scans = await self._scan(sales)
        # Asked again after each phase: one may have failed at a lock that does not concern the others.
        self._reading.begin_look()
        for shard in range(len(self._notes)):
            await self._try(f"notes of shard {shard}", self._notes[shard].sweep)
        self._reading.begin_look()
        lanes = sorted({lane for sale in sales for lane in sale.lanes})
        for lane in lanes:
            await self._recount(lane)
        self.lanes = {lane: part for lane, part in self.lanes.items() if lane in lanes}
        self.slices += sum(scan.part.slices for scan in scans)
        now = time.monotonic()
        rest_s = (now - began) / self._share_max
        doubts = any(not f.certain for found in self._all_findings() for f in found)
        self._affordable_at = now + rest_s
        self._due_at = max(self._affordable_at, now + (0.0 if doubts else self._every_s))
        self._cycle_s = max(self._due_at, now + self._every_s) - began

    async def _scan(self, sales: list[SaleDefinition]) -> list[ShardScan]:
        """Scan all shards under snapshots of one moment, then compare them with Redis."""
        before = await self._reading.lanes(sales)
        verified = {lane: progress.verified for lane, progress in self._progress.items()}
        at_ms = await self._reading.now_ms()
        sale_ids = [sale.sale_id for sale in sales]
        scans = [ShardScan(shard, sale_ids, at_ms=at_ms) for shard in self._reading.shards]
        try:
            opened = await asyncio.gather(*(self._try(f"shard {shard}", scan.open) for shard, scan in enumerate(scans)))
            after = await self._reading.lanes(sales)
            ledger: dict[UUID, dict[str, LedgerLook]] | None = None

            async def read_ledger() -> None:
                nonlocal ledger
                ledger = await self._reading.ledger(sale_ids)  # after the shards: grants grow there first

            await self._try("catalogue", read_ledger)
            parts = await asyncio.gather(
                *(
                    self._finish(shard, scan, ledger, is_open=is_open)
                    for shard, (scan, is_open) in enumerate(zip(scans, opened, strict=True))
                )
            )
        finally:
            await asyncio.gather(*(scan.close() for scan in scans))
        read = [part for part in parts if part is not None]
        if ledger is None or len(read) < len(scans):
            return scans  # the comparisons before stay, and `missing` counts their age
        for sale in sales:
            still = all(before[x].seq == after[x].seq == verified.get(x) for x in sale.lanes)
            is_closed = any(sale.sale_id in after[lane].closed for lane in sale.lanes)
            units = [part.units.get(sale.sale_id, {}) for part in read]
            found = list(shards_against_ledger(ledger[sale.sale_id], units))
            earlier = self.comparisons.get(sale.sale_id, Comparison(sale.epoch))
            now = Comparison(sale.epoch)
            if still and not is_closed:
                different, now.unexplained = _compare(sale, after, read)
                now.differences = _settled(different, earlier.differences)
            elif not is_closed and earlier.epoch == sale.epoch:
                # A sale that moves cannot be compared: what was proved at rest stands, a doubt does not.
                now.differences = [finding for finding in earlier.differences if finding.certain]
            now.oversold = found
            self.comparisons[sale.sale_id] = now
        return scans

    async def _finish(
        self, shard: int, scan: ShardScan, ledger: Mapping[UUID, Mapping[str, LedgerLook]] | None, *, is_open: bool
    ) -> ShardPart | None:
        """Scan a shard to its end and take the part over; None if it is away."""
        read_at = time.monotonic()

        async def to_the_end() -> None:
            while await self._timed(scan.step):
                pass

        if not is_open or not await self._try(f"shard {shard}", to_the_end):
            self.cut_slices += scan.cut_slices
            return None
        self.cut_slices += scan.cut_slices
        part = Part(scan.part.at_ms, read_at, scan.part.sales)
        earlier = self.shards.get(shard)
        for sale_id in scan.part.sales:
            found = list(_about_shard(shard, scan.part, sale_id, ledger[sale_id] if ledger is not None else None))
            part.by_sale[sale_id] = _settled(found, earlier.by_sale.get(sale_id, ()) if earlier else ())
            part.lost_by_sale[sale_id] = [
                _contradiction(shard, found) for found in scan.part.contradictions.get(sale_id, ())
            ]
        part.in_lanes = {lane: _stray_findings(shard, lane, *counts) for lane, counts in scan.part.strays.items()}
        self.shards[shard] = part
        return scan.part

    async def _recount(self, lane: int) -> None:
        progress = self._progress.get(lane)
        if progress is None:
            return
        recount = Recount(lane, progress.verified)
        at_ms, read_at = await self._reading.now_ms(), time.monotonic()

        async def to_the_end() -> None:
            while not recount.is_done:
                await self._timed(lambda: recount.step(self._reading))
                self.slices += 1

        if await self._try(f"lane {lane}", to_the_end):
            progress.recounted(recount.upto, recount.doubled)
            self.lanes[lane] = Part(at_ms, read_at, in_lanes={lane: recount.findings})

    async def _try(self, name: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether the work was done; the reason is kept if not."""
        try:
            await work()
        except Away as away:
            if name not in self.problems:
                log.warning("deep look without a part", part=name, error=str(away))
            self.problems[name] = away.reason if away.part == name else str(away)
            return False
        if self.problems.pop(name, None) is not None:
            log.info("deep look has the part again", part=name)
        return True

    async def _timed(self, slice_: Callable[[], Awaitable[bool | None]]) -> bool:
        """Run a slice, then rest as long as it took."""
        began = time.monotonic()
        more = await slice_()
        took_s = time.monotonic() - began
        if self._share_max < 1:
            await asyncio.sleep(took_s)
        return bool(more)

    def _all_findings(self) -> Iterable[list[Finding]]:
        for part in self.shards.values():
            yield from part.by_sale.values()
        for comparison in self.comparisons.values():
            yield comparison.findings


def _covers(part: Part, sale_id: UUID) -> bool:
    return part.sales is None or sale_id in part.sales


def _settled(found: Iterable[Finding], earlier: Iterable[Finding]) -> list[Finding]:
    """Only the next deep look settles a doubt of a deep look: quick looks do not read the shards again."""
    before = {finding.text for finding in earlier}
    return [Finding(f.text, f.certain or f.text in before) for f in found]


def _about_shard(
    shard: int, part: ShardPart, sale_id: UUID, ledger: Mapping[str, LedgerLook] | None
) -> Iterable[Finding]:
    if sale_id in part.unreadable:
        yield Finding(f"shard {shard}: {part.unreadable[sale_id]} lines of orders cannot be read")
    if ledger is not None:
        yield from shard_against_grants(shard, part.units.get(sale_id, {}), ledger)


def _compare(
    sale: SaleDefinition, lanes: Mapping[int, LaneLook], parts: list[ShardPart]
) -> tuple[list[Finding], list[str]]:
    """Redis against the shards: contradictions, and differences that cannot be judged.

    The units of a dead letter that is a valid order are known exactly. One that is not may be an order of any sale of
    its lane: it explains as many units as an order may have, and leaves the sale unproved while it has to.
    """
    refused: dict[str, int] = {}
    for part in parts:
        if part.refused is None:
            return [], [f"more than {REFUSED_MAX} dead letters: too many to compare Redis with the shards"]
        for sku, count in part.refused.get(sale.sale_id, {}).items():
            refused[sku] = refused.get(sku, 0) + count
    unknown = sum(lane in sale.lanes and seq <= lanes[lane].seq for part in parts for lane, seq in part.undecodable)
    found, unexplained = [], []
    for difference in lanes_against_shards(sale, lanes, [part.units.get(sale.sale_id, {}) for part in parts], refused):
        if difference.units > unknown * QUANTITY_MAX:
            found.append(Finding(difference.text, certain=False))
        else:
            unexplained.append(f"{difference.text}; {unknown} dead letters of its lanes are not readable")
    return found, unexplained


def _contradiction(shard: int, found: Contradiction) -> Finding:
    stored, repeated = OrderStatus(found.stored_status).label, OrderStatus(found.repeated_status).label
    return Finding(
        f"shard {shard}: version {found.version} of order {found.order_id} is {stored} by entry {found.stored_seq}, "
        f"{repeated} by entry {found.repeated_seq}"
    )


def _stray_findings(shard: int, lane: int, versions: int, orders: int) -> list[Finding]:
    findings = []
    if versions:
        findings.append(Finding(f"lane {lane}: shard {shard}: {versions} stored versions have no order"))
    if orders:
        findings.append(Finding(f"lane {lane}: shard {shard}: {orders} stored orders came from no entry"))
    return findings
