"""One cache: what its values are, and how a read goes through both tiers. Opens nothing; `caches` does."""

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
CHANGED_AT_ONCE = 32  # places that one change marks side by side


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a cache keeps and for how long. What is absent is kept for less, and never for longer than a value."""

    entries_max: int = 10_000  # in the process tier
    process_ttl_s: float = 10.0
    redis_ttl_s: float = 300.0  # and up to a fifth less
    absent_ttl_s: float = 10.0
    unfollowed_ttl_s: float = 1.0  # in the process tier while messages about changes do not reach us
    value_bytes_max: int = 32 * 1024  # what is bigger is loaded each time

    @classmethod
    def from_settings(cls, settings: Settings) -> Bounds:
        """The bounds that the settings give every cache."""
        return cls(
            entries_max=settings.cache_entries_max,
            process_ttl_s=settings.cache_process_ttl_ms / 1000,
            redis_ttl_s=settings.cache_ttl_s,
        )


@dataclass(frozen=True, slots=True)
class Codec(Generic[V]):
    """Bytes of a value and back. `decode` raises ValueError, TypeError or KeyError for bytes that are no value.

    `schema` (0..255) grows with every change of the bytes' meaning. It is in the value and not in its name: so an old and a
    new process, side by side during a deployment, tell each other of changes.
    """

    encode: Callable[[V], bytes]
    decode: Callable[[bytes], V]
    schema: int


@dataclass(eq=False, slots=True)
class _Flight(Generic[V]):
    """One read of a row that was not in the process tier, shared by all who want it now."""

    task: asyncio.Task[V | None] | None = None
    in_redis: bool = False
    outdated: bool = False  # the row has changed since


class Cache(Generic[V]):
    """Values by key; immutable ones, for readers share them. Made by `Caches.add`."""

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
        """Empty. `follows` tells whether messages about changes reach this process; `now` is the process tier's clock."""
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
        """The value, None for what is absent. Raises what `load` raises.

        `load` reads the database and is called at most once at a time in this process, whoever waits; a caller that is
        cancelled does not end it for the others.
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
        """Around a write of rows with these keys, committed when the block ends, also of rows that do not exist yet.

        Readers go to the database meanwhile. A body that fails may have committed all the same: the rows are forgotten.
        """
        marks = {cache_key(self.name, key): BLOCK + secrets.token_bytes(12) for key in keys}
        self.forget(keys)
        try:
            await self._told(self._shared.block, marks)
            yield
        finally:
            self.forget(keys)
            await self._told(self._shared.unblock, marks)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows from the process tier, and keep reads under way from putting them there."""
        for key in keys:
            if self._process.drop(key):
                self._metrics.evicted("changed")
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.outdated = True

    def forget_all(self) -> None:
        """As `forget`, of everything: messages about changes may have been lost."""
        self._process.clear()
        for flight in self._flights.values():
            flight.outdated = True
        self._flights.clear()

    async def close(self) -> None:
        """End the reads under way."""
        await tasks.cancel(*self._tasks)

    @staticmethod
    async def _told(tell: Callable[[str, bytes], Awaitable[None]], marks: dict[str, bytes]) -> None:
        places = list(marks)
        for start in range(0, len(places), CHANGED_AT_ONCE):
            await asyncio.gather(*(tell(place, marks[place]) for place in places[start : start + CHANGED_AT_ONCE]))

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
                task.exception()  # perhaps nobody waits any more who would take it

        flight.task.add_done_callback(landed)
        return flight

    async def _fly(self, key: str, flight: _Flight[V], load: Callable[[], Awaitable[V | None]]) -> V | None:
        place = cache_key(self.name, key)
        found = await self._shared.look(place)
        # A value of another schema is left to the processes that can read it, and ends by its time.
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
                await self._shared.fill(place, found.lease, None, ttl_s=0)  # others need not wait for us
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
        """Into the process tier, unless the row changed meanwhile; `shared`: Redis has it, too."""
        if flight.outdated:
            return
        bounds = self._bounds
        ttl_s = bounds.process_ttl_s if shared and self._follows() else bounds.unfollowed_ttl_s
        self._process.put(key, value, ttl_s=min(ttl_s, bounds.absent_ttl_s) if value is None else ttl_s)
