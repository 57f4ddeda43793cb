"""`python -m workers.recovery`: the watch that closes lanes which lost data in Redis.

Any number of these processes may run, without a lease (see `workers.recovery.watch`). Rebuilding a closed sale is a
command of its own: `python -m workers.recovery.rebuild --sale ID`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from runtime.buckets.restoring import MapKeeper
from runtime.postgres.pool import POLL_CALL_S_MAX, POLL_UNCHECKED_S, postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.redis.client import redis_client
from workers.recovery.losses import LaneRecovery
from workers.recovery.watch import Watch

NAME = "recovery"


async def main(service: Service) -> None:
    """Open clients, watch until the service stops, close clients."""
    settings = service.settings
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        # Each call is one statement, and repeating it changes nothing.
        catalogue = await stack.enter_async_context(
            postgres_pool(
                settings.catalogue_dsn, size_max=2, autocommit=True, call_s_max=POLL_CALL_S_MAX,
                unchecked_s=POLL_UNCHECKED_S,
            )
        )  # fmt: skip
        shards = [
            await stack.enter_async_context(postgres_pool(dsn, size_max=1, autocommit=True))
            for dsn in settings.shard_dsns
        ]
        watch = Watch(
            redis=redis,
            recovery=LaneRecovery(redis=redis, catalogue=catalogue, shards=shards),
            cluster=settings.topology,
            kept_s=settings.sale_kept_s,
        )
        service.background.start("watch", partial(watch.run, service))
        service.background.start("map of buckets", partial(MapKeeper(redis, catalogue).run, service))
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME, all_shards=True), main)
