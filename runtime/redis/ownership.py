"""Work that one process at a time may do: take the lease, work while it is held, give it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge
from redis.exceptions import RedisError

from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.redis.leases import Lease

ASKED_PER_LIFE = 4

log = structlog.get_logger()


class LeaseLost(Exception):
    """A server says that the lease is not ours, whatever our clock says."""


async def own(lease: Lease, work: Callable[[], Awaitable[None]], *, service: Service, held: Gauge) -> None:
    """Do `work` whenever the lease can be had, until the process is to stop; then give the lease back.

    `work` returns when the process is to stop or the lease is lost; it may raise LeaseLost, or RedisError and OSError,
    after which it is begun anew. Anything else ends the process. `held` shows 1 while the lease is held; readiness
    `redis` says whether the lease can be asked for.
    """
    backoff = Backoff(first_s=0.05, longest_s=1.0)
    held.set(0)
    try:
        while not service.stopping.is_set():
            try:
                acquired = lease.held or await lease.acquire()
                service.ready("redis", ok=True)
                if not acquired:
                    # Somebody else has it: ask a few times in a lease's life.
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
                service.ready("redis", ok=False, detail=words)
                await service.pause(backoff.next_s())
            finally:
                held.set(1 if lease.held else 0)
    finally:
        await lease.release()
        held.set(0)
