"""A slow scan of the orders in Redis for cases that the shards' indexes do not show.

Finds holds long past their time that are not stored and so not collected, final orders that missed their TTL, and
orders that a rebuild did not restore; no lane knows those, so they get a TTL. One step reads a bounded number of keys
and then pauses. Only the cursor is remembered, so a new holder of the lease starts over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import cast
from uuid import UUID

import psycopg
import structlog
from redis.asyncio import Redis

from domain import topology
from domain.orders import MalformedEntry, OrderEntry, OrderStatus, decode_head, decode_value
from domain.outcomes import Transition
from domain.topology import Topology
from reservation.lane import Lanes
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql
from runtime.redis.clock import now_ms
from runtime.redis.leases import Lease
from workers.expiry.expire import BATCH_MAX, DueOrder, Failures, expire

EVERY_S = 0.1
KEYS_PER_STEP = 500
REST_S = 10.0
LOOK_S = 1.0  # longest wait of a step, so that the process can stop
# Far more than the index collector and the way through the queue take.
OVERDUE_MS = 60_000
FINAL_SINCE_MS = 3_600_000
FINAL_TTL_S = 24 * 3600
AWAY_S = 5.0  # a shard that did not answer is not asked for this time; the next scan finds its orders again

_SQL = load_sql("workers.expiry", "expiry.sql")
log = structlog.get_logger()


class Backstop:
    """The scan of all lanes; `step` is one round."""

    def __init__(
        self,
        pools: Sequence[Pool],
        redis: Redis,
        *,
        cluster: Topology,
        overdue_ms: int = OVERDUE_MS,
        final_since_ms: int = FINAL_SINCE_MS,
        rest_s: float = REST_S,
    ) -> None:
        """`pools` in shard order; `rest_s` is the pause after a scan of all keys."""
        self._pools = pools
        self._redis = redis
        self._lanes = Lanes(redis)
        self._cluster = cluster
        self._overdue_ms = overdue_ms
        self._final_since_ms = final_since_ms
        self._rest_s = rest_s
        self._rests_until = 0.0
        self._cursor = 0
        self._away_until = [0.0] * len(pools)

    async def step(self, _: Lease) -> bool:
        """Scan about `KEYS_PER_STEP` keys; never asks for another round at once, so that Redis rests in between."""
        rest_s = self._rests_until - time.monotonic()
        if rest_s > 0:
            await asyncio.sleep(min(rest_s, LOOK_S))
            return False
        redis_ms = await now_ms(self._redis)
        self._cursor, found = await self._redis.scan(
            self._cursor, match=topology.ORDER_KEYS_PATTERN, count=KEYS_PER_STEP
        )
        keys = cast(list[bytes], found)
        if self._cursor == 0:
            self._rests_until = time.monotonic() + self._rest_s
        if not keys:
            return False
        overdue: list[DueOrder] = []
        final: list[OrderEntry] = []
        for key, value in zip(keys, cast(list[bytes | None], await self._redis.mget(keys)), strict=True):
            entry = self._overdue_or_final(key, value, redis_ms)
            if entry is None:
                continue
            if entry.status.is_final:
                final.append(entry)
            else:
                overdue.append(DueOrder(entry.order_id, entry.user_id, entry.sale_id))
        failures = Failures("scan")
        for start in range(0, len(overdue), BATCH_MAX):
            part = overdue[start : start + BATCH_MAX]
            answers = await expire(self._lanes, part, failures)
            unknown = [order for order, answer in zip(part, answers, strict=True) if answer is Transition.NOT_FOUND]
            await self._limit_unknown(unknown)
        failures.log()
        if final:
            await self._give_ttl(final)
        return False

    def _overdue_or_final(self, key: bytes, value: bytes | None, now_ms: int) -> OrderEntry | None:
        """The entry if it is overdue or has long been final. Most are neither, so the head is decoded first."""
        if value is None:
            return None  # removed meanwhile, or not a string
        try:
            head = decode_head(value)
            if head.status == OrderStatus.RESERVED:
                if now_ms < head.expires_at_ms + self._overdue_ms:
                    return None
            elif now_ms < head.changed_at_ms + self._final_since_ms:
                return None
            return decode_value(topology.id_of_key(key), value)
        except MalformedEntry as error:
            log.error("order value is malformed", error=str(error))
            return None

    async def _limit_unknown(self, orders: Iterable[DueOrder]) -> None:
        """Give a TTL to values of orders that their lanes do not know: they are of an epoch before the last rebuild."""
        pipeline = self._redis.pipeline(transaction=False)
        for order in orders:
            # NX: a later scan must not prolong the life that this one set.
            pipeline.expire(topology.order_key(order.order_id), FINAL_TTL_S, nx=True)
        await pipeline.execute()

    async def _give_ttl(self, final: list[OrderEntry]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for entry in final:
            pipeline.pttl(topology.order_key(entry.order_id))
        lasting = [e for e, ttl_ms in zip(final, await pipeline.execute(), strict=True) if ttl_ms == -1]
        by_shard: dict[int, list[UUID]] = {}
        for entry in lasting:
            by_shard.setdefault(self._cluster.shard_of_order(entry.order_id), []).append(entry.order_id)
        for shard, order_ids in by_shard.items():
            pipeline = self._redis.pipeline(transaction=False)
            for order_id in await self._stored_as_final(shard, order_ids):
                pipeline.expire(topology.order_key(order_id), FINAL_TTL_S)
            await pipeline.execute()

    async def _stored_as_final(self, shard: int, order_ids: list[UUID]) -> list[UUID]:
        """Those that the shard has in a final state. None while it is away: the scan goes on for the other shards."""
        if time.monotonic() < self._away_until[shard]:
            return []
        try:
            async with self._pools[shard].connection() as connection:
                rows = await (await connection.execute(_SQL["final"], {"ids": order_ids})).fetchall()
        except (psycopg.Error, OSError, TimeoutError) as error:
            self._away_until[shard] = time.monotonic() + AWAY_S
            log.warning("shard away, its final orders get no TTL", shard=shard, error=type(error).__name__)
            return []
        return [order_id for (order_id,) in rows]
