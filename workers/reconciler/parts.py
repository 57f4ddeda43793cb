"""Results of deep looks: a part for each shard and lane, a comparison for each sale, and what they prove. No I/O.

A part that cannot be renewed keeps its last result, which counts for a bounded time only: an old part proves nothing.
One that was found violated stays violated until it is read again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

from domain.sales import SaleDefinition
from workers.reconciler.verdict import Finding


@dataclass(slots=True)
class Part:
    """The results about one shard or one lane: about the stock and the entries of sales, and about lanes.

    `sales` are those that a shard was read for; None for a lane, which is read for all.
    """

    at_ms: int
    read_at: float  # monotonic
    sales: frozenset[UUID] | None = None
    by_sale: dict[UUID, list[Finding]] = field(default_factory=dict)
    lost_by_sale: dict[UUID, list[Finding]] = field(default_factory=dict)
    in_lanes: dict[int, list[Finding]] = field(default_factory=dict)

    def covers(self, sale_id: UUID) -> bool:
        """Whether it was read for the sale."""
        return self.sales is None or sale_id in self.sales


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


@dataclass(slots=True)
class Parts:
    """All results. `problems`: for each part that could not be renewed, the reason."""

    shard_count: int
    age_s_max: float  # an older part proves nothing
    shards: dict[int, Part] = field(default_factory=dict)
    lanes: dict[int, Part] = field(default_factory=dict)
    comparisons: dict[UUID, Comparison] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def keep(self, sale_ids: Iterable[UUID]) -> None:
        """Forget comparisons of all other sales: they have left Redis."""
        left = set(sale_ids)
        self.comparisons = {sale_id: found for sale_id, found in self.comparisons.items() if sale_id in left}

    @property
    def has_doubts(self) -> bool:
        """Whether the next deep look has something to settle."""
        found = [finding for part in self.shards.values() for listed in part.by_sale.values() for finding in listed]
        found += [finding for comparison in self.comparisons.values() for finding in comparison.findings]
        return any(not finding.certain for finding in found)

    def is_new(self, sale_id: UUID) -> bool:
        """Whether a shard was never read for the sale."""
        return len(self.shards) < self.shard_count or any(not part.covers(sale_id) for part in self.shards.values())

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
            for shard in range(self.shard_count)
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
        shards = [self.shards.get(shard) for shard in range(self.shard_count)]
        parts = [*shards, *(self.lanes.get(lane) for lane in sale.lanes)]
        times = [part.at_ms for part in parts if part is not None and part.covers(sale.sale_id)]
        return min(times) if len(times) == len(parts) else None

    def ages_s(self) -> dict[str, float]:
        """Seconds since each shard was read, by part."""
        now = time.monotonic()
        return {f"shard-{shard}": now - part.read_at for shard, part in self.shards.items()}

    def _missing(self, name: str, part: Part | None, sale_id: UUID) -> str | None:
        problem = f" ({self.problems[name]})" if name in self.problems else ""
        if part is None or not part.covers(sale_id):
            return f"{name} was not read yet{problem}"
        age_s = time.monotonic() - part.read_at
        if age_s > self.age_s_max:
            return f"{name} was last read {age_s:.0f} s ago{problem}"
        return None
