"""The Redis tier: places that hold a value, the lease of a reader or the mark of a writer.

Every call is bounded in time, and a failure of Redis is never an error for the caller. The first byte of a place tells
its content:

    V <schema byte> <payload>   a value
    N                           the row is absent
    L <12 random bytes>         a reader has the lease to fill the place
    B <12 random bytes>         a change is in progress; the place cannot be filled

Does not decode or load values.
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
LATE_S_MAX = 0.05  # when our event loop is later than this, a timeout says nothing about Redis
LEASE_MS = 5_000  # longer than a load takes; bounds the wait for a reader that crashed
BLOCK_MS = 20_000  # longer than a handler may take (`web.routing.HANDLER_S_MAX`)
WAIT_S_MAX = 0.5  # for the load of another reader; then this reader loads, too
_POLL_S_FIRST, _POLL_S_MAX = 0.005, 0.05
OWED_MAX = 10_000
PAY_BATCH = 100
# A server with `noeviction` may also hold orders, which need the memory more than a cache.
MEMORY_PERCENT_MAX = 60


class Away(Exception):
    """Redis did not answer in time, or the breaker rejected the call."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a read: content, a lease to fill the place, or neither (load, and do not fill)."""

    content: bytes | None = None
    lease: bytes | None = None
    away: bool = False


_NOTHING = Found()
_AWAY = Found(away=True)


class SharedTier:
    """The cache Redis as one process sees it.

    Owns neither the client nor the tasks that call `pay` and `look_around`.
    """

    def __init__(self, redis: Redis, metrics: CacheMetrics) -> None:
        """Calls nothing yet."""
        self._redis = redis
        self._metrics = metrics
        self._breaker = Breaker()
        self._owed: dict[str, None] = {}
        self._has_room = True
        metrics.owed.set_function(lambda: len(self._owed))
        metrics.redis_away.set_function(lambda: self._breaker.is_open)

    async def look(self, place: str) -> Found:
        """Read a place. While another reader holds the lease, wait at most `WAIT_S_MAX` for its value."""
        if place in self._owed:  # the content may be older than a change of this process
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
        """Put a lease into an empty place; the content of a place that is not empty, else None."""
        content: Any = await self._ask(lambda: self._redis.set(place, lease, nx=True, get=True, px=LEASE_MS))
        return None if content is None else bytes(content)

    async def fill(self, place: str, lease: bytes, content: bytes | None, *, ttl_s: float) -> bool:
        """Fill a place that still holds our lease, or give the lease back without content.

        Whether content is stored.
        """
        if not self._has_room:
            content = None
        # Random, so that entries filled together do not expire together.
        life_ms = int(ttl_s * 1000 * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
        try:
            arguments = (lease, content or b"", max(1, life_ms))
            done = await self._ask(lambda: run(self._redis, _FILL, (place,), arguments))
        except Away:
            return False
        return bool(done) and content is not None

    async def block(self, place: str, mark: bytes) -> None:
        """Begin a change: mark the place."""
        try:
            await self._ask(lambda: run(self._redis, _BLOCK, (place,), (mark, BLOCK_MS, CACHE_CHANNEL)))
        except Away:
            self._owe(place)

    async def unblock(self, place: str, mark: bytes) -> None:
        """End a change, successful or not.

        Without Redis the place is owed: `pay` ends it later; reads skip Redis until then.
        """
        self._owe(place)  # before the call, which may be cancelled
        try:
            await self._ask(lambda: run(self._redis, _UNBLOCK, (place,), (mark, CACHE_CHANNEL)))
        except Away:
            self._owe(place)  # again: another change of the place may have been paid meanwhile
        else:
            self._owed.pop(place, None)

    async def pay(self) -> None:
        """Send owed changes to Redis, at most `PAY_BATCH`; stop at the first failure."""
        for place in tuple(self._owed)[:PAY_BATCH]:
            await self.unblock(place, b"")
            if place in self._owed:
                return

    async def look_around(self) -> None:
        """Read memory use and evictions of the server."""
        try:
            info: dict[str, Any] = await self._ask(self._redis.info)
        except Away:
            return
        self._metrics.redis_evicted.set(int(info.get("evicted_keys", 0)))
        most = int(info.get("maxmemory", 0))
        keeps_all = info.get("maxmemory_policy") == "noeviction"
        full = keeps_all and most > 0 and int(info["used_memory"]) * 100 > most * MEMORY_PERCENT_MAX
        if full and self._has_room:
            log.warning("the cache stops filling Redis", used_percent_max=MEMORY_PERCENT_MAX)
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
        except OutOfMemoryError as error:  # the server answers, so the breaker stays closed
            self._breaker.succeeded()
            raise Away from error
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and loop.time() - due_at > LATE_S_MAX:
                # Without this, a machine without spare processor time would send all reads to the database.
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
