"""`python -m workers.dispatcher`: the outboxes of all shards and of the catalogue. Composition root, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from domain.topology import (
    DESTINATION_NOTICES,
    DESTINATION_ORDER_EVENTS,
    DESTINATION_PAYMENT_EVENTS,
    DESTINATION_PRODUCT_EVENTS,
    DESTINATION_REFUNDS,
    DESTINATION_SALE_EVENTS,
    DESTINATION_USER_EVENTS,
    EMAIL_QUEUE,
    REFUNDS_QUEUE,
    dispatcher_fence_key,
    dispatcher_lease_key,
)
from runtime.dead_letters import open_dead_letters
from runtime.event_log import event_log_of
from runtime.postgres.pool import POLL_UNCHECKED_S, postgres_pool
from runtime.process import fingerprint, service
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from runtime.redis.leases import Lease
from runtime.redis.ownership import own
from workers.dispatcher import metrics
from workers.dispatcher.destinations import Destination, EventTopic, QueueMessages
from workers.dispatcher.group import DispatchGroup
from workers.dispatcher.outbox import Outbox

SHARD_EVENTS = (DESTINATION_ORDER_EVENTS, DESTINATION_PAYMENT_EVENTS, DESTINATION_USER_EVENTS)
CATALOGUE_EVENTS = (DESTINATION_PRODUCT_EVENTS, DESTINATION_SALE_EVENTS)
POOL_SIZE_MAX = 2  # rounds, and beside them the lag


async def main(process: service.Service) -> None:
    """Dispatch until the process is to stop."""
    settings = process.settings
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        stack.push_async_callback(queue.close)
        letters = open_dead_letters(settings.catalogue_dsn, letters_max=settings.dead_letters_max)
        stack.push_async_callback(letters.close)
        event_log = event_log_of(settings)
        stack.push_async_callback(event_log.close)
        if not await fingerprint.join(redis, process):
            return

        def topics(names: Sequence[str]) -> tuple[Destination, ...]:
            return tuple(EventTopic(name, event_log) for name in names)

        databases = {
            f"shard-{shard}": (
                dsn,
                (
                    *topics(SHARD_EVENTS),
                    QueueMessages(DESTINATION_NOTICES, queue, EMAIL_QUEUE),
                    QueueMessages(DESTINATION_REFUNDS, queue, REFUNDS_QUEUE),
                ),
            )
            for shard, dsn in enumerate(settings.shard_dsns)
        } | {"catalogue": (settings.catalogue_dsn, topics(CATALOGUE_EVENTS))}
        for database, (dsn, destinations) in databases.items():
            pool = await stack.enter_async_context(
                postgres_pool(dsn, size_max=POOL_SIZE_MAX, autocommit=True, unchecked_s=POLL_UNCHECKED_S)
            )
            lease = Lease(
                redis,
                key=dispatcher_lease_key(database),
                fence_key=dispatcher_fence_key(database),
                life_ms=settings.lease_ms,
            )
            group = DispatchGroup(
                database=database,
                outbox=Outbox(pool),
                destinations=destinations,
                letters=letters,
                lease=lease,
                service=process,
            )
            held = metrics.LEASE_HELD.labels(database)
            process.background.start(database, partial(own, lease, group.run, service=process, held=held))
            process.background.start(f"{database} lag", group.measure)
        await process.background.finished()


if __name__ == "__main__":
    service.run("dispatcher", service.settings_or_exit("dispatcher"), main)
