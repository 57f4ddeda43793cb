"""All caches of a process: their Redis client, and the tasks that receive changes and send owed ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from backoffice.caching.cache import Bounds, Cache, Codec
from backoffice.caching.metrics import CacheMetrics
from backoffice.caching.shared import CALL_S_MAX, SharedTier
from domain.topology import CACHE_CHANNEL, parse_cache_key
from runtime.process.supervision import TaskSupervisor, Work
from runtime.process.tasks import until_tick
from runtime.redis.channel import Channel
from runtime.redis.client import redis_client

V = TypeVar("V")
CONNECTIONS_MAX = 32
PING_S = 1.0
PINGS_UNANSWERED_MAX = 2
RECONNECT_S_MAX = 0.5
TEND_S = 0.5
LOOK_AROUND_S = 10.0


class Caches:
    """One instance a process. Add all caches before `running`."""

    def __init__(
        self, cache_url: str, registry: CollectorRegistry, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Does not connect yet. `now` is the clock of the process tiers, in seconds."""
        self._now = now
        # A separate client: its short time limit would be wrong for callers that require Redis.
        self._redis = redis_client(cache_url, connections_max=CONNECTIONS_MAX, timeout_s=2 * CALL_S_MAX)
        self._metrics = CacheMetrics(registry)
        self._shared = SharedTier(self._redis, self._metrics)
        self._caches: dict[str, Cache[Any]] = {}
        self._channel = Channel(
            self._redis,
            CACHE_CHANNEL,
            opened=self._opened,
            received=self._received,
            lost=self._forget_all,
            ping_s=PING_S,
            pings_unanswered_max=PINGS_UNANSWERED_MAX,
            reconnect_s_max=RECONNECT_S_MAX,
        )
        self._metrics.following.set_function(lambda: self.follows)

    @property
    def follows(self) -> bool:
        """Whether this process receives messages about changes."""
        return self._channel.is_open

    def add(self, name: str, codec: Codec[V], bounds: Bounds) -> Cache[V]:
        """Add a cache. `name` is the prefix of its keys in Redis."""
        assert name not in self._caches and ":" not in name
        cache = Cache(
            name,
            codec,
            bounds,
            shared=self._shared,
            metrics=self._metrics,
            follows=lambda: self.follows,
            now=self._now,
        )
        self._caches[name] = cache
        return cache

    @asynccontextmanager
    async def running(self, background: TaskSupervisor) -> AsyncIterator[None]:
        """Receive messages about changes. Reads also work before and after, as they do without Redis."""
        work: dict[str, Work] = {"cache changes": self._channel.follow, "cache upkeep": self._tend}
        for name, part in work.items():
            background.start(name, part)
        try:
            yield
        finally:
            for name in work:
                await background.cancel(name)
            for cache in self._caches.values():
                await cache.close()
            await self._redis.aclose()

    async def _opened(self) -> None:
        """Changes published while the channel was down are unknown."""
        self._forget_all()

    async def _received(self, payload: bytes) -> None:
        place = parse_cache_key(payload.decode("utf-8", "replace"))
        if place is not None and place[0] in self._caches:
            self._caches[place[0]].forget((place[1],))

    def _forget_all(self) -> None:
        for cache in self._caches.values():
            cache.forget_all()

    async def _tend(self) -> None:
        look_at = 0.0
        while True:
            await self._shared.pay()
            if time.monotonic() >= look_at:
                await self._shared.look_around()
                look_at = time.monotonic() + LOOK_AROUND_S
            await asyncio.sleep(until_tick(TEND_S))
