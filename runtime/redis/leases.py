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

from runtime.redis.renewals import renewals_of
from runtime.redis.scripts import Script, load_script, run

log = structlog.get_logger()

_ACQUIRE = load_script("runtime.redis", "lease_acquire-2")
_RELEASE = load_script("runtime.redis", "lease_release-1")
_SEIZE = load_script("runtime.redis", "lease_seize-2")


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
        self.redis = redis
        self._renewals = renewals_of(redis)
        self._fence_key = fence_key
        self.life_ms = life_ms
        self.ends_at = 0.0  # by our own clock; moved by the renewals

    @property
    def held(self) -> bool:
        """Whether the lease is ours by our own clock; after a pause of the process, only if the lease still lives."""
        if not self.lost.is_set() and time.monotonic() >= self.ends_at:
            self.lost.set()
        return not self.lost.is_set()

    async def acquire(self) -> bool:
        """Try once to take the lease; from then on it is renewed. Raises RedisError when Redis does not answer."""
        return await self._take(_ACQUIRE)

    async def seize(self) -> None:
        """Take the lease, also from another holder, who learns it with its next renewal.

        The other holder may work until its lease would have ended: `life_ms` of its own. Raises RedisError.
        """
        taken = await self._take(_SEIZE)
        assert taken, "this script always answers a token"

    async def _take(self, script: Script) -> bool:
        assert not self.held, "a held lease is not acquired again"
        await self._renewals.remove(self)
        asked_at = time.monotonic()
        token = int(await run(self.redis, script, (self.key, self._fence_key), (self.life_ms,)))
        if token == 0:
            return False
        self.token = token
        self.ends_at = asked_at + self.life_ms / 1000
        self.lost.clear()
        self._renewals.add(self)
        return True

    async def release(self) -> None:
        """Give the lease back if it is held. When Redis is unreachable, the lease runs out instead."""
        await self._renewals.remove(self)
        if self.held:
            self.lost.set()
            try:
                await run(self.redis, _RELEASE, (self.key,), (self.token,))
            except RedisError as error:
                log.warning("lease not given back", lease=self.key, error=str(error))
