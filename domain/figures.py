"""Figures of sales: the columns of a row, and the steps of the histogram of times to pay. Performs no I/O."""

from __future__ import annotations

from typing import Final

# Counts of a second or a minute, in the order of the columns of `figures.seconds`. Stored: never renamed.
COUNTS: Final = (
    "orders", "units", "orders_minor", "paid", "paid_units", "revenue_minor", "cancelled", "expired", "rejected",
    "refunds", "refunded_minor",
)  # fmt: skip
# Upper bounds of the steps, each a quarter more than the one before. Stored rows name the steps by number: the bounds
# never change. The last step has no bound.
PAY_TIME_BOUNDS_MS: Final = tuple(round(250 * 1.25**step) for step in range(60))
# Advisory lock of the analytics database: shared by those who use a generation, exclusive to replace the generation.
SWITCH_LOCK: Final = 0x666C6173_66696773
REBUILD_LOCK: Final = 0x666C6173_66696774  # of the session of a rebuild: one at a time
