"""Work for one process at a time: take the lease, work while it is held, give it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge
from redis.exceptions import RedisError

from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.redis.leases import Lease, LeaseLost

ASKED_PER_LIFE = 4

log = structlog.get_logger()


async def own(
    lease: Lease,
    work: Callable[[], Awaitable[None]],
    *,
    service: Service,
    held: Gauge,
    before_asking: Callable[[], None] | None = None,
) -> None:
    """Run `work` whenever the lease can be taken, until the process stops; then give the lease back.

    `work` returns when the process stops or the lease is lost. After LeaseLost, RedisError or OSError from `work` it is
    started again; any other exception is raised. `held` is 1 while the lease is held; readiness `lease ...` tells
    whether Redis answers requests for the lease. `before_asking` is called before each request.
    """
    condition = f"lease {lease.key}"
    backoff = Backoff(first_s=0.05, longest_s=1.0)
    held.set(0)
    try:
        while not service.stopping.is_set():
            if before_asking is not None and not lease.held:
                before_asking()
            try:
                acquired = lease.held or await lease.acquire()
                service.ready(condition, ok=True)
                if not acquired:
                    # Another process holds the lease: ask `ASKED_PER_LIFE` times in its life.
                    await service.pause(lease.life_ms / ASKED_PER_LIFE / 1000)
                    continue
                held.set(1)
                log.info("lease held", lease=lease.key, token=lease.token)
                await work()
                backoff.reset()
            except LeaseLost:
                lease.lost.set()
            except (RedisError, OSError) as error:
                words = str(error) or type(error).__name__
                log.warning("work interrupted", lease=lease.key, error=words)
                service.ready(condition, ok=False, detail=words)
                await service.pause(backoff.next_s())
            finally:
                held.set(1 if lease.held else 0)
    finally:
        await lease.release()
        held.set(0)
