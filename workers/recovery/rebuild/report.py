"""The report of a rebuild, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from workers.recovery.rebuild.records import Tally

LOST_RANGES_SHOWN = 100


@dataclass(slots=True)
class Report:
    """Filled step by step. `lost`: inclusive ranges of lane sequences that were accepted and no longer exist."""

    sale_id: UUID
    epoch: int = 0
    tally: Tally = field(default_factory=Tally)
    skus: list[dict[str, Any]] = field(default_factory=list)
    lane_seq: dict[int, int] = field(default_factory=dict)
    restocks: int = 0
    dead_letters: int = 0
    dead_letters_left_out: int = 0
    quiet: bool = True
    lost: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    took_s: float = 0.0

    def as_document(self) -> dict[str, Any]:
        """Members of the JSON report."""
        lanes = [
            {
                "lane": lane,
                "entries": sum(last - first + 1 for first, last in ranges),
                "ranges": [list(bounds) for bounds in ranges[:LOST_RANGES_SHOWN]],
            }
            for lane, ranges in sorted(self.lost.items())
        ]
        return {
            "sale_id": str(self.sale_id),
            "epoch": self.epoch,
            "users": self.tally.users,
            "orders": dict(sorted(self.tally.orders.items())),
            "skus": self.skus,
            "lane_seq": {str(lane): seq for lane, seq in sorted(self.lane_seq.items())},
            "restocks": self.restocks,
            "dead_letters": self.dead_letters,
            "dead_letters_left_out": self.dead_letters_left_out,
            "queue_was_quiet": self.quiet,
            "lost": lanes,
            "took_s": round(self.took_s, 3),
        }
