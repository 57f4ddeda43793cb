"""Quick looks at all sales: lanes, ledger, new entries. With the last deep looks they give each sale a verdict.

Remembers the previous look. A database that is away never ends a look: its part is unknown, and the verdicts say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from uuid import UUID

import structlog

from domain.sales import SaleDefinition
from workers.reconciler.deep import DeepLooks
from workers.reconciler.progress import STORED_WITHIN_S, LaneProgress
from workers.reconciler.reading import Away, CatalogueLook, Reading
from workers.reconciler.stock import (
    LaneLook,
    LostRange,
    UnknownTail,
    damage,
    guard,
    lanes_against_ledger,
)
from workers.reconciler.verdict import Finding, Verdict, judge

log = structlog.get_logger()


class Looking:
    """`look` is one round. `deep` has the deep looks; the caller runs them."""

    def __init__(
        self,
        reading: Reading,
        deep: DeepLooks,
        *,
        progress: dict[int, LaneProgress],
        kept_s: int,
        stored_within_s: float = STORED_WITHIN_S,
    ) -> None:
        """`kept_s`: sales that ended longer ago have left Redis and are skipped. `deep` reads `progress`, too."""
        self._reading = reading
        self.deep = deep
        self._parts = deep.parts
        self.progress = progress
        self._kept_ms = kept_s * 1000
        self._stored_within_s = stored_within_s
        self._earlier: dict[UUID, frozenset[str]] = {}
        self._away: dict[str, str] = {}

    async def sales(self, *, only: UUID | None = None) -> list[SaleDefinition]:
        """Published sales that are still in Redis, or one of them."""
        sales = await self._reading.sales(only=only)
        at_ms = await self._reading.now_ms() if sales else 0
        return [sale for sale in sales if at_ms < sale.ends_at_ms + self._kept_ms]

    async def look(self, *, only: UUID | None = None) -> list[Verdict]:
        """Verdicts of all published sales still in Redis, or of one. Raises the errors of Redis's client."""
        sales = await self.sales(only=only)
        if only is None:
            # Forget sales that have left Redis.
            left = {sale.sale_id for sale in sales}
            self._earlier = {sale_id: found for sale_id, found in self._earlier.items() if sale_id in left}
            self._parts.keep(left)
        if not sales:
            return []
        at_ms = await self._reading.now_ms()
        await self.follow(sales)
        lanes = await self._reading.lanes(sales)
        catalogue: CatalogueLook | None = None
        try:
            catalogue = await self._reading.of_catalogue([sale.sale_id for sale in sales])
        except Away as away:
            self._away[away.part] = str(away)
        return [self._contained_verdict(sale, at_ms, lanes, catalogue) for sale in sales]

    async def follow(self, sales: list[SaleDefinition]) -> None:
        """Move the watermarks towards the lanes' present sequences, as far as the databases answer."""
        self._away = {}
        self._reading.begin_look()
        lanes = await self._reading.lanes(sales)
        if not lanes.keys() <= self.progress.keys():
            try:
                watermarks = await self._reading.watermarks()
            except Away as away:
                self._away[away.part] = str(away)
                return
            for lane in lanes.keys() - self.progress.keys():
                self.progress[lane] = LaneProgress(lane, watermarks.get(lane, 0), self._stored_within_s)
        for lane, look in lanes.items():
            try:
                await self.progress[lane].look(self._reading, look.seq)
            except Away as away:
                self._away[away.part] = str(away)

    def _contained_verdict(
        self, sale: SaleDefinition, at_ms: int, lanes: Mapping[int, LaneLook], catalogue: CatalogueLook | None
    ) -> Verdict:
        """As `_verdict`. A sale whose data cannot be judged is red, and the other sales keep their verdicts."""
        try:
            return self._verdict(sale, at_ms, lanes, catalogue)
        except Exception as error:
            log.exception("sale cannot be judged", sale_id=str(sale.sale_id))
            detail = f"cannot be judged: {type(error).__name__}: {error}"
            return Verdict(sale.sale_id, at_ms, a=False, b=None, detail=(detail,))

    def _verdict(
        self, sale: SaleDefinition, at_ms: int, lanes: Mapping[int, LaneLook], catalogue: CatalogueLook | None
    ) -> Verdict:
        closed = [lanes[lane].closed[sale.sale_id] for lane in sale.lanes if sale.sale_id in lanes[lane].closed]
        shallow = list(damage(sale, lanes))
        about_b: list[Finding] = []
        missing = self._parts.missing(sale)
        waits_a = [*missing, *self._parts.unexplained(sale.sale_id)]
        waits_b = [*missing, *self._parts.missing_lanes(sale)]
        if catalogue is None:
            waits_a.append("the ledger is unknown")
            waits_b.append("recorded losses are unknown")
        else:
            ledger = catalogue.ledger[sale.sale_id]
            shallow += [*([] if closed else lanes_against_ledger(sale, lanes, ledger)), *guard(ledger)]
            about_b += _lost_findings(sale, catalogue)
            waits_b += _unknown(sale, catalogue.tails)
        for lane in sale.lanes:
            progress = self.progress.get(lane)
            if progress is None:
                waits_b.append(f"lane {lane}: its watermark is unknown")
                continue
            about_b += progress.findings
            if not progress.is_proved(lanes[lane].seq):
                waits_b.append(f"lane {lane}: {lanes[lane].seq - progress.verified} entries are not stored yet")
        about_b += self._parts.about_b(sale)
        earlier = self._earlier.get(sale.sale_id, frozenset())
        a, detail_a = judge([*shallow, *self._parts.about_a(sale.sale_id)], earlier)
        b, detail_b = judge(about_b, earlier)
        if a is True and waits_a:
            a, detail_a = None, waits_a
        if b is True and waits_b:
            b, detail_b = None, [text for text in waits_b if text not in detail_a]
        if closed:
            # The data in Redis is old or gone. PostgreSQL alone can show a violation but proves nothing.
            a, b = (False if held is False else None for held in (a, b))
            detail_a = [f"closed for recovery, run `flashsale rebuild`: {'; '.join(closed)}", *detail_a]
        self._earlier[sale.sale_id] = frozenset(finding.text for finding in shallow)
        detail = (*detail_a, *detail_b, *sorted(self._away.values()))
        return Verdict(sale.sale_id, at_ms, a, b, detail, deep_at_ms=self._parts.at_ms(sale))


def _lost_findings(sale: SaleDefinition, catalogue: CatalogueLook) -> Iterator[Finding]:
    """A loss counts for every sale of the lane that had begun when it was recorded: its entries' sales are unknown."""
    for gap in catalogue.lost:
        if _concerns(sale, gap):
            count = gap.last - gap.first + 1
            yield Finding(f"lane {gap.lane}: {count} accepted entries are lost, {gap.first} to {gap.last}")
    given_up = catalogue.given_up.get(sale.sale_id)
    if given_up is not None:
        text = f"{given_up.entries} dead letters with changes of orders were deleted, one of order {given_up.order_id}"
        yield Finding(text)


def _concerns(sale: SaleDefinition, gap: LostRange) -> bool:
    return gap.lane in sale.lanes and sale.starts_at_ms < gap.noted_ms


def _unknown(sale: SaleDefinition, tails: Sequence[UnknownTail]) -> Iterator[str]:
    for tail in tails:
        if tail.lane in sale.lanes and sale.starts_at_ms < tail.noticed_ms:
            yield f"lane {tail.lane} went back while it may have taken orders: after entry {tail.after} nothing is known"
