"""`python -m workers.webhooks`: events to the URLs that staff subscribed. Composition root, nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack

from runtime.event_log import event_log_of
from runtime.postgres.pool import POLL_UNCHECKED_S, postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.queue import open_queue
from runtime.redis.client import redis_client
from workers.webhooks.receivers import Receivers
from workers.webhooks.store import WebhookStore
from workers.webhooks.work import POOL_SIZE_MAX, Webhooks

NAME = "webhooks"


async def main(service: Service) -> None:
    """Open clients, deliver until told to stop, close clients."""
    settings = service.settings
    if settings.webhook_key is None:
        service.ready("webhook key", ok=True, detail="FLASHSALE_WEBHOOK_KEY is not set: there are no webhooks")
        await service.stopping.wait()
        return
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        queue = open_queue(settings.queue_url, settings.topology.queues, length_max=settings.queue_length_max)
        stack.push_async_callback(queue.close)
        event_log = event_log_of(settings)
        stack.push_async_callback(event_log.close)
        pool = await stack.enter_async_context(
            postgres_pool(settings.catalogue_dsn, size_max=POOL_SIZE_MAX, unchecked_s=POLL_UNCHECKED_S)
        )
        receivers = await stack.enter_async_context(
            Receivers(allowed=settings.webhook_addresses_allowed, attempt_s_max=settings.webhook_timeout_s)
        )
        store = WebhookStore(pool, backlog_max=settings.webhook_backlog_max, failing_s=settings.webhook_failing_s)
        key = settings.webhook_key.get_secret_value().encode()
        webhooks = Webhooks(
            key=key, store=store, receivers=receivers, queue=queue, event_log=event_log, redis=redis, service=service
        )
        service.background.start(NAME, webhooks.run)
        service.background.start(f"{NAME} lag", webhooks.measure)
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME), main)
