"""`python -m workers.announcer`: events of orders to notices, channel by channel. Composition root, nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

from domain.notices import Channel
from domain.topology import worker_fence_key, worker_lease_key
from runtime.dead_letters import open_dead_letters
from runtime.event_log import event_log_of
from runtime.postgres.pool import postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from runtime.redis.leases import Lease
from runtime.redis.ownership import own
from workers.announcer import metrics
from workers.announcer.announcer import Announcer
from workers.announcer.recipients import Recipients
from workers.shards import Shards

NAME = "announcer"


async def main(service: Service) -> None:
    """Open clients, announce until told to stop, close clients."""
    settings = service.settings
    channels = [Channel.EMAIL] if settings.vapid_public_key is None else [Channel.EMAIL, Channel.PUSH]
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        stack.push_async_callback(queue.close)
        event_log = event_log_of(settings)
        stack.push_async_callback(event_log.close)
        letters = open_dead_letters(settings.catalogue_dsn, letters_max=settings.dead_letters_max)
        stack.push_async_callback(letters.close)
        pools = [
            await stack.enter_async_context(postgres_pool(dsn, size_max=len(channels), autocommit=True))
            for dsn in settings.shard_dsns
        ]
        shards = Shards(pools)
        for channel in channels:
            role = f"{NAME}-{channel}"
            lease = Lease(
                redis, key=worker_lease_key(role), fence_key=worker_fence_key(role), life_ms=settings.lease_ms
            )
            announcer = Announcer(
                channel,
                event_log=event_log,
                queue=queue,
                recipients=Recipients(shards, settings.topology, channel),
                letters=letters,
                lease=lease,
                service=service,
                with_reserved=settings.announce_reserved,
            )
            held = metrics.LEASE_HELD.labels(channel)
            service.background.start(role, partial(own, lease, announcer.run, service=service, held=held))
            service.background.start(f"{role} lag", announcer.measure)
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME, all_shards=True), main)
