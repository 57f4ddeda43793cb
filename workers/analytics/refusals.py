"""Samples the counts of refused orders that edges keep in Redis, and adds their growth to the figures.

Once a second while counts grow or orders are counted, otherwise every few seconds: a look is one round trip for the
list of sales and one for their counts. Refusals count in the second of the sample that sees them. After a restart, the
first sample adds all refusals since the last one, in its own second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, cast
from uuid import UUID

from redis.asyncio import Redis

from domain import ids
from domain.topology import REFUSED_KEY_PREFIX, SALES_KEY
from runtime.redis.leases import Lease
from workers.analytics import metrics
from workers.analytics.store import RefusalCounts

BUSY_S: Final = 1.0
QUIET_S: Final = 4.0
STAYS_BUSY_S: Final = 10.0
SALES_MAX: Final = 1_000  # the bound of an edge
CODES_MAX: Final = 60  # of a sale
CODE_LENGTH_MAX: Final = 60


class RefusalSampler:
    """See the module. `look` is a round (`workers.rounds`) of one process at a time."""

    def __init__(self, redis: Redis, counts: RefusalCounts, *, now: Callable[[], float] = time.time) -> None:
        """Uses both, owns nothing."""
        self._redis = redis
        self._counts = counts
        self._now = now
        self._last: dict[tuple[UUID, str], int] | None = None
        self._busy_until = self._looked_at = 0.0

    def wake(self) -> None:
        """Orders were counted: refusals are likely."""
        self._busy_until = time.monotonic() + STAYS_BUSY_S

    async def look(self, _: Lease) -> bool:
        """Take a sample if it is time."""
        now = time.monotonic()
        if now < self._busy_until or now >= self._looked_at + QUIET_S - BUSY_S / 2:
            self._looked_at = now
            await self.sample()
        return False

    async def sample(self) -> int:
        """Add the growth since the last sample; the number of refused orders."""
        counts = await self._read()
        if counts == self._last:
            return 0
        growth = await self._counts.add(counts, int(self._now() * 1000))
        self._last = counts
        if growth:
            metrics.REFUSALS.inc(growth)
            self.wake()
        return growth

    async def _read(self) -> dict[tuple[UUID, str], int]:
        members = cast(set[bytes], await cast(Any, self._redis.smembers(SALES_KEY)))
        sales = [found for member in sorted(members) if (found := ids.parse_uuid(member.decode()))][:SALES_MAX]
        if not sales:
            return {}
        async with self._redis.pipeline(transaction=False) as pipeline:
            for sale_id in sales:
                pipeline.hgetall(REFUSED_KEY_PREFIX + str(sale_id))
            hashes = await pipeline.execute()
        return {
            (sale_id, code.decode()): int(count)
            for sale_id, hash_ in zip(sales, hashes, strict=True)
            for code, count in sorted(hash_.items())[:CODES_MAX]
            if code and len(code) <= CODE_LENGTH_MAX
        }
