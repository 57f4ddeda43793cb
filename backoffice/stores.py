"""The servers behind the backoffice: catalogue, shards, analytics, reservation Redis, cache Redis.

Opens and closes clients; makes no queries.
`runtime.postgres.databases` decides whether a read goes to the primary or to a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import psycopg
import redis.exceptions
from pydantic import SecretStr
from redis.asyncio import Redis

from domain import ids
from domain.topology import Topology, bucket_of_address, bucket_of_user
from runtime.buckets.gate import BucketDatabase
from runtime.postgres import positions
from runtime.postgres.databases import Commits, Database, Replica
from runtime.postgres.pool import postgres_pool
from runtime.postgres.positions import Positions
from runtime.process.settings import Settings
from runtime.process.supervision import TaskSupervisor
from runtime.redis.client import redis_client
from runtime.redis.clock import now_ms

_POSITION_CONNECTIONS_MAX = 8
_CALL_S_MAX = 8.0  # with the wait for a connection, less than a handler may take (`web.routing`)
AWAY = (psycopg.OperationalError, redis.exceptions.RedisError, TimeoutError, OSError)
"""Errors of a server that is away. Background work repeats later; requests are answered by `web.routing`."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The clients of one process; `shards` in the order of shard numbers. Without `analytics` there are no figures."""

    catalogue: Database
    shards: tuple[Database, ...]
    redis: Redis
    cache: Redis
    positions: Redis
    topology: Topology
    analytics: Database | None = None
    moved: dict[int, tuple[int, float]] = field(default_factory=dict)  # of `BucketDatabase`

    @classmethod
    def from_settings(cls, settings: Settings) -> Stores:
        """Unopened clients; ValueError when a list of shard DSNs does not match the number of shards."""
        if len(settings.shard_dsns) != settings.shards:
            raise ValueError(f"FLASHSALE_SHARD_DSNS names {len(settings.shard_dsns)} of {settings.shards} shards")
        if len(settings.shard_replica_dsns) not in (0, settings.shards):
            count = len(settings.shard_replica_dsns)
            raise ValueError(f"FLASHSALE_SHARD_REPLICA_DSNS names {count} of {settings.shards} shards")
        # A separate client: its short time limit would be wrong for callers that require Redis.
        known = redis_client(
            settings.cache_url, connections_max=_POSITION_CONNECTIONS_MAX, timeout_s=positions.CALL_S_MAX
        )
        written = Positions(known)

        def database(name: str, primary: SecretStr, replica: SecretStr | None) -> Database:
            read = None
            if replica is not None:
                read = Replica(postgres_pool(replica, call_s_max=_CALL_S_MAX), lag_ms_max=settings.replica_lag_ms_max)
            commits = Commits()
            pool = postgres_pool(primary, call_s_max=_CALL_S_MAX, on_unknown_commit=commits.unknown)
            return Database(name, pool, replica=read, positions=written, commits=commits)

        replicas = settings.shard_replica_dsns or (None,) * settings.shards
        shards = zip(settings.shard_dsns, replicas, strict=True)
        return cls(
            database("catalogue", settings.catalogue_dsn, settings.catalogue_replica_dsn),
            tuple(database(f"shard_{place}", *dsns) for place, dsns in enumerate(shards)),
            redis_client(settings.redis_url),
            redis_client(settings.cache_url),
            known,
            settings.topology,
            None if settings.analytics_dsn is None else database("analytics", settings.analytics_dsn, None),
        )

    @asynccontextmanager
    async def opened(self, background: TaskSupervisor) -> AsyncIterator[None]:
        """Hold the pools open. They connect in the background, so the start does not wait for a server."""
        databases = (self.catalogue, *self.shards, *((self.analytics,) if self.analytics else ()))
        watches = {f"replica of {database.name}": database.watch for database in databases if database.replica}
        try:
            for database in databases:
                await database.open()
            for name, watch in watches.items():
                background.start(name, watch)
            yield
        finally:
            for name in watches:
                await background.cancel(name)
            await asyncio.gather(*(database.close() for database in databases))
            for client in (self.redis, self.cache, self.positions):
                await client.aclose()

    def shard_of_user(self, user_id: UUID) -> BucketDatabase:
        """The shard that holds the rows of a user."""
        return self._shard_of(bucket_of_user(user_id))

    def shard_of_address(self, email_folded: str) -> BucketDatabase:
        """The shard that holds the entry of an address in the login index."""
        return self._shard_of(bucket_of_address(email_folded))

    def shard_of_order(self, order_id: UUID) -> BucketDatabase:
        """The shard that holds the rows of an order."""
        return self._shard_of(ids.bucket_of(order_id))

    def _shard_of(self, bucket: int) -> BucketDatabase:
        return BucketDatabase(bucket, self.shards, self.topology, self.moved)

    async def now_ms(self) -> int:
        """The time of the reservation Redis, the only clock for sales."""
        return await now_ms(self.redis)
