"""Leases in Redis with fencing tokens: one holder at a time, and a holder that was paused does no harm later.

The holder passes `token` to scripts that compare it with the lease's value (`trim-2`). A lease alone never protects
data, because a process can stop between reading its clock and writing; the token protects it.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from runtime.process import tasks
from runtime.redis.scripts import load_script, run

log = structlog.get_logger()

_ACQUIRE = load_script("runtime.redis", "lease_acquire-2")
_RENEW = load_script("runtime.redis", "lease_renew-1")
_RELEASE = load_script("runtime.redis", "lease_release-1")

RENEWALS_PER_LIFE = 3


class LeaseLost(Exception):
    """Redis says that another process holds the lease, whatever our own clock says."""


class Lease:
    """One lease, taken and lost any number of times.

    `lost` is set while the lease is not held. Each successful `acquire` draws a new `token`, greater than all earlier
    ones. The holder's own clock ends the lease slightly before Redis does.
    """

    def __init__(self, redis: Redis, *, key: str, fence_key: str, life_ms: int) -> None:
        """`key` and `fence_key` must share a hash tag; `life_ms` is the life of a lease that is not renewed."""
        self.key = key
        self.token = 0
        self.lost = asyncio.Event()
        self.lost.set()
        self._redis = redis
        self._fence_key = fence_key
        self.life_ms = life_ms
        self._ends_at = 0.0
        self._renewal: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether the lease is ours by our own clock; after a pause of the process, only if the lease still lives."""
        if not self.lost.is_set() and time.monotonic() >= self._ends_at:
            self.lost.set()
        return not self.lost.is_set()

    async def acquire(self) -> bool:
        """Try once to take the lease; a task then renews it. Raises RedisError when Redis does not answer."""
        assert not self.held, "a held lease is not acquired again"
        await self._stop_renewal()
        asked_at = time.monotonic()
        token = int(await run(self._redis, _ACQUIRE, (self.key, self._fence_key), (self.life_ms,)))
        if token == 0:
            return False
        self.token = token
        self._ends_at = asked_at + self.life_ms / 1000
        self.lost.clear()
        self._renewal = asyncio.create_task(self._renew_until_lost(), name=f"renew {self.key}")
        self._renewal.add_done_callback(self._ended)
        return True

    async def release(self) -> None:
        """Give the lease back if it is held. When Redis is unreachable, the lease runs out instead."""
        await self._stop_renewal()
        if self.held:
            self.lost.set()
            try:
                await run(self._redis, _RELEASE, (self.key,), (self.token,))
            except RedisError as error:
                log.warning("lease not given back", lease=self.key, error=str(error))

    async def _stop_renewal(self) -> None:
        if self._renewal is not None:
            await tasks.cancel(self._renewal)
            self._renewal = None

    async def _renew_until_lost(self) -> None:
        """Renew `RENEWALS_PER_LIFE` times in a life, more often after an error, until it ends by our own clock."""
        interval_s = self.life_ms / 1000 / RENEWALS_PER_LIFE
        pause_s = interval_s
        while self.held:
            await asyncio.sleep(min(pause_s, max(0.0, self._ends_at - time.monotonic())))
            asked_at = time.monotonic()
            try:
                # A renewal confirmed after the lease's end is useless, so the wait ends there.
                async with asyncio.timeout(max(0.001, self._ends_at - asked_at)):
                    renewed = await run(self._redis, _RENEW, (self.key,), (self.token, self.life_ms))
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("lease not renewed", lease=self.key, error=str(error) or type(error).__name__)
                pause_s = interval_s / 5
                continue
            if not renewed:
                break
            self._ends_at = asked_at + self.life_ms / 1000
            pause_s = interval_s
        log.warning("lease lost", lease=self.key, token=self.token)

    def _ended(self, renewal: asyncio.Task[None]) -> None:
        """Without a renewal the lease is lost, whatever ended it: the holder must not wait for its own clock."""
        if not renewal.cancelled():
            self.lost.set()
            if (error := renewal.exception()) is not None:
                log.error("task ended", task=renewal.get_name(), by=type(error).__name__, exc_info=error)
