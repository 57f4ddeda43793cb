"""`python -m workers.analytics`: events of the log to figures of sales. Composition root, nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from urllib.parse import urlsplit

from domain.topology import worker_fence_key, worker_lease_key
from runtime.event_log import event_log_of
from runtime.postgres.pool import postgres_pool
from runtime.process import fingerprint
from runtime.process.service import Service, run, settings_or_exit
from runtime.redis.client import redis_client
from runtime.redis.leases import Lease
from runtime.redis.ownership import own
from workers.analytics import metrics
from workers.analytics.consumer import Consumer
from workers.analytics.days import Days
from workers.analytics.refusals import BUSY_S, RefusalSampler
from workers.analytics.store import Figures, RefusalCounts
from workers.analytics.topics import COUNTED_TOPICS
from workers.rounds import run_rounds

NAME = "analytics"


async def main(service: Service) -> None:
    """Open clients, count until told to stop, close clients."""
    settings = service.settings
    assert settings.analytics_dsn is not None, "checked by `require`"
    async with AsyncExitStack() as stack:
        redis = redis_client(settings.redis_url)
        stack.push_async_callback(redis.aclose)
        if not await fingerprint.join(redis, service):
            return
        event_log = event_log_of(settings)
        stack.push_async_callback(event_log.close)
        pool = await stack.enter_async_context(postgres_pool(settings.analytics_dsn))
        sampler = RefusalSampler(redis, RefusalCounts(pool))
        carrier = urlsplit(settings.event_log_url).scheme
        for topic in COUNTED_TOPICS:
            role = f"{NAME}-{topic.name}"
            lease = Lease(
                redis, key=worker_lease_key(role), fence_key=worker_fence_key(role), life_ms=settings.lease_ms
            )
            consumer = Consumer(
                topic,
                event_log=event_log,
                figures=Figures(pool, carrier=carrier),
                lease=lease,
                service=service,
                days=settings.analytics_days,
                changed=sampler.wake,
            )
            held = metrics.LEASE_HELD.labels(topic.name)
            service.background.start(role, partial(own, lease, consumer.run, service=service, held=held))
        days = Days(pool, days=settings.analytics_days, minutes_days=settings.analytics_minutes_days)
        service.background.start("days", partial(days.run, service))
        refusals = partial(
            run_rounds, service, redis, role=f"{NAME}-refusals", every_s=BUSY_S, work=sampler.look,
            life_ms=settings.lease_ms,
        )  # fmt: skip
        service.background.start("refusals", refusals)
        await service.background.finished()


if __name__ == "__main__":
    run(NAME, settings_or_exit(NAME, needs=["analytics_dsn"]), main)
