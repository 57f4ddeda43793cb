"""The databases behind the backoffice: catalogue, shards, reservation Redis, cache Redis. Opens and closes them; no queries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from domain.topology import Topology
from runtime.clients import postgres_pool, redis_client
from runtime.settings import Settings

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
_CLOSE_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Stores:
    """Clients of one process; `shards` in shard order."""

    catalogue: Pool
    shards: tuple[Pool, ...]
    redis: Redis
    cache: Redis
    topology: Topology

    @classmethod
    def from_settings(cls, settings: Settings) -> Stores:
        """Unopened clients; ValueError when the number of shard dsns is not that of the shards."""
        if len(settings.shard_dsns) != settings.shards:
            raise ValueError(f"FLASHSALE_SHARD_DSNS names {len(settings.shard_dsns)} of {settings.shards} shards")
        return cls(
            postgres_pool(settings.catalogue_dsn),
            tuple(postgres_pool(dsn) for dsn in settings.shard_dsns),
            redis_client(settings.redis_url),
            redis_client(settings.cache_url),
            settings.topology,
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Pools connect in the background; a server that is away does not keep us from starting."""
        pools = (self.catalogue, *self.shards)
        try:
            for pool in pools:
                await pool.open()
            yield
        finally:
            await asyncio.gather(*(pool.close(_CLOSE_S_MAX) for pool in pools))
            await self.redis.aclose()
            await self.cache.aclose()

    def shard_of_user(self, user_id: UUID) -> Pool:
        """The shard of a user's rows."""
        return self.shards[self.topology.shard_of_user(user_id)]

    def shard_of_address(self, email_folded: str) -> Pool:
        """The shard of an address's place in the login index."""
        return self.shards[self.topology.shard_of_address(email_folded)]

    async def now_ms(self) -> int:
        """The reservation Redis's time, the only clock that sales know."""
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000
