"""Opens what a mover works with: direct connections to all databases, Redis, the lock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from psycopg.rows import TupleRow
from pydantic import SecretStr
from redis.asyncio import Redis

from ops.resharding.catalogue import CatalogueSide
from ops.resharding.procedure import Mover, Progress
from ops.resharding.shard import ShardSide
from ops.resharding.tables import Connection
from runtime.postgres.connection import BoundedConnection
from runtime.postgres.pool import POSTGRES_CONNECT_S, pin_session
from runtime.process import fingerprint
from runtime.process.settings import Settings
from runtime.redis.client import redis_client

CALL_S_MAX: Final = 600.0  # an index of a large table


@asynccontextmanager
async def opened_connection(dsn: SecretStr) -> AsyncIterator[Connection]:
    """A connection that commits by itself. It must not pass a pooler: the mover's lock belongs to its session."""
    connection = await BoundedConnection[TupleRow].connect(
        dsn.get_secret_value(), connect_timeout=POSTGRES_CONNECT_S, prepare_threshold=None
    )
    async with connection:
        connection.call_s_max = CALL_S_MAX
        await pin_session(connection)
        await connection.set_autocommit(True)
        yield connection


@asynccontextmanager
async def opened_redis(settings: Settings) -> AsyncIterator[Redis]:
    """The reservation Redis; FingerprintMismatch for another cluster's."""
    redis = redis_client(settings.redis_url)
    try:
        await fingerprint.check(redis, settings.topology)
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def opened_mover(settings: Settings, report: Callable[[Progress], None]) -> AsyncIterator[Mover]:
    """A prepared mover, the only one."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(opened_redis(settings))
        catalogue = CatalogueSide(await stack.enter_async_context(opened_connection(settings.catalogue_session_dsn)))
        await catalogue.lock()
        shards = {}
        for number, dsn in enumerate(settings.shard_session_dsns):
            shards[number] = ShardSide(number, await stack.enter_async_context(opened_connection(dsn)))
        mover = Mover(catalogue, shards, redis, settings.topology, report=report)
        await mover.prepare()
        yield mover
