"""The shard writer's process: one writer and one sweep per shard, all in one event loop."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from functools import partial

from runtime.dead_letters import PostgresDeadLetters
from runtime.postgres.pool import postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from workers.shard_writer.grants import Grants
from workers.shard_writer.store import ShardStore
from workers.shard_writer.sweep import Sweep
from workers.shard_writer.worker import ShardWriter

NAME = "shard_writer"
# A batch makes some ten thousand objects without a cycle that die together: scanning them at the default rate costs a
# quarter of the processor time of an order.
GC_THRESHOLDS = (50_000, 10, 50)


class ShardCountMismatch(Exception):
    """FLASHSALE_SHARD_DSNS must name as many databases as FLASHSALE_SHARDS says."""


async def main(service: Service) -> None:
    """Open clients, write until told to stop, close clients."""
    settings = service.settings
    if len(settings.shard_dsns) != settings.shards:
        raise ShardCountMismatch(f"{len(settings.shard_dsns)} shard databases for {settings.shards} shards")
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        stack.push_async_callback(queue.close)
        catalogue = postgres_pool(settings.catalogue_dsn, size_max=settings.shards + 1)
        await stack.enter_async_context(catalogue)
        letters = PostgresDeadLetters(catalogue, letters_max=settings.dead_letters_max)
        for shard, dsn in enumerate(settings.shard_dsns):
            pool = postgres_pool(dsn, size_max=2)
            await stack.enter_async_context(pool)
            grants = Grants(catalogue, shard=shard)
            writer = ShardWriter(
                shard=shard,
                cluster=settings.topology,
                queue=queue,
                letters=letters,
                store=ShardStore(pool, grants),
                grants=grants,
                redis=redis,
                service=service,
                batch_max=settings.writer_batch_max,
            )
            service.background.start(f"writer {shard}", writer.run)
            service.background.start(f"sweep {shard}", partial(Sweep(pool, grants, shard=shard).run, service))
        await service.background.finished()


if __name__ == "__main__":
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    run(NAME, settings_or_exit(NAME), main)
