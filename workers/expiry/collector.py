"""Collects the due holds of one shard. Reads its index of reserved orders, asks Redis to expire them.

Writes nothing to PostgreSQL: the expired version comes through the stream like every other, and until it is stored the
same rows are due again. What was handled lately is left out for a while, and a round goes on where the one before ended:
however many rows stay due (their sale is closed for recovery, Redis lost them, the writer stands still), those behind
them have their turn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from domain.outcomes import Transition
from runtime.postgres.sql import load_sql
from runtime.redis.leases import Lease
from workers.expiry.expire import BATCH_MAX, DueOrder, Troubles, expire

EVERY_S = 1.0
# Rows are looked up by Redis time less this margin, so that the script hardly ever answers NOT_DUE.
MARGIN_MS = 50
PAGES_MAX = 25
HANDLED_S = 15.0
HANDLED_MAX = 200_000

_SQL = load_sql("workers.expiry", "expiry.sql")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the order of expiry a page ended."""

    at: datetime
    order_id: UUID


_START = Place(datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))


class Collector:
    """The collector of one shard; `collect` is one round."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], redis: Redis) -> None:
        """`pool` is the shard's."""
        self._pool = pool
        self._redis = redis
        self._handled: dict[UUID, float] = {}
        self._place = _START

    async def collect(self, lease: Lease) -> bool:
        """Handle what is due from the last round's end on, at most `PAGES_MAX` pages; whether to go on at once.

        That is when there may be more and holds were collected: rows that only stay due are no reason to hurry.
        """
        troubles = Troubles("index")
        try:
            return await self._collect(lease, troubles)
        finally:
            troubles.tell()

    async def _collect(self, lease: Lease, troubles: Troubles) -> bool:
        seconds, microseconds = await self._redis.time()
        before_ms = seconds * 1000 + microseconds // 1000 - MARGIN_MS
        self._forget_old()
        collected = 0
        for _ in range(PAGES_MAX):
            if not lease.held:
                return False
            orders, place = await self._page(before_ms, self._place)
            due = [order for order in orders if order.order_id not in self._handled]
            if due:
                collected += await self._expire(due, troubles)
            # Only now: what Redis did not answer about is asked again.
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

    async def _expire(self, due: list[DueOrder], troubles: Troubles) -> int:
        """How many holds were collected."""
        now = time.monotonic()
        transitions = await expire(self._redis, due, troubles)
        for order, transition in zip(due, transitions, strict=True):
            # NOT_DUE comes again soon; everything else stays as it is until its new version is stored.
            if transition is not Transition.NOT_DUE and len(self._handled) < HANDLED_MAX:
                self._handled[order.order_id] = now
        return transitions.count(Transition.DONE)

    def _forget_old(self) -> None:
        oldest = time.monotonic() - HANDLED_S
        self._handled = {order_id: at for order_id, at in self._handled.items() if at > oldest}
