"""Looks at all sales: reads, compares, and gives each sale a verdict. Remembers the previous look."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

import structlog

from domain.sales import SaleDefinition
from workers.reconciler.progress import STORED_WITHIN_S, LaneProgress
from workers.reconciler.reading import Reading
from workers.reconciler.stock import (
    LaneLook,
    LedgerLook,
    LostRange,
    UnknownTail,
    damage,
    guard,
    lanes_against_ledger,
    lanes_against_shards,
    shards_against_grants,
)
from workers.reconciler.verdict import Finding, Verdict, judge

log = structlog.get_logger()

DEEP_EVERY_S = 15.0
# A deep look reads every order. It may take this share of the time, so it becomes rarer as the tables grow.
DEEP_SHARE_MAX = 0.05


class Looking:
    """`look` is one round."""

    def __init__(
        self,
        reading: Reading,
        *,
        kept_s: int,
        stored_within_s: float = STORED_WITHIN_S,
        deep_every_s: float = DEEP_EVERY_S,
        deep_share_max: float = DEEP_SHARE_MAX,
    ) -> None:
        """`kept_s`: sales that ended longer ago have left Redis and are skipped."""
        self._reading = reading
        self._kept_ms = kept_s * 1000
        self._stored_within_s = stored_within_s
        self._deep_every_s = deep_every_s
        self._deep_share_max = deep_share_max
        self._deep_at = 0.0
        self._deep_affordable_at = 0.0
        self._deep_a: dict[UUID, list[Finding]] = {}
        self._deep_b: dict[int, list[Finding]] = {}
        self._earlier: dict[UUID, frozenset[str]] = {}
        self._lost: list[LostRange] = []
        self._tails: list[UnknownTail] = []
        self.progress: dict[int, LaneProgress] = {}

    def demand_deep(self) -> None:
        """Make the next look a deep one."""
        self._deep_at = 0.0

    async def look(self, *, only: UUID | None = None) -> list[Verdict]:
        """Verdicts of all published sales still in Redis, or of one. Raises the errors of the servers' clients."""
        at_ms = await self._reading.now_ms()
        sales = [s for s in await self._reading.sales(only=only) if at_ms < s.ends_at_ms + self._kept_ms]
        if only is None:
            # Forget sales that have left Redis.
            left = {sale.sale_id for sale in sales}
            self._deep_a = {sale_id: found for sale_id, found in self._deep_a.items() if sale_id in left}
            self._earlier = {sale_id: found for sale_id, found in self._earlier.items() if sale_id in left}
        if not sales:
            return []
        await self._follow_lanes(sales)
        now_s = time.monotonic()
        # A cannot be judged before the shards were read.
        is_new = any(sale.sale_id not in self._deep_a for sale in sales)
        if now_s >= self._deep_at or (is_new and now_s >= self._deep_affordable_at):
            await self._look_deep(sales)
        lanes = await self._reading.lanes(sales)
        ledger = await self._reading.ledger([sale.sale_id for sale in sales])
        self._lost, self._tails = await self._reading.lost(), await self._reading.unknown_tails()
        return [self._contained_verdict(sale, at_ms, lanes, ledger[sale.sale_id]) for sale in sales]

    async def _follow_lanes(self, sales: list[SaleDefinition]) -> None:
        """Move the watermarks towards the lanes' present sequences."""
        lanes = await self._reading.lanes(sales)
        if not lanes.keys() <= self.progress.keys():
            watermarks = await self._reading.watermarks()
            for lane in lanes.keys() - self.progress.keys():
                self.progress[lane] = LaneProgress(lane, watermarks.get(lane, 0), self._stored_within_s)
        for lane, look in lanes.items():
            await self.progress[lane].look(self._reading, look.seq)

    async def _look_deep(self, sales: list[SaleDefinition]) -> None:
        began = time.monotonic()
        before = await self._reading.lanes(sales)
        shards = await self._reading.units()
        strays = await self._reading.strays()
        after = await self._reading.lanes(sales)  # after the shards, like the ledger, where grants grow first
        ledger = await self._reading.ledger([sale.sale_id for sale in sales])
        for lane in after:
            self._deep_b[lane] = [*_stray_findings(lane, strays), *await self.progress[lane].recount(self._reading)]
        for sale in sales:
            units = [shard.get(sale.sale_id, {}) for shard in shards]
            findings = list(shards_against_grants(ledger[sale.sale_id], units))
            is_closed = any(sale.sale_id in after[lane].closed for lane in sale.lanes)
            if not is_closed and await self._is_at_rest(sale, before, after):
                findings += lanes_against_shards(sale, after, units)
            # Only the next deep look settles a doubt of this one: other looks do not read the shards again.
            before_texts = {finding.text for finding in self._deep_a.get(sale.sale_id, ())}
            self._deep_a[sale.sale_id] = [Finding(f.text, f.certain or f.text in before_texts) for f in findings]
        took_s = time.monotonic() - began
        doubts = any(not finding.certain for sale in sales for finding in self._deep_a[sale.sale_id])
        self._deep_affordable_at = time.monotonic() + took_s / self._deep_share_max
        self._deep_at = max(self._deep_affordable_at, time.monotonic() + (0.0 if doubts else self._deep_every_s))

    async def _is_at_rest(
        self, sale: SaleDefinition, before: Mapping[int, LaneLook], after: Mapping[int, LaneLook]
    ) -> bool:
        """Whether no lane moved while the shards were read, every entry is stored, and none is in the dead letters."""
        still = all(before[lane].seq == after[lane].seq == self.progress[lane].verified for lane in sale.lanes)
        return still and not await self._reading.dead_lettered(sale.lanes)

    def _contained_verdict(
        self, sale: SaleDefinition, at_ms: int, lanes: Mapping[int, LaneLook], ledger: Mapping[str, LedgerLook]
    ) -> Verdict:
        """As `_verdict`. A sale whose data cannot be judged is red, and the other sales keep their verdicts."""
        try:
            return self._verdict(sale, at_ms, lanes, ledger)
        except Exception as error:
            log.exception("sale cannot be judged", sale_id=str(sale.sale_id))
            detail = f"cannot be judged: {type(error).__name__}: {error}"
            return Verdict(sale.sale_id, at_ms, a=False, b=None, detail=(detail,))

    def _verdict(
        self, sale: SaleDefinition, at_ms: int, lanes: Mapping[int, LaneLook], ledger: Mapping[str, LedgerLook]
    ) -> Verdict:
        closed = [lanes[lane].closed[sale.sale_id] for lane in sale.lanes if sale.sale_id in lanes[lane].closed]
        shallow = [
            *damage(sale, lanes),
            *([] if closed else lanes_against_ledger(sale, lanes, ledger)),
            *guard(ledger),
        ]
        about_a = [
            *shallow,
            *self._deep_a.get(sale.sale_id, [Finding("the shards were not read yet", certain=False)]),
        ]
        about_b = [*_lost_findings(sale, self._lost)]
        waits = list(_unknown(sale, self._tails))
        for lane in sale.lanes:
            progress = self.progress[lane]
            about_b += [*progress.findings, *self._deep_b.get(lane, [])]
            if not progress.is_proved(lanes[lane].seq):
                waits.append(f"lane {lane}: {lanes[lane].seq - progress.verified} entries are not stored yet")
        earlier = self._earlier.get(sale.sale_id, frozenset())
        a, detail_a = judge(about_a, earlier)
        b, detail_b = judge(about_b, earlier)
        if b is True and waits:
            b, detail_b = None, waits
        if closed:
            # The data in Redis is old or gone. PostgreSQL alone can show a violation but proves nothing.
            a, b = (False if held is False else None for held in (a, b))
            detail_a = [f"closed for recovery, run `flashsale rebuild`: {'; '.join(closed)}", *detail_a]
        self._earlier[sale.sale_id] = frozenset(finding.text for finding in shallow)
        return Verdict(sale.sale_id, at_ms, a, b, (*detail_a, *detail_b))


def _lost_findings(sale: SaleDefinition, lost: Sequence[LostRange]) -> Iterator[Finding]:
    """A loss counts for every sale of the lane that had begun when it was recorded: its entries' sales are unknown."""
    for gap in lost:
        if gap.lane in sale.lanes and sale.starts_at_ms < gap.noted_ms:
            count = gap.last - gap.first + 1
            yield Finding(f"lane {gap.lane}: {count} accepted entries are lost, {gap.first} to {gap.last}")


def _unknown(sale: SaleDefinition, tails: Sequence[UnknownTail]) -> Iterator[str]:
    for tail in tails:
        if tail.lane in sale.lanes and sale.starts_at_ms < tail.noticed_ms:
            yield f"lane {tail.lane} went back while it may have taken orders: after entry {tail.after} nothing is known"


def _stray_findings(lane: int, strays: Mapping[int, tuple[int, int]]) -> list[Finding]:
    versions, orders = strays.get(lane, (0, 0))
    findings = []
    if versions:
        findings.append(Finding(f"lane {lane}: {versions} stored versions have no order"))
    if orders:
        findings.append(Finding(f"lane {lane}: {orders} stored orders came from no entry"))
    return findings
