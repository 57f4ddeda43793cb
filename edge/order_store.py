"""Orders in Redis and in the shards. Redis is read first: it has every order that is not both final and stored.

Reads only. A shard's rows come from its primary, so that orders stored a moment ago are found.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from redis.asyncio import Redis

from domain import ids, topology
from domain.orders import OrderEntry, OrderLine, OrderStatus, decode_value
from domain.sales import SaleDefinition
from domain.topology import Topology
from payments.ledger import Shown, read_shown
from runtime.postgres.sql import load_sql

READ_S_MAX = 2.0  # for a connection and the rows together
SALES_ASKED_MAX = 256  # sales whose user hashes are read for a list; orders of others are in their shard after seconds
RECORDS_READ_MAX = 2000  # for a list, of all sales together; orders beyond are in their shard after seconds
SCANS_MAX = 10  # per user hash; one is enough unless the hash grows or shrinks meanwhile

_SQL = load_sql("edge", "orders.sql")


class ShardUnavailable(Exception):
    """A shard did not answer in time."""

    def __init__(self, shard: int, reason: str) -> None:
        super().__init__(f"shard {shard}: {reason}")
        self.shard = shard


class OrderStore:
    """Finds orders. Errors of Redis pass through as `RedisError`, those of a shard as ShardUnavailable."""

    def __init__(self, redis: Redis, pools: Sequence[AsyncConnectionPool[Any]], cluster: Topology) -> None:
        self._redis = redis
        self._pools = pools
        self._cluster = cluster

    def can_exist(self, order_id: UUID) -> bool:
        """Whether an id can be an order's: it has the format, and names a lane of this cluster."""
        return ids.is_order_id(order_id) and ids.lane_of(order_id) < self._cluster.lanes

    async def held(self, order_id: UUID) -> tuple[OrderEntry | None, bool]:
        """Newest version of the order in Redis, or None; and whether Redis knows that the order has payments."""
        keys = (topology.order_key(order_id), topology.payment_mark_key(order_id))
        value, mark = cast(list[bytes | None], await self._redis.mget(keys))
        return None if value is None else decode_value(order_id, value), mark is not None

    async def stored(self, order_id: UUID) -> OrderEntry | None:
        """The order from its shard's primary, or None."""
        async with self._shard(self._cluster.shard_of_order(order_id)) as connection:
            row = await (await connection.execute(_SQL["order_by_id"], (order_id,))).fetchone()
        return None if row is None else _entry(row)

    async def payments(self, order_ids: Sequence[UUID]) -> dict[UUID, Shown]:
        """What the buyer sees of the payments of these orders of one buyer; orders without one are left out."""
        if not order_ids:
            return {}
        async with self._shard(self._cluster.shard_of_order(order_ids[0])) as connection:
            return await read_shown(connection, order_ids)

    async def stored_page(self, user_id: UUID, *, before: UUID, limit: int) -> list[OrderEntry]:
        """At most `limit` stored orders of a user with ids below `before`, newest first."""
        async with self._shard(self._cluster.shard_of_user(user_id)) as connection:
            rows = await (await connection.execute(_SQL["orders_of_user"], (user_id, before, limit))).fetchall()
        return [_entry(row) for row in rows]

    async def held_page(
        self, user_id: UUID, sales: Sequence[SaleDefinition], *, before: UUID, limit: int
    ) -> list[OrderEntry]:
        """At most `limit` orders of a user in Redis with ids below `before`, newest first, from these sales' hashes.

        Only the first `SALES_ASKED_MAX` sales are asked, and about `RECORDS_READ_MAX` records are read.
        """
        asked = sales[:SALES_ASKED_MAX]
        keys = [topology.user_key(topology.home_lane(user_id, s.lanes), s.sale_id, user_id) for s in asked]
        order_ids = [i for i in await self._order_ids(keys) if i.int < before.int]
        order_ids = sorted(order_ids, key=lambda i: i.int, reverse=True)[:limit]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for order_id in order_ids:
                pipeline.get(topology.order_key(order_id))
            values: list[bytes | None] = await pipeline.execute()
        # A record outlives its order's value, which goes a day after it is final and stored. The shard's page has it.
        return [decode_value(i, value) for i, value in zip(order_ids, values, strict=True) if value is not None]

    async def _order_ids(self, keys: Sequence[bytes]) -> set[UUID]:
        """Order ids in the apply-once records of user hashes: the first 16 bytes of each."""
        found: set[UUID] = set()  # HSCAN may return a field twice
        pending = [(key, 0, count) for key, count in await self._readable(keys)]
        for _ in range(SCANS_MAX):
            if not pending or len(found) >= RECORDS_READ_MAX:
                break
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key, cursor, count in pending:
                    pipeline.hscan(key, cursor, count=count)
                answers: list[tuple[int, dict[bytes, bytes]]] = await pipeline.execute()
            found.update(
                UUID(bytes=record[:16])
                for _, fields in answers
                for field, record in fields.items()
                if field != topology.USER_STATE_FIELD
            )
            pending = [(key, at, count) for (key, _, count), (at, _) in zip(pending, answers, strict=True) if at]
        return found

    async def _readable(self, keys: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """The first hashes with fields, and how many fields to read of each, `RECORDS_READ_MAX` in all."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hlen(key)
            lengths: list[int] = await pipeline.execute()
        chosen: list[tuple[bytes, int]] = []
        left = RECORDS_READ_MAX
        for key, length in zip(keys, lengths, strict=True):
            if length and left:
                chosen.append((key, min(length, left)))
                left -= min(length, left)
        return chosen

    @asynccontextmanager
    async def _shard(self, shard: int) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        if shard >= len(self._pools):
            raise ShardUnavailable(shard, "not configured")
        try:
            async with asyncio.timeout(READ_S_MAX), self._pools[shard].connection() as connection:
                yield connection
        except (psycopg.Error, PoolTimeout, TooManyRequests, TimeoutError, OSError) as error:
            raise ShardUnavailable(shard, type(error).__name__) from error


def _entry(row: Sequence[Any]) -> OrderEntry:
    order_id, user_id, sale_id, key, currency, lines, status, version, epoch, reserved, expires, changed = row
    return OrderEntry(
        order_id=order_id,
        user_id=user_id,
        sale_id=sale_id,
        idempotency_key=key,
        currency=currency,
        # A row has no SKU index: only scripts need one, and they read the entry in Redis.
        lines=tuple(
            OrderLine(place, line["sku"], line["quantity"], line["unit_price_minor"])
            for place, line in enumerate(lines)
        ),
        status=OrderStatus(status),
        version=version,
        epoch=epoch,
        reserved_at_ms=_unix_ms(reserved),
        expires_at_ms=_unix_ms(expires),
        changed_at_ms=_unix_ms(changed),
    )


def _unix_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
