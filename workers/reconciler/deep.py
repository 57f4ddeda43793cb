"""Deep looks: every order, every version and every proved place again, apart from the quick looks.

A pass scans all shards at once, each in slices under a snapshot of its own (`scanning`), and then reads the places of
each lane again in chunks. Between two slices it rests as long as the slice took. Its results are parts, one for each
shard and each lane, with the time of their reading:

    shard part     units against quotas and grants, versions against orders
    lane part      places against the watermark
    comparison     Redis against the shards; only for sales that stood still when the snapshots were taken

A shard that does not answer leaves its part as it was; the others are renewed.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final
from uuid import UUID

import structlog

from domain.orders import QUANTITY_MAX, OrderStatus
from domain.sales import SaleDefinition
from workers.reconciler.notes import Notes
from workers.reconciler.parts import Comparison, Part, Parts
from workers.reconciler.progress import LaneProgress, Recount
from workers.reconciler.reading import CATALOGUE, Away, Reading
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
CYCLES_MAX: Final = 2.5  # from the start of a pass to that of the next: two may fail in a row

log = structlog.get_logger()


class DeepLooks:
    """The passes that renew `parts`; `run_pass` is one."""

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
        self._notes = [Notes(shard, reading.catalogue) for shard in reading.shards]
        self._due_at = 0.0
        self._affordable_at = 0.0
        self._busy_s: defaultdict[str, float] = defaultdict(float)  # by part, in this pass
        self._age_s_max = age_s_max
        self.parts = Parts(len(reading.shards), age_s_max)
        self.slices = 0
        self.cut_slices = 0

    def is_due(self, sales: Iterable[UUID]) -> bool:
        """Whether a pass should begin: it is time, or a sale was never looked at and a pass is affordable."""
        now = time.monotonic()
        return now >= self._due_at or (now >= self._affordable_at and any(map(self.parts.is_new, sales)))

    def demand(self) -> None:
        """Make a pass due now."""
        self._due_at = 0.0

    async def run_pass(self, sales: list[SaleDefinition]) -> None:
        """Renew all parts. A database that is away leaves its parts as they are. Raises the errors of Redis."""
        self._busy_s.clear()
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
        self.parts.lanes = {lane: part for lane, part in self.parts.lanes.items() if lane in lanes}
        self.slices += sum(scan.part.slices for scan in scans)
        # Shards are read at once, lanes one after the other. Time without an answer does not count: the shard is asked
        # again soon, and its part proves nothing after the same age as ever.
        busy_s = max(self._busy_s[f"shard {shard}"] for shard in range(len(self._notes)))
        busy_s += sum(self._busy_s[f"lane {lane}"] for lane in lanes)
        now = time.monotonic()
        self._affordable_at = now + busy_s / self._share_max
        self._due_at = max(self._affordable_at, now + (0.0 if self.parts.has_doubts else self._every_s))
        cycle_s = 2 * busy_s + max(self._every_s, busy_s / self._share_max)
        self.parts.age_s_max = max(self._age_s_max, CYCLES_MAX * cycle_s)

    async def _scan(self, sales: list[SaleDefinition]) -> list[ShardScan]:
        """Scan all shards under snapshots of one moment, then compare them with Redis."""
        before = await self._reading.lanes(sales)
        verified = {lane: progress.verified for lane, progress in self._progress.items()}
        at_ms = await self._reading.now_ms()
        sale_ids = [sale.sale_id for sale in sales]
        began: list[int] = []

        async def begin() -> None:
            began.append(await self._reading.settled_switches())

        if not await self._try("catalogue", begin):
            return []
        scans = [ShardScan(shard, sale_ids, at_ms=at_ms) for shard in self._reading.shards]
        try:
            opened = await asyncio.gather(*(self._try(f"shard {shard}", scan.open) for shard, scan in enumerate(scans)))
            after = await self._reading.lanes(sales)
            ledgers: list[dict[UUID, dict[str, LedgerLook]]] = []

            async def read_ledger() -> None:
                # After the shards: the catalogue's grants grow first.
                ledgers.append(await self._reading.ledger(sale_ids))
                if await self._reading.switches() != began[0]:
                    raise Away(CATALOGUE, "buckets moved meanwhile: the snapshots do not fit together")

            if not await self._try("catalogue", read_ledger):
                return scans  # a part without the grants would be half a part
            (ledger,) = ledgers
            parts = await asyncio.gather(
                *(
                    self._finish(shard, scan, ledger, is_open=is_open)
                    for shard, (scan, is_open) in enumerate(zip(scans, opened, strict=True))
                )
            )
        finally:
            await asyncio.gather(*(scan.close() for scan in scans))
        read = [part for part in parts if part is not None]
        if len(read) < len(scans):
            return scans  # the comparisons before stand, and the age of the part that is missing counts
        for sale in sales:
            still = all(before[x].seq == after[x].seq == verified.get(x) for x in sale.lanes)
            earlier = self.parts.comparisons.get(sale.sale_id, Comparison(sale.epoch))
            try:
                now = _compared(sale, after, ledger[sale.sale_id], read, earlier, still=still)
            except Exception as error:  # its own damage must not end the looks at other sales
                now = Comparison(sale.epoch, oversold=[_unjudged(sale.sale_id, error)])
            self.parts.comparisons[sale.sale_id] = now
        return scans

    async def _finish(
        self, shard: int, scan: ShardScan, ledger: Mapping[UUID, Mapping[str, LedgerLook]], *, is_open: bool
    ) -> ShardPart | None:
        """Scan a shard to its end and take the part over; None if it is away."""
        read_at = time.monotonic()

        async def to_the_end() -> None:
            while await self._timed(f"shard {shard}", scan.step):
                pass

        if not is_open or not await self._try(f"shard {shard}", to_the_end):
            self.cut_slices += scan.cut_slices
            return None
        self.cut_slices += scan.cut_slices
        part = Part(scan.part.at_ms, read_at, scan.part.sales)
        earlier = self.parts.shards.get(shard)
        for sale_id in scan.part.sales:
            try:
                found = list(_about_shard(shard, scan.part, sale_id, ledger[sale_id]))
            except Exception as error:  # as above
                found = [_unjudged(sale_id, error)]
            part.by_sale[sale_id] = _settled(found, earlier.by_sale.get(sale_id, ()) if earlier else ())
            part.lost_by_sale[sale_id] = [
                _contradiction(shard, found) for found in scan.part.contradictions.get(sale_id, ())
            ]
        part.in_lanes = {lane: _stray_findings(shard, lane, *counts) for lane, counts in scan.part.strays.items()}
        self.parts.shards[shard] = part
        return scan.part

    async def _recount(self, lane: int) -> None:
        progress = self._progress.get(lane)
        if progress is None:
            return
        recount = Recount(lane, progress.verified)
        at_ms, read_at = await self._reading.now_ms(), time.monotonic()

        async def to_the_end() -> None:
            while not recount.is_done:
                await self._timed(f"lane {lane}", lambda: recount.step(self._reading))
                self.slices += 1

        if await self._try(f"lane {lane}", to_the_end):
            progress.recounted(recount.upto, recount.doubled)
            self.parts.lanes[lane] = Part(at_ms, read_at, in_lanes={lane: recount.findings})

    async def _try(self, name: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Whether the work was done; the reason is kept if not."""
        try:
            await work()
        except Away as away:
            if name not in self.parts.problems:
                log.warning("deep look without a part", part=name, error=str(away))
            self.parts.problems[name] = away.reason if away.part == name else str(away)
            return False
        if self.parts.problems.pop(name, None) is not None:
            log.info("deep look has the part again", part=name)
        return True

    async def _timed(self, name: str, slice_: Callable[[], Awaitable[bool | None]]) -> bool:
        """Run a slice, then rest as long as it took."""
        began = time.monotonic()
        more = await slice_()
        took_s = time.monotonic() - began
        self._busy_s[name] += took_s
        if self._share_max < 1:
            await asyncio.sleep(took_s)
        return bool(more)


def _settled(found: Iterable[Finding], earlier: Iterable[Finding]) -> list[Finding]:
    """Only the next deep look settles a doubt of a deep look: quick looks do not read the shards again."""
    before = {finding.text for finding in earlier}
    return [Finding(f.text, f.certain or f.text in before) for f in found]


def _about_shard(shard: int, part: ShardPart, sale_id: UUID, ledger: Mapping[str, LedgerLook]) -> Iterable[Finding]:
    if sale_id in part.unreadable:
        yield Finding(f"shard {shard}: {part.unreadable[sale_id]} lines of orders cannot be read")
    yield from shard_against_grants(shard, part.units.get(sale_id, {}), ledger)


def _unjudged(sale_id: UUID, error: Exception) -> Finding:
    log.error("sale cannot be compared", sale_id=str(sale_id), exc_info=error)
    return Finding(f"cannot be judged: {type(error).__name__}: {error}")


def _compared(
    sale: SaleDefinition,
    lanes: Mapping[int, LaneLook],
    ledger: Mapping[str, LedgerLook],
    parts: list[ShardPart],
    earlier: Comparison,
    *,
    still: bool,
) -> Comparison:
    """A sale in all shards, and against Redis if it stood `still`."""
    now = Comparison(sale.epoch)
    now.oversold = list(shards_against_ledger(ledger, [part.units.get(sale.sale_id, {}) for part in parts]))
    if any(sale.sale_id in lanes[lane].closed for lane in sale.lanes):
        return now
    if still:
        different, now.unexplained = _compare(sale, lanes, parts)
        now.differences = _settled(different, earlier.differences)
    elif earlier.epoch == sale.epoch:
        # A sale that moves cannot be compared: what was proved at rest stands, a doubt does not.
        now.differences = [finding for finding in earlier.differences if finding.certain]
    return now


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
