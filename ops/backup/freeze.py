"""Freeze: all workers with a lease stand still for the length of a block. Orders are accepted meanwhile.

A worker moves data only while it holds its lease, so whoever holds all leases moves everything. When this process ends,
the leases run out and the workers go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from redis.asyncio import Redis

from domain.topology import WORKER_LEASES, Topology, fence_key_of, lane_lease_key, order_queue
from ops.backup.errors import BackupError
from runtime.queue import Queue
from runtime.redis.leases import Lease

SETTLE_S: Final = 1.0  # beyond a lease's life: for calls that a holder had begun
BARRIER_S_MAX: Final = 30.0
LOOKS_MAX: Final = 5  # each finds the leases of workers that started meanwhile
_SCAN_COUNT: Final = 1000


class Frozen:
    """The leases held for a freeze."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    async def seize_new(self, redis: Redis, cluster: Topology, *, life_ms: int) -> int:
        """Seize the leases that are not held here yet; their number."""
        keys = {lane_lease_key(lane) for lane in range(cluster.lanes)}
        async for key in redis.scan_iter(match=WORKER_LEASES, count=_SCAN_COUNT):
            keys.add(key.decode())
        new = keys - self._leases.keys()
        for key in sorted(new):
            lease = Lease(redis, key=key, fence_key=fence_key_of(key), life_ms=life_ms)
            await lease.seize()
            self._leases[key] = lease
        return len(new)

    def require_held(self) -> None:
        """BackupError when a lease was lost: workers may have moved data."""
        if lost := [key for key, lease in self._leases.items() if not lease.held]:
            raise BackupError(f"the freeze was lost ({', '.join(sorted(lost)[:3])}): run this again")

    async def release(self) -> None:
        """Give all leases back."""
        for lease in self._leases.values():
            await lease.release()


@asynccontextmanager
async def frozen(redis: Redis, queue: Queue, cluster: Topology, *, lease_ms: int) -> AsyncIterator[Frozen]:
    """Hold all workers still, with no order on its way between Redis and the shards. Raises BackupError, RedisError.

    `lease_ms`: life of the workers' leases. Call `require_held` at the end of the block.
    """
    freeze = Frozen()
    try:
        for _ in range(LOOKS_MAX):
            if not await freeze.seize_new(redis, cluster, life_ms=lease_ms):
                break
            await asyncio.sleep(lease_ms / 1000 + SETTLE_S)
        else:
            raise BackupError("workers keep starting: try again when they are at rest")
        await _until_stored(queue, cluster)
        yield freeze
    finally:
        await freeze.release()


async def _until_stored(queue: Queue, cluster: Topology) -> None:
    """Wait until the shard writers have stored all orders that were published."""
    deadline = time.monotonic() + BARRIER_S_MAX
    for shard in range(cluster.shards):
        if not await queue.barrier(order_queue(shard), wait_s=max(0.0, deadline - time.monotonic())):
            raise BackupError(
                f"orders in {order_queue(shard)} were not stored within {BARRIER_S_MAX:.0f} s: see `flashsale status` "
                "and the log of the shard writer, then run this again"
            )
