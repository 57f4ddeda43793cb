"""Adds changes up to rows of the figures. Performs no I/O.

Sums, counts and the latest time do not depend on the order of the changes, so late and reordered events give the same
rows. A change counts in the second and the minute of its own time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from domain.figures import COUNTS, PAY_TIME_BOUNDS_MS
from workers.analytics.changes import TIME_MS_MAX, Change, Counted

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
_PLACE: Final = {name: place for place, name in enumerate(COUNTS)}
_ORDERS, _PAID, _REFUNDS = _PLACE["orders"], _PLACE["paid"], _PLACE["refunds"]
_ENDED: Final = {
    Change.CANCELLED: _PLACE["cancelled"],
    Change.EXPIRED: _PLACE["expired"],
    Change.REJECTED: _PLACE["rejected"],
}
# Units of a rejected order do not come back: they are written off.
_RETURNING: Final = frozenset({Change.CANCELLED, Change.EXPIRED})

Point = tuple[UUID, int, str]  # sale, start in Unix ms, currency
SkuPoint = tuple[UUID, str, int]
PayPoint = tuple[UUID, int, int]  # sale, minute in Unix ms, step


class Tally:
    """Rows to be added to the figures, for one batch of changes."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.seconds: dict[Point, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
        self.minutes: dict[Point, list[int]] = defaultdict(lambda: [0] * len(COUNTS))
        # reserved, returned, times of the first and the last reservation
        self.skus: dict[SkuPoint, list[int]] = defaultdict(lambda: [0, 0, TIME_MS_MAX, 0])
        self.pay_times: dict[PayPoint, int] = defaultdict(int)

    def add(self, changes: Iterable[Counted]) -> None:
        """Count changes that are not counted yet."""
        for counted in changes:
            second = counted.at_ms - counted.at_ms % SECOND_MS
            self._count(self.seconds[counted.sale_id, second, counted.currency], counted)
            change = counted.change
            if change is Change.RESERVED:
                for sku, quantity in counted.lines:
                    row = self.skus[counted.sale_id, sku, second]
                    row[0] += quantity
                    row[2], row[3] = min(row[2], counted.at_ms), max(row[3], counted.at_ms)
            elif change in _RETURNING:
                for sku, quantity in counted.lines:
                    self.skus[counted.sale_id, sku, second][1] += quantity
            elif change is Change.PAID:
                minute = counted.at_ms - counted.at_ms % MINUTE_MS
                self.pay_times[counted.sale_id, minute, pay_step(counted.at_ms - counted.reserved_at_ms)] += 1

    def close(self) -> None:
        """Add the minutes up from the seconds, once, after the last change."""
        for (sale_id, second, currency), counts in self.seconds.items():
            minute = self.minutes[sale_id, second - second % MINUTE_MS, currency]
            for place, count in enumerate(counts):
                minute[place] += count

    @staticmethod
    def _count(row: list[int], counted: Counted) -> None:
        change = counted.change
        if change is Change.RESERVED or change is Change.PAID:
            place = _ORDERS if change is Change.RESERVED else _PAID
            row[place] += 1
            row[place + 1] += sum(quantity for _, quantity in counted.lines)
            row[place + 2] += counted.amount_minor
        elif change is Change.REFUNDED:
            row[_REFUNDS] += 1
            row[_REFUNDS + 1] += counted.amount_minor
        else:
            row[_ENDED[change]] += 1


def pay_step(ms: int) -> int:
    """The step of the histogram of times to pay: the first bound that is not below `ms`; the last step has no bound."""
    return bisect_left(PAY_TIME_BOUNDS_MS, ms)
