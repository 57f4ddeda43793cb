"""Owns lanes: takes their leases, runs a session for each one held, and measures their lag whoever owns them."""

from __future__ import annotations

import time
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.topology import lane_fence_key, lane_lease_key, lane_stream_key
from runtime.backoff import Backoff
from runtime.leases import Lease
from runtime.queue import Queue
from runtime.service import Service
from workers.relay import metrics
from workers.relay.entries import changed_at_ms
from workers.relay.session import LaneSession, LeaseLost

SAMPLE_S = 1.0

log = structlog.get_logger()


async def own_lane(lane: int, *, service: Service, redis: Redis, queue: Queue) -> None:
    """Relay a lane whenever its lease can be had, until the process is to stop."""
    settings = service.settings
    lease = Lease(redis, key=lane_lease_key(lane), fence_key=lane_fence_key(lane), life_ms=settings.lease_ms)
    held = metrics.LEASE_HELD.labels(lane)
    backoff = Backoff(first_s=0.05, longest_s=1.0)
    held.set(0)
    while not service.stopping.is_set():
        try:
            if not lease.held and not await lease.acquire():
                # Somebody else has it: ask a few times in a lease's life.
                await service.pause(settings.lease_ms / 4000)
                continue
            held.set(1)
            log.info("lane owned", lane=lane, token=lease.token)
            session = LaneSession(
                lane,
                redis=redis,
                queue=queue,
                lease=lease,
                topology=settings.topology,
                batch_max=settings.relay_batch_max,
            )
            await session.run(service.stopping)
            backoff.reset()
        except LeaseLost:
            lease.lost.set()
        except (RedisError, OSError) as error:
            log.warning("lane interrupted", lane=lane, error=str(error) or type(error).__name__)
            await service.pause(backoff.next_s())
        finally:
            held.set(1 if lease.held else 0)
    await lease.release()
    held.set(0)


async def measure_lanes(*, service: Service, redis: Redis) -> None:
    """Lag of every lane, about once a second; it is also this process's readiness."""
    while not service.stopping.is_set():
        try:
            for lane in range(service.settings.lanes):
                await _measure(lane, redis)
            service.ready("redis", ok=True)
        except (RedisError, OSError) as error:
            service.ready("redis", ok=False, detail=str(error) or type(error).__name__)
        await service.pause(SAMPLE_S)


async def _measure(lane: int, redis: Redis) -> None:
    stream = lane_stream_key(lane)
    metrics.LAG_ENTRIES.labels(lane).set(await redis.xlen(stream))
    head: Any = await redis.xrange(stream, count=1)
    since_ms = changed_at_ms(head[0][1]) if head else None
    metrics.LAG_SECONDS.labels(lane).set(max(0.0, time.time() - since_ms / 1000) if since_ms is not None else 0.0)
