"""Finishes work that crashes interrupted: claims and releases of addresses, erasures.

Several processes may run it: every step is idempotent and compare-and-set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from backoffice.stores import AWAY
from backoffice.users.addresses import Addresses
from backoffice.users.erasure import Erasures
from runtime.process.supervision import TaskSupervisor
from runtime.process.tasks import until_tick

PERIOD_S = 5.0
SETTLED = timedelta(seconds=20)  # longer than a request works on an account
BATCH_MAX = 100  # of each kind, per shard and round
ROUND_S_MAX = 300.0  # over all shards

log = structlog.get_logger(__name__)


class Sweeper:
    """`step` is one round over a shard; `run` makes a round over all shards every `PERIOD_S`."""

    def __init__(
        self, addresses: Addresses, erasures: Erasures, *, shards: int, repaired: Callable[[int], None]
    ) -> None:
        """Uses its arguments, owns nothing. `repaired` receives the number of repairs of each step."""
        self._addresses = addresses
        self._erasures = erasures
        self._shards = shards
        self._repaired = repaired
        self._failing: set[int] = set()

    async def run(self, background: TaskSupervisor) -> None:
        """Sweep until cancelled. A shard that is away is logged once and tried again in the next round.

        Rounds that keep failing by another error are a problem of the process.
        """
        with background.rounds("sweeper", s_max=ROUND_S_MAX) as beat:
            while True:
                failed = False
                for shard in range(self._shards):
                    try:
                        self._repaired(await self.step(shard))
                    except AWAY as error:
                        if shard not in self._failing:
                            log.warning("sweeper cannot work", shard=shard, error=type(error).__name__)
                        self._failing.add(shard)
                    except Exception:
                        log.exception("sweeper failed", shard=shard)
                        failed = True
                    else:
                        self._failing.discard(shard)
                if not failed:
                    beat()
                await asyncio.sleep(until_tick(PERIOD_S))

    async def step(self, shard: int, *, settled: timedelta = SETTLED) -> int:
        """One round over a shard; the number of repairs."""
        repaired = 0
        for folded, user_id in await self._addresses.stale_claims(shard, limit=BATCH_MAX):
            repaired += await self._addresses.settle(folded, user_id)
        for user_id in await self._erasures.unfinished(shard, settled=settled, limit=BATCH_MAX):
            await self._erasures.finish(user_id)
            repaired += 1
        for release in await self._addresses.releases(shard, settled=settled, limit=BATCH_MAX):
            repaired += await self._addresses.work_off(release)
        return repaired
