"""The shard side of a rebuild: fences, the gate, the orders, the places of a lane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from domain.topology import Topology
from runtime.postgres.databases import Pool
from workers.recovery.rebuild.catalogue import SQL

ORDERS_PER_FETCH = 2_000
PLACES_PER_LOOK = 50_000
WAITING_MAX = 5_000
# The gate waits for the writers' transactions of the sale, which are bounded themselves.
_LOCK_BOUND = "SET LOCAL lock_timeout = '35s'"


class ShardsSide:
    """Statements on all shards, `pools` in shard order."""

    def __init__(self, pools: Sequence[Pool], sale_id: UUID, *, cluster: Topology) -> None:
        """Uses the pools, does not own them."""
        self._cluster = cluster
        self.count = len(pools)
        self._pools = pools
        self._sale_id = sale_id

    async def holds(self) -> bool:
        """Whether any shard has a reserved order of the sale."""
        return any(await asyncio.gather(*(self._holds(pool) for pool in self._pools)))

    async def _holds(self, pool: Pool) -> bool:
        async with pool.connection() as connection:
            row = await (await connection.execute(SQL["holds"], {"sale_id": self._sale_id})).fetchone()
        return row is not None and bool(row[0])

    async def fenced_by(self, fence: UUID) -> list[bool]:
        """For each shard, whether its writer has taken this fence off the queue."""
        return list(await asyncio.gather(*(self._is_fenced(pool, fence) for pool in self._pools)))

    async def _is_fenced(self, pool: Pool, fence: UUID) -> bool:
        async with pool.connection() as connection:
            cursor = await connection.execute(SQL["read_fence"], {"sale_id": self._sale_id})
            row = await cursor.fetchone()
        return row is not None and row[0] == fence

    async def close_gate(self, epoch: int, skus: Sequence[str]) -> None:
        """From here on, orders of older epochs that are not stored now are never charged."""
        await asyncio.gather(*(self._close_gate(pool, epoch, skus) for pool in self._pools))

    async def _close_gate(self, pool: Pool, epoch: int, skus: Sequence[str]) -> None:
        values = {"sale_id": self._sale_id, "epoch": epoch, "skus": list(skus)}
        async with pool.connection() as connection:
            await connection.execute(_LOCK_BOUND)
            for block in ("make_quotas", "lock_quotas", "close_gate"):
                await connection.execute(SQL[block], values)

    async def orders(self, shard: int) -> AsyncIterator[list[tuple[Any, ...]]]:
        """Rows of `read_orders` in pages, those of one user in sequence; behind the gate nothing changes them."""
        async with self._pools[shard].connection() as connection, connection.cursor("orders") as cursor:
            await cursor.execute(SQL["read_orders"], {"sale_id": self._sale_id})
            while page := await cursor.fetchmany(ORDERS_PER_FETCH):
                yield page

    async def paid_orders(self, shard: int) -> AsyncIterator[list[UUID]]:
        """Ids of the sale's orders that have a payment, in pages."""
        async with self._pools[shard].connection() as connection, connection.cursor("payments") as cursor:
            await cursor.execute(SQL["read_payments"], {"sale_id": self._sale_id})
            while page := await cursor.fetchmany(ORDERS_PER_FETCH):
                yield [order_id for (order_id,) in page]

    async def orders_of_user(self, user_id: UUID) -> tuple[int, list[tuple[Any, ...]]]:
        """The user's shard, and the user's rows of `read_orders`."""
        shard = self._cluster.shard_of_user(user_id)
        async with self._pools[shard].connection() as connection:
            values = {"sale_id": self._sale_id, "user_id": user_id}
            return shard, await (await connection.execute(SQL["read_orders_of_user"], values)).fetchall()

    async def waiting(self, shard: int, lanes: Sequence[int]) -> list[tuple[int, int, bytes]]:
        """(lane, sequence, entry) of entries that waited for a grant and are not stored, the oldest first."""
        async with self._pools[shard].connection() as connection:
            values = {"lanes": list(lanes), "limit": WAITING_MAX}
            rows = await (await connection.execute(SQL["read_waiting"], values)).fetchall()
        return [(lane, seq, bytes(entry)) for lane, seq, entry in rows]

    async def places(self, lane: int, *, after: int, upto: int) -> AsyncIterator[tuple[int, int, set[int]]]:
        """(after, upto, places) of consecutive parts of a lane; any shard accounts for these places."""
        for start in range(after, upto, PLACES_PER_LOOK):
            values = {"lane": lane, "after": start, "upto": min(start + PLACES_PER_LOOK, upto)}
            answers = await asyncio.gather(*(self._places(pool, values) for pool in self._pools))
            yield start, values["upto"], set().union(*answers)

    async def _places(self, pool: Pool, values: dict[str, int]) -> set[int]:
        async with pool.connection() as connection:
            return {row[0] for row in await (await connection.execute(SQL["read_places"], values)).fetchall()}
