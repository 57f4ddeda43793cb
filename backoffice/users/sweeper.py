"""Finishes what crashes interrupted: claims and releases of addresses, erasures. Repeats for ever.

Several processes may run it: every step is idempotent and compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from backoffice.users.addresses import Addresses
from backoffice.users.erasure import AWAY, Erasures

PERIOD_S = 5.0
SETTLED = timedelta(seconds=20)  # no request works longer on an account
BATCH_MAX = 100  # of each kind, a shard and round

log = structlog.get_logger(__name__)


class Sweeper:
    """One pass is `step`; `run` makes one every `PERIOD_S`."""

    def __init__(
        self, addresses: Addresses, erasures: Erasures, *, shards: int, repaired: Callable[[int], None]
    ) -> None:
        """Uses them, owns nothing; `repaired` is told how much a round put right."""
        self._addresses = addresses
        self._erasures = erasures
        self._shards = shards
        self._repaired = repaired
        self._failing: set[int] = set()

    async def run(self) -> None:
        """For ever; a shard that is away is tried again in the next round, and told once."""
        while True:
            for shard in range(self._shards):
                try:
                    self._repaired(await self.step(shard))
                except AWAY as error:
                    if shard not in self._failing:
                        log.warning("sweeper cannot work", shard=shard, error=type(error).__name__)
                    self._failing.add(shard)
                except Exception:
                    log.exception("sweeper failed", shard=shard)
                else:
                    self._failing.discard(shard)
            await asyncio.sleep(PERIOD_S)

    async def step(self, shard: int, *, settled: timedelta = SETTLED) -> int:
        """One round over a shard; the number of things that had to be put right."""
        repaired = 0
        for folded, user_id in await self._addresses.stale_claims(shard, limit=BATCH_MAX):
            repaired += await self._addresses.settle(folded, user_id)
        for user_id in await self._erasures.unfinished(shard, settled=settled, limit=BATCH_MAX):
            await self._erasures.finish(user_id)
            repaired += 1
        for release in await self._addresses.releases(shard, settled=settled, limit=BATCH_MAX):
            repaired += await self._addresses.work_off(release)
        return repaired
