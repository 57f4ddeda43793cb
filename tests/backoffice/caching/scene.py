"""A database of one table, and the caches of processes over it, for the tests of caching."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from backoffice.caching.cache import Cache, Codec
from backoffice.caching.caches import Caches
from domain.topology import cache_key

PLACE = cache_key("row", "1")
WAIT_S_MAX = 20.0


def _decode(content: bytes) -> str:
    if content == b"broken":
        raise ValueError
    return content.decode()


CODEC: Codec[str] = Codec(str.encode, _decode, schema=3)


@dataclass
class Rows:
    """A database of one table, whose reads can be delayed."""

    rows: dict[str, str] = field(default_factory=dict)
    loads: int = 0
    read: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def load(self, key: str) -> Callable[[], Awaitable[str | None]]:
        async def load() -> str | None:
            self.loads += 1
            await asyncio.sleep(0.01)
            return self.rows.get(key)

        return load

    def slow_load(self, key: str) -> Callable[[], Awaitable[str | None]]:
        """A slow reader: reads the row, then waits for `go_on`."""

        async def load() -> str | None:
            self.loads += 1
            row = self.rows.get(key)
            self.read.set()
            await self.go_on.wait()
            return row

        return load


@dataclass
class Process:
    """The caches of one process, and one of them."""

    caches: Caches
    cache: Cache[str]
    registry: CollectorRegistry

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    @property
    def hits_and_misses(self) -> tuple[float, float, float, float]:
        """Hits and misses of the process tier, then of the Redis tier."""
        counts = [
            self.count(f"flashsale_cache_{kind}_total", cache="row", tier=tier)
            for tier in ("process", "redis")
            for kind in ("hits", "misses")
        ]
        return counts[0], counts[1], counts[2], counts[3]


Start = Callable[..., Awaitable[Process]]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)
