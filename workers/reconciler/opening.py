"""The clients of the reconciler, and its looks on top of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from redis.asyncio import Redis

from payments.accounting import Accounting
from runtime.dead_letters import PostgresDeadLetters
from runtime.postgres.pool import postgres_pool
from runtime.process.settings import Settings
from runtime.redis.client import redis_client
from workers.reconciler.deep import DEEP_EVERY_S, DEEP_SHARE_MAX, DeepLooks
from workers.reconciler.looking import Looking
from workers.reconciler.progress import STORED_WITHIN_S, LaneProgress
from workers.reconciler.reading import CALL_S_MAX, Reading


def looking_of(
    reading: Reading,
    apart: Reading,
    *,
    kept_s: int,
    stored_within_s: float = STORED_WITHIN_S,
    deep_every_s: float = DEEP_EVERY_S,
    deep_share_max: float = DEEP_SHARE_MAX,
) -> Looking:
    """Quick looks by `reading`, deep looks by `apart`."""
    progress: dict[int, LaneProgress] = {}
    deep = DeepLooks(apart, progress, every_s=deep_every_s, share_max=deep_share_max)
    return Looking(reading, deep, progress=progress, kept_s=kept_s, stored_within_s=stored_within_s)


@asynccontextmanager
async def open_clients(settings: Settings) -> AsyncIterator[tuple[Redis, Reading, Reading, Accounting]]:
    """Redis, the reading of the quick looks, that of the deep looks with connections of its own, and the money."""
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        readings = []
        for _ in range(2):
            catalogue, *shards = [
                await stack.enter_async_context(postgres_pool(dsn, size_max=2, call_s_max=CALL_S_MAX))
                for dsn in (settings.catalogue_dsn, *settings.shard_dsns)
            ]
            letters = PostgresDeadLetters(catalogue, letters_max=settings.dead_letters_max)
            readings.append(Reading(redis=redis, catalogue=catalogue, shards=shards, letters=letters))
        yield redis, readings[0], readings[1], Accounting(shards)
