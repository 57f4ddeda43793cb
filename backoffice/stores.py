"""The databases behind the backoffice: catalogue, shards, reservation Redis, cache Redis. Opens and closes them; no queries.

Which server of a database a read goes to is decided in `runtime.postgres.databases`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from pydantic import SecretStr
from redis.asyncio import Redis

from domain.topology import Topology
from runtime.postgres import positions
from runtime.postgres.databases import Database, Replica
from runtime.postgres.pool import postgres_pool
from runtime.postgres.positions import Positions
from runtime.process import tasks
from runtime.process.settings import Settings
from runtime.redis.client import redis_client
from runtime.redis.clock import now_ms

_POSITION_CONNECTIONS_MAX = 8


@dataclass(frozen=True, slots=True)
class Stores:
    """Clients of one process; `shards` in shard order."""

    catalogue: Database
    shards: tuple[Database, ...]
    redis: Redis
    cache: Redis
    positions: Redis
    topology: Topology

    @classmethod
    def from_settings(cls, settings: Settings) -> Stores:
        """Unopened clients; ValueError when the number of shard dsns is not that of the shards."""
        if len(settings.shard_dsns) != settings.shards:
            raise ValueError(f"FLASHSALE_SHARD_DSNS names {len(settings.shard_dsns)} of {settings.shards} shards")
        if len(settings.shard_replica_dsns) not in (0, settings.shards):
            count = len(settings.shard_replica_dsns)
            raise ValueError(f"FLASHSALE_SHARD_REPLICA_DSNS names {count} of {settings.shards} shards")
        # A client of its own: its short waits are not for those who cannot do without Redis.
        known = redis_client(
            settings.cache_url, connections_max=_POSITION_CONNECTIONS_MAX, timeout_s=positions.CALL_S_MAX
        )
        written = Positions(known)

        def database(name: str, primary: SecretStr, replica: SecretStr | None) -> Database:
            read = None
            if replica is not None:
                read = Replica(postgres_pool(replica), lag_ms_max=settings.replica_lag_ms_max)
            return Database(name, postgres_pool(primary), replica=read, positions=written)

        replicas = settings.shard_replica_dsns or (None,) * settings.shards
        shards = zip(settings.shard_dsns, replicas, strict=True)
        return cls(
            database("catalogue", settings.catalogue_dsn, settings.catalogue_replica_dsn),
            tuple(database(f"shard_{place}", *dsns) for place, dsns in enumerate(shards)),
            redis_client(settings.redis_url),
            redis_client(settings.cache_url),
            known,
            settings.topology,
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Pools connect in the background; a server that is away does not keep us from starting."""
        databases = (self.catalogue, *self.shards)
        watches = []
        try:
            for database in databases:
                await database.open()
            watches = [asyncio.create_task(database.watch()) for database in databases if database.replica is not None]
            yield
        finally:
            await tasks.cancel(*watches)
            await asyncio.gather(*(database.close() for database in databases))
            for client in (self.redis, self.cache, self.positions):
                await client.aclose()

    def shard_of_user(self, user_id: UUID) -> Database:
        """The shard of a user's rows."""
        return self.shards[self.topology.shard_of_user(user_id)]

    def shard_of_address(self, email_folded: str) -> Database:
        """The shard of an address's place in the login index."""
        return self.shards[self.topology.shard_of_address(email_folded)]

    async def now_ms(self) -> int:
        """The reservation Redis's time, the only clock that sales know."""
        return await now_ms(self.redis)
