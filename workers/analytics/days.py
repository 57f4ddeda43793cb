"""Partitions of days: made ahead, dropped when they are older than the retention. Every step may be repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from psycopg_pool import PoolTimeout, TooManyRequests

from runtime.process.backoff import Backoff
from runtime.process.service import Service
from workers.analytics.store import (
    DAY_MS,
    REFUSED_SPACE,
    SPACE,
    AnalyticsPool,
    drop_days,
    make_day,
)
from workers.consuming import PAUSE_S_MAX, TRANSIENT

AHEAD_DAYS: Final = 2
EVERY_S: Final = 900.0
_AWAY: Final[tuple[type[Exception], ...]] = (PoolTimeout, TooManyRequests, *TRANSIENT)

log = structlog.get_logger()


class Days:
    """Keeps the partitions of both schemas."""

    def __init__(
        self, pool: AnalyticsPool, *, days: int, minutes_days: int, now: Callable[[], float] = time.time
    ) -> None:
        """Uses the pool. Seconds are kept for `days`, minutes for `minutes_days`, today included."""
        self._pool = pool
        self._days = days
        self._minutes_days = max(days, minutes_days)
        self._now = now

    async def run(self, service: Service) -> None:
        """Look every `EVERY_S` until the process is to stop."""
        backoff = Backoff(longest_s=PAUSE_S_MAX)
        with service.background.rounds("analytics days", s_max=2 * EVERY_S) as beat:
            while not service.stopping.is_set():
                beat()
                try:
                    await self.keep()
                except _AWAY as error:
                    service.ready("partitions", ok=False, detail=type(error).__name__)
                    log.warning("partitions not kept", error=f"{type(error).__name__}: {error}")
                    await service.pause(backoff.next_s())
                    continue
                service.ready("partitions", ok=True)
                backoff.reset()
                await service.pause(EVERY_S)

    async def keep(self) -> list[str]:
        """Make the partitions of today and the next days, drop those that are too old; the names of the latter."""
        today = int(self._now() * 1000) // DAY_MS
        for space in (SPACE, REFUSED_SPACE):
            for day in range(today, today + AHEAD_DAYS + 1):
                await make_day(self._pool, space, day)
        first, first_minutes = today - self._days + 1, today - self._minutes_days + 1
        dropped = []
        for space in (SPACE, REFUSED_SPACE):
            dropped += await drop_days(self._pool, space, before=first, minutes_before=first_minutes)
        if dropped:
            log.info("old partitions dropped", partitions=dropped)
        return dropped
