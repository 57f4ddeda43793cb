"""Work that one process at a time does in rounds: a lease, a pause between rounds, patience with transient faults.

Knows nothing of the work itself. A round must be idempotent: after a lost lease two processes may overlap for a moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge
from redis.asyncio import Redis

from domain.topology import worker_fence_key, worker_lease_key
from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.process.supervision import ROUND_S_MAX
from runtime.redis.leases import Lease
from runtime.redis.ownership import own
from workers.consuming import PAUSE_S_MAX, TRANSIENT

HELD = Gauge("flashsale_role_held", "1 while this process does a worker's work alone.", ["role"])

log = structlog.get_logger()

Round = Callable[[Lease], Awaitable[bool]]


async def run_rounds(
    service: Service,
    redis: Redis,
    *,
    role: str,
    every_s: float,
    work: Round,
    life_ms: int,
    round_s_max: float = ROUND_S_MAX,
) -> None:
    """Call `work` every `every_s` seconds until the service stops, and at once when it answers that there is more.

    Only while the role's lease is held; a long round checks `lease.held` between its steps. A server that is away
    makes the role not ready and is asked again after growing pauses; a process that stands by is ready. A round that
    takes longer than `round_s_max` makes the process not ready while it lasts.
    """
    lease = Lease(redis, key=worker_lease_key(role), fence_key=worker_fence_key(role), life_ms=life_ms)
    backoff = Backoff(longest_s=PAUSE_S_MAX)

    async def tenure() -> None:
        while lease.held and not service.stopping.is_set():
            beat()
            try:
                more = await work(lease)
            except TRANSIENT as error:
                service.ready(role, ok=False, detail=type(error).__name__)
                log.warning("round failed", role=role, error=f"{type(error).__name__}: {error}")
                await service.pause(backoff.next_s())
                continue
            backoff.reset()
            service.ready(role, ok=True)
            if not more:
                await service.tick(every_s)

    def ask() -> None:
        beat()
        service.ready(role, ok=True, detail="does not hold the lease")  # the failures of its last tenure are over

    service.ready(role, ok=True)
    with service.background.rounds(role, s_max=round_s_max) as beat:
        await own(lease, tenure, service=service, held=HELD.labels(role), before_asking=ask)
