"""Draining of a closed sale: waits until relays, queues and shard writers have stored the accepted orders.

Counting is right without it, because of the gate. Draining keeps accepted orders from arriving behind the gate, where
they would be stored as rejected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID, uuid4

import structlog

from domain.messages import FENCE_HEADER, encode_orders
from domain.orders import decode_entry
from domain.topology import order_queue
from runtime.queue import Queue, QueueFull
from workers.recovery.losses import LaneRecovery
from workers.recovery.rebuild.errors import Stuck
from workers.recovery.rebuild.lanes import LanesSide
from workers.recovery.rebuild.records import gaps
from workers.recovery.rebuild.shards import ShardsSide

POLL_S = 0.05
FENCE_AGAIN_S = 3.0  # a fence that was lost with a queue is sent again
QUIET_S_MAX = 20.0

log = structlog.get_logger()


class Draining:
    """Waits for other processes. `newest`, by lane, is the sequence at which the sale was closed."""

    def __init__(
        self,
        sale_id: UUID,
        *,
        shards: ShardsSide,
        lanes: LanesSide,
        recovery: LaneRecovery,
        queue: Queue,
        wait_s: float,
    ) -> None:
        """`wait_s`: bound of each wait, after which Stuck is raised."""
        self._sale_id = sale_id
        self._shards = shards
        self._lanes = lanes
        self._recovery = recovery
        self._queue = queue
        self._wait_s = wait_s

    async def wait_for_relays(self, newest: Mapping[int, int]) -> None:
        """Wait until the relay has published every entry up to the closing; Stuck."""
        for lane, seq in newest.items():

            async def is_relayed(lane: int = lane, seq: int = seq) -> bool:
                oldest = await self._lanes.oldest(lane)
                return oldest is None or oldest > seq

            await self._until(is_relayed, f"lane {lane} is not relayed")

    async def fence(self) -> None:
        """Send a fence through every shard's queue and wait until each writer has noted it; Stuck."""
        fence = uuid4()
        sent_at = -FENCE_AGAIN_S

        async def has_passed() -> bool:
            nonlocal sent_at
            noted = await self._shards.fenced_by(fence)
            if time.monotonic() - sent_at >= FENCE_AGAIN_S:
                await self._send_fence(fence, [shard for shard, is_there in enumerate(noted) if not is_there])
                sent_at = time.monotonic()
            return all(noted)

        await self._until(has_passed, "a shard's writer did not acknowledge the fence")

    async def _send_fence(self, fence: UUID, shards: Sequence[int]) -> None:
        for shard in shards:
            try:
                await self._queue.publish(
                    order_queue(shard),
                    b"",
                    message_id=f"fence-{fence}",
                    headers={FENCE_HEADER: f"{self._sale_id}:{fence}"},
                )
            except QueueFull:
                log.warning("queue is full: the fence is sent again", shard=shard)

    async def wait_for_quiet(self, newest: Mapping[int, int]) -> bool:
        """Wait until nothing is under way: no message and no retry, or every place is stored. False: not in time."""
        deadline = time.monotonic() + min(self._wait_s, QUIET_S_MAX)
        queues = [order_queue(shard) for shard in range(self._shards.count)]
        while True:
            # The barrier covers messages in the hands of writers; the depths cover messages that writers published.
            passed = [await self._queue.barrier(queue, wait_s=0) for queue in queues]
            depths = [await self._queue.depth(queue) for queue in queues]
            empty = all(depth.messages == depth.retrying == 0 for depth in depths)
            if (all(passed) and empty) or await self._is_complete(newest):
                return True
            if time.monotonic() >= deadline:
                log.warning("the queue is not quiet", depths=[(depth.messages, depth.retrying) for depth in depths])
                return False
            await asyncio.sleep(POLL_S)

    async def _is_complete(self, newest: Mapping[int, int]) -> bool:
        verified = await self._recovery.verified(newest)
        for lane, seq in newest.items():
            async for after, upto, places in self._shards.places(lane, after=verified[lane], upto=seq):
                if gaps(places, after=after, upto=upto):
                    return False
        return True

    async def reject_waiting(self, lanes: Sequence[int]) -> None:
        """Send orders noted as waiting for a grant to the closed gate, even if their messages were lost; Stuck."""
        for shard, lane, seq, entry in await self._waiting(lanes):
            body = encode_orders(lane, [(seq, entry)])
            try:
                await self._queue.publish(order_queue(shard), body, message_id=f"{lane}-{seq}-again")
            except QueueFull:
                raise Stuck(f"the queue of shard {shard} is full; the sale stays closed, run this again") from None

        async def none_waits() -> bool:
            return not await self._waiting(lanes)

        await self._until(none_waits, "orders that waited for a grant are not stored as rejected")

    async def _waiting(self, lanes: Sequence[int]) -> list[tuple[int, int, int, bytes]]:
        """(shard, lane, sequence, entry) of the sale's orders that are noted as waiting for a grant."""
        return [
            (shard, *noted)
            for shard in range(self._shards.count)
            for noted in await self._shards.waiting(shard, lanes)
            if decode_entry(noted[2]).sale_id == self._sale_id
        ]

    async def _until(self, holds: Callable[[], Awaitable[bool]], problem: str) -> None:
        deadline = time.monotonic() + self._wait_s
        while not await holds():
            if time.monotonic() >= deadline:
                raise Stuck(f"{problem} after {self._wait_s:.0f} s; the sale stays closed, run this again")
            await asyncio.sleep(POLL_S)
