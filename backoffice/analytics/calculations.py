"""Stock over time, times to pay, and the projected sell-out. Performs no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from domain.figures import PAY_TIME_BOUNDS_MS

RATE_S: Final = 10  # the projection goes on with the mean rate of the last seconds
PROJECTION_MAX: Final = timedelta(days=365)
ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)
PERCENTILES: Final = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class StockStep:
    """A SKU has this stock, restocks included, from a time on."""

    sku: str
    since: datetime
    stock: int


def stock_steps(initial: Mapping[str, int], restocks: Iterable[tuple[str, datetime, int]]) -> list[StockStep]:
    """The steps of each SKU. `restocks` are SKU, time and units, oldest first."""
    now = dict(initial)
    steps = [StockStep(sku, ALWAYS, stock) for sku, stock in initial.items()]
    for sku, at, quantity in restocks:
        if sku in now:
            now[sku] += quantity
            steps.append(StockStep(sku, at, now[sku]))
    return steps


def final_stock(steps: Iterable[StockStep]) -> dict[str, int]:
    """The stock of each SKU after its last step."""
    return {step.sku: step.stock for step in steps}


def percent(part: int, whole: int) -> float | None:
    """Share in percent with one decimal, rounded down so that 100 means all; None without a whole."""
    return None if whole <= 0 else part * 1000 // whole / 10


def projected_sell_out(*, left: int, units_per_s: float, as_of: datetime) -> datetime | None:
    """The time at which the stock is gone if units go on at this rate; None when they do not, or not within a year."""
    if left <= 0 or units_per_s <= 0 or left / units_per_s > PROJECTION_MAX.total_seconds():
        return None
    return as_of + timedelta(seconds=left / units_per_s)


def pay_percentiles(steps: Sequence[tuple[int, int]]) -> dict[int, float | None]:
    """Percentiles of the time to pay in seconds, as the upper bound of their step; None beyond the last bound.

    `steps` are number of the step and orders, ascending. Empty without orders.
    """
    total = sum(orders for _, orders in steps)
    if not total:
        return {}
    found: dict[int, float | None] = {}
    for wanted in PERCENTILES:
        reached = 0
        for step, orders in steps:
            reached += orders
            if reached * 100 >= wanted * total:
                found[wanted] = PAY_TIME_BOUNDS_MS[step] / 1000 if step < len(PAY_TIME_BOUNDS_MS) else None
                break
    return found
