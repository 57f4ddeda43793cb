"""The Redis tier: places that hold a value, a reader's lease or a writer's mark. Bounded in time, never an error.

What a place holds, by its first byte:

    V <schema byte> <payload>   a value
    N                           known to be absent
    L <12 random bytes>         a reader was given the lease to fill it
    B <12 random bytes>         a change is under way: nobody fills it

Does not know what values mean, and does not load them.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from backoffice.caching.breaker import Breaker
from backoffice.caching.metrics import CacheMetrics
from domain.topology import CACHE_CHANNEL
from runtime.redis.scripts import load_script, run

log = structlog.get_logger(__name__)

VALUE, ABSENT, LEASE, BLOCK = b"V", b"N", b"L", b"B"
_FILL = load_script("backoffice.caching", "cache_fill-1")
_BLOCK = load_script("backoffice.caching", "cache_block-1")
_UNBLOCK = load_script("backoffice.caching", "cache_unblock-1")

CALL_S_MAX = 0.5
LATE_S_MAX = 0.05  # of our own loop: later, and a time-out tells of us and not of Redis
LEASE_MS = 5_000  # longer than a load takes; a reader that died is waited for no longer
BLOCK_MS = 20_000  # longer than a handler may take (`web.routing.HANDLER_S_MAX`)
WAIT_S_MAX = 0.5  # for another's load; then this reader loads, too
_POLL_S_FIRST, _POLL_S_MAX = 0.005, 0.05
OWED_MAX = 10_000
PAY_BATCH = 100
# A server that evicts nothing may be shared with orders, which need its memory more than we do.
MEMORY_PERCENT_MAX = 60


class Away(Exception):
    """Redis did not answer in time, or is not asked at present."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader finds: a value's content, a lease to fill the place, or neither (load, and fill nothing)."""

    content: bytes | None = None
    lease: bytes | None = None
    away: bool = False


_NOTHING = Found()
_AWAY = Found(away=True)


class SharedTier:
    """The cache Redis as one process sees it. Owns neither the client nor the tasks that call `pay` and `look_around`."""

    def __init__(self, redis: Redis, metrics: CacheMetrics) -> None:
        """Nothing is asked yet."""
        self._redis = redis
        self._metrics = metrics
        self._breaker = Breaker()
        self._owed: dict[str, None] = {}
        self._has_room = True
        metrics.owed.set_function(lambda: len(self._owed))
        metrics.redis_away.set_function(lambda: self._breaker.is_open)

    async def look(self, place: str) -> Found:
        """What is there. While another reader holds the lease, waits for its value, for a bounded time."""
        if place in self._owed:  # what Redis has may be older than a change of ours
            return _NOTHING
        try:
            return await self._look(place)
        except Away:
            return _AWAY

    async def _look(self, place: str) -> Found:
        content = await self._read(place)
        waited_s, pause_s = 0.0, _POLL_S_FIRST
        while True:
            if content is None:
                lease = LEASE + secrets.token_bytes(12)
                content = await self._take(place, lease)
                if content is None:
                    return Found(lease=lease)
            kind = content[:1]
            if kind in (VALUE, ABSENT):
                return Found(content=content)
            if kind != LEASE or waited_s >= WAIT_S_MAX:
                return _NOTHING
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            waited_s += pause_s
            pause_s = min(_POLL_S_MAX, pause_s * 2)
            content = await self._read(place)

    async def _read(self, place: str) -> bytes | None:
        content: Any = await self._ask(lambda: self._redis.get(place))
        return None if content is None else bytes(content)

    async def _take(self, place: str, lease: bytes) -> bytes | None:
        """Put a lease into an empty place; what was there, None when the lease is."""
        content: Any = await self._ask(lambda: self._redis.set(place, lease, nx=True, get=True, px=LEASE_MS))
        return None if content is None else bytes(content)

    async def fill(self, place: str, lease: bytes, content: bytes | None, *, ttl_s: float) -> bool:
        """Put content where our lease still stands, None: give the lease back. Whether the content is there now."""
        if not self._has_room:
            content = None
        life_ms = int(ttl_s * 1000 * random.uniform(0.8, 1.0))  # noqa: S311 - what was filled together does not end together
        try:
            arguments = (lease, content or b"", max(1, life_ms))
            done = await self._ask(lambda: run(self._redis, _FILL, (place,), arguments))
        except Away:
            return False
        return bool(done) and content is not None

    async def block(self, place: str, mark: bytes) -> None:
        """A change begins."""
        try:
            await self._ask(lambda: run(self._redis, _BLOCK, (place,), (mark, BLOCK_MS, CACHE_CHANNEL)))
        except Away:
            self._owe(place)

    async def unblock(self, place: str, mark: bytes) -> None:
        """A change ended, well or not. When Redis cannot be told it is told later, and not asked for the place before."""
        self._owe(place)  # first: this may be cancelled
        try:
            await self._ask(lambda: run(self._redis, _UNBLOCK, (place,), (mark, CACHE_CHANNEL)))
        except Away:
            self._owe(place)  # again: another change of it may have been told meanwhile
        else:
            self._owed.pop(place, None)

    async def pay(self) -> None:
        """Tell Redis of the changes that it missed."""
        for place in tuple(self._owed)[:PAY_BATCH]:
            await self.unblock(place, b"")
            if place in self._owed:
                return

    async def look_around(self) -> None:
        """See how much memory the server has left and what it evicted."""
        try:
            info: dict[str, Any] = await self._ask(self._redis.info)
        except Away:
            return
        self._metrics.redis_evicted.set(int(info.get("evicted_keys", 0)))
        most = int(info.get("maxmemory", 0))
        keeps_all = info.get("maxmemory_policy") == "noeviction"
        full = keeps_all and most > 0 and int(info["used_memory"]) * 100 > most * MEMORY_PERCENT_MAX
        if full and self._has_room:
            log.warning("the cache fills Redis no more", used_percent_max=MEMORY_PERCENT_MAX)
        self._has_room = not full

    def _owe(self, place: str) -> None:
        self._owed[place] = None
        if len(self._owed) > OWED_MAX:
            del self._owed[next(iter(self._owed))]
            self._metrics.lost.inc()

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if not self._breaker.admits():
            raise Away
        loop = asyncio.get_running_loop()
        due_at = loop.time() + CALL_S_MAX
        try:
            async with asyncio.timeout(CALL_S_MAX):
                answer = await call()
        except OutOfMemoryError as error:  # it answers, it only cannot take more
            self._breaker.succeeded()
            raise Away from error
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and loop.time() - due_at > LATE_S_MAX:
                # Without this, a machine that is short of processor time would turn to the database for everything.
                self._breaker.abandoned()
            else:
                self._breaker.failed()
            self._metrics.redis_failures.inc()
            log.warning("cache Redis failed", error=type(error).__name__)
            raise Away from error
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return answer
