"""Compares the provider's ledger with the shards once an hour, and publishes the verdict as metrics.

A verdict has an age. One that is too old, and one that could not be made, show no count of differences at all: nothing
that is not known stands as good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from payments.both_ledgers import BothLedgers, TooMuch
from payments.comparing import Comparison, Kind
from payments.providers.port import ProviderAway, ProviderRefused
from runtime.redis.leases import Lease
from workers.payments import metrics

ROLE: Final = "payments-comparison"
EVERY_S: Final = 3600.0
AGAIN_S: Final = 60.0  # after a comparison that could not be made
ROUND_S_MAX: Final = 1800.0
WINDOW: Final = timedelta(hours=26)  # a day, and time for a comparison that was missed
COUNTS_S_MAX: Final = 2 * EVERY_S  # an older verdict shows nothing
LOGGED_MAX: Final = 20
UNKNOWN: Final = float("nan")

log = structlog.get_logger()


class HourlyComparison:
    """The comparison; `step` is one round, which compares when it is time to."""

    def __init__(
        self,
        both: BothLedgers,
        *,
        every_s: float = EVERY_S,
        again_s: float = AGAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`both` is owned elsewhere. `clock` counts seconds."""
        self._both = both
        self._every_s = every_s
        self._again_s = again_s
        self._clock = clock
        self._due_at = clock()
        self._made_at: float | None = None
        self._differences: Counter[Kind] | None = None
        for kind in Kind:
            metrics.DIFFERENCES.labels(kind.value).set_function(partial(self.count, kind))
        metrics.COMPARED_AGE_SECONDS.set_function(self.age_s)

    async def step(self, lease: Lease) -> bool:  # noqa: ARG002 - the signature of a round; it only reads
        """Compare, if it is time to. False: there is nothing to do at once."""
        now = self._clock()
        if now < self._due_at:
            return False
        self._due_at = now + self._again_s  # also when it ends by an exception
        try:
            comparison = await self._both.compare(datetime.now(UTC) - WINDOW)
        except (ProviderAway, ProviderRefused, TooMuch) as error:
            self._fail(str(error))
            return False
        except Exception as error:
            self._fail(type(error).__name__)
            raise
        self._due_at = now + self._every_s
        self._publish(comparison)
        return False

    def count(self, kind: Kind) -> float:
        """Differences of a kind; not a number while there is no verdict."""
        if self._differences is None or self.age_s() > COUNTS_S_MAX:
            return UNKNOWN
        return float(self._differences[kind])

    def age_s(self) -> float:
        """Age of the last verdict; not a number before the first one."""
        return UNKNOWN if self._made_at is None else self._clock() - self._made_at

    def _publish(self, comparison: Comparison) -> None:
        self._made_at = self._clock()
        self._differences = Counter(difference.kind for difference in comparison.differences)
        metrics.COMPARISONS.labels("made").inc()
        for difference in comparison.differences[:LOGGED_MAX]:
            log.error(
                "ledgers differ", kind=difference.kind.value, id=difference.id, order_id=str(difference.order_id),
                ours=difference.ours, theirs=difference.theirs,
            )  # fmt: skip
        log.info(
            "ledgers compared", payments=comparison.payments, refunds=comparison.refunds,
            differences=len(comparison.differences), under_way=comparison.under_way,
        )  # fmt: skip

    def _fail(self, reason: str) -> None:
        self._differences = None
        metrics.COMPARISONS.labels("failed").inc()
        log.error("ledgers not compared", reason=reason)
