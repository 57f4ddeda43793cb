"""Marks of orders that have payments or refunds: a reader of an order in Redis looks into its shard only then.

A mark is set before a decision about the money is answered to anyone, and again by a rebuild: by `settle-5` with its
decision, by `mark_payments` where no script decides. One too many costs a look; none may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from redis.asyncio import Redis

from domain import topology

MARK_S: Final = 7 * 24 * 3600  # outlives the order's value in Redis: the hold, and a day after the order is final


async def mark_payments(redis: Redis, order_ids: Iterable[UUID]) -> None:
    """Mark these orders, in one round trip. Repeating it only prolongs the marks."""
    async with redis.pipeline(transaction=False) as pipeline:
        for order_id in order_ids:
            pipeline.set(topology.payment_mark_key(order_id), b"", ex=MARK_S)
        await pipeline.execute()
