"""One cache: its codec and bounds, and reads and changes through both tiers. Opens no connection; `caches` does."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from backoffice.caching.metrics import CacheMetrics, OfOneCache
from backoffice.caching.process import ProcessTier
from backoffice.caching.shared import ABSENT, BLOCK, VALUE, SharedTier
from domain.topology import cache_key
from runtime.process import tasks
from runtime.process.settings import Settings

log = structlog.get_logger(__name__)

V = TypeVar("V")
CHANGED_AT_ONCE = 32  # places that one change marks concurrently


@dataclass(frozen=True, slots=True)
class Bounds:
    """Size and times to live of a cache. An absent row is kept shorter, and never longer than a value."""

    entries_max: int = 10_000  # in the process tier
    process_ttl_s: float = 10.0
    redis_ttl_s: float = 300.0  # reduced by a random part of up to a fifth
    absent_ttl_s: float = 10.0
    unfollowed_ttl_s: float = 1.0  # in the process tier while this process receives no messages about changes
    value_bytes_max: int = 32 * 1024  # a larger value is loaded each time

    @classmethod
    def from_settings(cls, settings: Settings) -> Bounds:
        """The bounds of every cache, from the settings."""
        return cls(
            entries_max=settings.cache_entries_max,
            process_ttl_s=settings.cache_process_ttl_ms / 1000,
            redis_ttl_s=settings.cache_ttl_s,
        )


@dataclass(frozen=True, slots=True)
class Codec(Generic[V]):
    """Encodes values. `decode` raises ValueError, TypeError or KeyError for invalid bytes.

    `schema` (0..255) grows with every change of the format. It is part of the value and not of the key: so old and new
    processes invalidate the same keys during a deployment.
    """

    encode: Callable[[V], bytes]
    decode: Callable[[bytes], V]
    schema: int


@dataclass(eq=False, slots=True)
class _Flight(Generic[V]):
    """One read of a row that is not in the process tier, shared by all its concurrent readers."""

    task: asyncio.Task[V | None] | None = None
    in_redis: bool = False
    outdated: bool = False  # the row has changed since the read began


class Cache(Generic[V]):
    """Values by key. Readers share values, so values must be immutable. Made by `Caches.add`."""

    def __init__(
        self,
        name: str,
        codec: Codec[V],
        bounds: Bounds,
        *,
        shared: SharedTier,
        metrics: CacheMetrics,
        follows: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        """Empty. `follows` tells whether messages about changes arrive; `now` is the clock of the process tier."""
        self.name = name
        self._codec = codec
        self._bounds = bounds
        self._shared = shared
        self._follows = follows
        self._header = VALUE + bytes((codec.schema,))
        self._flights: dict[str, _Flight[V]] = {}
        self._tasks: set[asyncio.Task[V | None]] = set()  # of flights, outdated ones included
        self._metrics = OfOneCache(metrics, name, lambda: len(self._process))
        self._process: ProcessTier[V] = ProcessTier(bounds.entries_max, evicted=self._metrics.evicted, now=now)

    async def get(self, key: str, load: Callable[[], Awaitable[V | None]]) -> V | None:
        """The value, or None for an absent row. Raises the exceptions of `load`.

        `load` reads the database. Concurrent callers of this process share one call of it; a cancelled caller does not
        cancel it for the others.
        """
        entry = self._process.get(key)
        if entry is not None:
            self._metrics.process_hit()
            return entry.value
        self._metrics.process_miss()
        flight = self._flights.get(key)
        if flight is None:
            flight = self._start(key, load)
        assert flight.task is not None
        try:
            return await asyncio.shield(flight.task)
        finally:
            (self._metrics.redis_hit if flight.in_redis else self._metrics.redis_miss)()

    @asynccontextmanager
    async def changing(self, *keys: str) -> AsyncIterator[None]:
        """Wrap a write of rows with these keys, which may be new. The write must be committed when the block ends.

        Readers go to the database meanwhile. The rows are also dropped after an exception, because the commit may have
        succeeded.
        """
        marks = {cache_key(self.name, key): BLOCK + secrets.token_bytes(12) for key in keys}
        self.forget(keys)
        try:
            await self._apply(self._shared.block, marks)
            yield
        finally:
            self.forget(keys)
            await self._apply(self._shared.unblock, marks)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows from the process tier. Reads in progress will not put them there."""
        for key in keys:
            if self._process.drop(key):
                self._metrics.evicted("changed")
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.outdated = True

    def forget_all(self) -> None:
        """As `forget`, for all rows: messages about changes may have been lost."""
        self._process.clear()
        for flight in self._flights.values():
            flight.outdated = True
        self._flights.clear()

    async def close(self) -> None:
        """Cancel the reads in progress."""
        await tasks.cancel(*self._tasks)

    @staticmethod
    async def _apply(update: Callable[[str, bytes], Awaitable[None]], marks: dict[str, bytes]) -> None:
        places = list(marks)
        for start in range(0, len(places), CHANGED_AT_ONCE):
            await asyncio.gather(*(update(place, marks[place]) for place in places[start : start + CHANGED_AT_ONCE]))

    def _start(self, key: str, load: Callable[[], Awaitable[V | None]]) -> _Flight[V]:
        flight: _Flight[V] = _Flight()
        flight.task = asyncio.create_task(self._fly(key, flight, load), name=f"cache {self.name}")
        self._flights[key] = flight
        self._tasks.add(flight.task)

        def landed(task: asyncio.Task[V | None]) -> None:
            self._tasks.discard(task)
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not task.cancelled():
                task.exception()  # marks it as retrieved, if all readers were cancelled

        flight.task.add_done_callback(landed)
        return flight

    async def _fly(self, key: str, flight: _Flight[V], load: Callable[[], Awaitable[V | None]]) -> V | None:
        place = cache_key(self.name, key)
        found = await self._shared.look(place)
        # A value of another schema stays for the processes that can read it, until it expires.
        if found.content is not None and (found.content == ABSENT or found.content.startswith(self._header)):
            try:
                value = None if found.content == ABSENT else self._codec.decode(found.content[len(self._header) :])
            except (ValueError, TypeError, KeyError) as error:
                log.warning("a cached value cannot be read", cache=self.name, error=type(error).__name__)
                await self._shared.unblock(place, b"")
            else:
                flight.in_redis = True
                self._keep(key, flight, value, shared=True)
                return value
        try:
            self._metrics.loaded()
            value = await load()
        except Exception:
            if found.lease is not None:
                await self._shared.fill(
                    place, found.lease, None, ttl_s=0
                )  # give the lease back, so that others need not wait
            raise
        content: bytes | None = ABSENT if value is None else self._header + self._codec.encode(value)
        if content is not None and len(content) > self._bounds.value_bytes_max:
            content = None
        filled = False
        if found.lease is not None:
            ttl_s = self._bounds.absent_ttl_s if value is None else self._bounds.redis_ttl_s
            filled = await self._shared.fill(place, found.lease, content, ttl_s=ttl_s)
        if content is not None:
            self._keep(key, flight, value, shared=filled)
        return value

    def _keep(self, key: str, flight: _Flight[V], value: V | None, *, shared: bool) -> None:
        """Put the value into the process tier, unless the row has changed; `shared`: Redis has it, too."""
        if flight.outdated:
            return
        bounds = self._bounds
        ttl_s = bounds.process_ttl_s if shared and self._follows() else bounds.unfollowed_ttl_s
        self._process.put(key, value, ttl_s=min(ttl_s, bounds.absent_ttl_s) if value is None else ttl_s)
