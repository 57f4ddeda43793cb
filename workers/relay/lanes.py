"""Owns lanes: takes their leases and runs a session for each one held. Measures the lag of all lanes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.topology import lane_fence_key, lane_lease_key, lane_stream_key
from runtime.dead_letters import DeadLetters
from runtime.process.service import Service
from runtime.queue import Queue
from runtime.redis.leases import Lease
from runtime.redis.ownership import own
from workers.relay import metrics
from workers.relay.entries import changed_at_ms
from workers.relay.session import LaneSession

SAMPLE_S = 1.0


async def own_lane(lane: int, *, service: Service, redis: Redis, queue: Queue, letters: DeadLetters) -> None:
    """Relay a lane whenever its lease can be had, until the process is to stop."""
    settings = service.settings
    lease = Lease(redis, key=lane_lease_key(lane), fence_key=lane_fence_key(lane), life_ms=settings.lease_ms)

    async def relay() -> None:
        session = LaneSession(
            lane,
            redis=redis,
            queue=queue,
            letters=letters,
            lease=lease,
            topology=settings.topology,
            batch_max=settings.relay_batch_max,
        )
        with service.background.rounds(f"lane {lane}") as beat:
            await session.run(service.stopping, beat)

    await own(lease, relay, service=service, held=metrics.LEASE_HELD.labels(lane))


async def measure_lanes(*, service: Service, redis: Redis) -> None:
    """Lag of every lane, about once a second; it is also this process's readiness."""
    while not service.stopping.is_set():
        try:
            await _measure(range(service.settings.lanes), redis)
            service.ready("redis", ok=True)
        except (RedisError, OSError) as error:
            service.ready("redis", ok=False, detail=str(error) or type(error).__name__)
        await service.tick(SAMPLE_S)


async def _measure(lanes: Sequence[int], redis: Redis) -> None:
    """In one round trip."""
    pipeline = redis.pipeline(transaction=False)
    for lane in lanes:
        pipeline.xlen(lane_stream_key(lane))
        pipeline.xrange(lane_stream_key(lane), count=1)
    answers: list[Any] = await pipeline.execute()
    for lane, length, head in zip(lanes, answers[::2], answers[1::2], strict=True):
        metrics.LAG_ENTRIES.labels(lane).set(length)
        since_ms = changed_at_ms(head[0][1]) if head else None
        metrics.LAG_SECONDS.labels(lane).set(max(0.0, time.time() - since_ms / 1000) if since_ms is not None else 0.0)
