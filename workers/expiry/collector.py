"""Collects the due holds of one shard: reads its index of reserved orders, asks Redis to expire them.

Writes nothing to PostgreSQL: the expired version arrives through the stream like every other, and until it is stored
the same rows are due again. Orders handled lately are left out for a while, and a round continues where the last one
ended. So rows that stay due (their sale is closed for recovery, Redis lost them, the writer stands still) never hold
up the rows behind them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from redis.asyncio import Redis

from domain.outcomes import Transition
from reservation.lane import Lanes
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql
from runtime.redis.clock import now_ms
from runtime.redis.leases import Lease
from workers.expiry.expire import BATCH_MAX, DueOrder, Failures, expire

EVERY_S = 1.0
# Rows are read by Redis time less this margin, so that the script rarely answers NOT_DUE.
MARGIN_MS = 50
PAGES_MAX = 25
HANDLED_S = 15.0
HANDLED_MAX = 200_000

_SQL = load_sql("workers.expiry", "expiry.sql")


@dataclass(frozen=True, slots=True)
class Place:
    """Position in the order of expiry at which a page ended."""

    at: datetime
    order_id: UUID


_START = Place(datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


class Collector:
    """The collector of one shard; `collect` is one round."""

    def __init__(self, pool: Pool, redis: Redis) -> None:
        """`pool` is the shard's."""
        self._lanes = Lanes(redis)
        self._pool = pool
        self._redis = redis
        self._handled: dict[UUID, float] = {}
        self._place = _START

    async def collect(self, lease: Lease) -> bool:
        """Expire due orders from the last round's end on, at most `PAGES_MAX` pages; whether to continue at once.

        True when there may be more and holds were collected; rows that only stay due need no hurry.
        """
        failures = Failures("index")
        try:
            return await self._collect(lease, failures)
        finally:
            failures.log()

    async def _collect(self, lease: Lease, failures: Failures) -> bool:
        before_ms = await now_ms(self._redis) - MARGIN_MS
        self._forget_old()
        collected = 0
        for _ in range(PAGES_MAX):
            if not lease.held:
                return False
            orders, place = await self._page(before_ms, self._place)
            due = [order for order in orders if order.order_id not in self._handled]
            if due:
                collected += await self._expire(due, failures)
            # Only now: orders that Redis did not answer for are asked for again.
            self._place = place or _START
            if place is None:
                return False
        return collected > 0

    async def _page(self, before_ms: int, place: Place) -> tuple[list[DueOrder], Place | None]:
        values = {"before_ms": before_ms, "after": place.at, "after_id": place.order_id, "limit": BATCH_MAX}
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(_SQL["due"], values)).fetchall()
        orders = [DueOrder(order_id, user_id, sale_id) for order_id, user_id, sale_id, _ in rows]
        return orders, Place(rows[-1][3], rows[-1][0]) if len(rows) == BATCH_MAX else None

    async def _expire(self, due: list[DueOrder], failures: Failures) -> int:
        """Expire some orders; the number of holds collected."""
        now = time.monotonic()
        transitions = await expire(self._lanes, due, failures)
        for order, transition in zip(due, transitions, strict=True):
            # NOT_DUE will be due soon; every other answer stays the same until the new version is stored.
            if transition is not Transition.NOT_DUE and len(self._handled) < HANDLED_MAX:
                self._handled[order.order_id] = now
        return transitions.count(Transition.DONE)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - HANDLED_S
        self._handled = {order_id: at for order_id, at in self._handled.items() if at > oldest}
