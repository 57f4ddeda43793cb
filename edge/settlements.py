"""Gathers the events of payments that arrive at the same time into batches, one batch of a shard at a time.

A batch costs two commits in its shard and three round trips to Redis, however many events it has. Events have a bound
and connections of their own: neither a crowd of buyers nor one shard that is away takes their places.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import psycopg
import structlog
from psycopg_pool import PoolTimeout, TooManyRequests
from redis.exceptions import RedisError

from domain.orders import MalformedEntry
from payments.ledger import PaymentLedger
from payments.providers.port import Captured
from payments.settling import BATCH_MAX, Settled, Settling
from runtime.buckets.gate import is_closed

WAITING_MAX: Final = 1024  # events of one shard in this worker
BATCH_S_MAX: Final = 4.0
# Between two batches of a shard that are not full: a batch costs about as much as ten events.
GATHER_S: Final = 0.015
GATHERED: Final = BATCH_MAX // 2
MOVING_S: Final = 0.05  # between tries to settle payments of a bucket that moves
MOVING_TRIES_MAX: Final = 20  # then the provider repeats the event
_AWAY = (RedisError, psycopg.Error, PoolTimeout, TooManyRequests, OSError, TimeoutError)

_log = structlog.get_logger("edge.settlements")


class SettlementsFull(Exception):
    """As many events wait as may."""


class SettlementUnavailable(Exception):
    """A server that the event needs is away, or its data cannot be stored. The event may be repeated."""


class Settlements:
    """Settles single events by way of batches."""

    def __init__(self, settling: Settling, ledger: PaymentLedger, *, waiting_max: int = WAITING_MAX) -> None:
        self._settling = settling
        self._ledger = ledger
        self._waiting_max = waiting_max
        self._waiting: dict[int, deque[tuple[Captured, asyncio.Future[Settled]]]] = {}
        self._working: dict[int, asyncio.Task[None]] = {}

    async def settle(self, event: Captured) -> Settled:
        """The event's result. Raises SettlementsFull, SettlementUnavailable."""
        shard = self._ledger.shard_of(event.order_id)
        waiting = self._waiting.setdefault(shard, deque())
        if len(waiting) >= self._waiting_max:
            raise SettlementsFull
        result: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        waiting.append((event, result))
        if shard not in self._working:
            self._working[shard] = asyncio.create_task(self._work(shard), name=f"settle shard {shard}")
        return await result

    async def close(self) -> None:
        """End the batches under way; their events are repeated by the provider."""
        for task in self._working.values():
            task.cancel()
        await asyncio.gather(*self._working.values(), return_exceptions=True)
        for waiting in self._waiting.values():  # of a task that was cancelled before its first step
            for _, result in waiting:
                _fail(result, "stopped")

    async def _work(self, shard: int) -> None:
        """Settle until no event of the shard waits. Every waiter gets a result or an error, whatever happens here."""
        waiting = self._waiting[shard]
        batch: list[tuple[Captured, asyncio.Future[Settled]]] = []
        try:
            while waiting:
                batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH_MAX))]
                await self._settle(shard, [one for one in batch if not one[1].done()])
                if len(waiting) < GATHERED:
                    await asyncio.sleep(GATHER_S)
        finally:
            del self._working[shard]
            for _, result in (*batch, *waiting):
                _fail(result, "interrupted")
            waiting.clear()

    async def _settle_elsewhere(self, batch: list[tuple[Captured, asyncio.Future[Settled]]], *, tries: int) -> None:
        """A bucket of the batch moves: settle its events in the shards where they are then."""
        await asyncio.sleep(MOVING_S)
        by_shard: dict[int, list[tuple[Captured, asyncio.Future[Settled]]]] = {}
        for one in batch:
            by_shard.setdefault(self._ledger.shard_of(one[0].order_id), []).append(one)
        for shard, part in by_shard.items():
            await self._settle(shard, [one for one in part if not one[1].done()], tries=tries)

    async def _settle(
        self, shard: int, batch: list[tuple[Captured, asyncio.Future[Settled]]], *, tries: int = 0
    ) -> None:
        try:
            async with asyncio.timeout(BATCH_S_MAX):
                results = await self._settling.settle(shard, [event for event, _ in batch])
        except (psycopg.DataError, psycopg.IntegrityError, MalformedEntry) as error:
            if len(batch) > 1:  # one event's data must not hold up the others
                for one in batch:
                    await self._settle(shard, [one], tries=tries)
                return
            event, result = batch[0]
            _log.error("payment_refused", event_id=event.event_id, order_id=str(event.order_id), error=str(error))
            _fail(result, type(error).__name__)
        except _AWAY as error:
            if is_closed(error) and tries < MOVING_TRIES_MAX:
                await self._settle_elsewhere(batch, tries=tries + 1)
                return
            _log.warning("payments_not_settled", shard=shard, events=len(batch), error=type(error).__name__)
            for _, result in batch:
                _fail(result, type(error).__name__)
        except Exception as error:
            _log.exception("settling_failed", shard=shard, events=len(batch))
            for _, result in batch:
                _fail(result, type(error).__name__)
        else:
            for (_, waiter), settled in zip(batch, results, strict=True):
                if not waiter.done():
                    waiter.set_result(settled)


def _fail(result: asyncio.Future[Settled], reason: str) -> None:
    if not result.done():
        result.set_exception(SettlementUnavailable(reason))
