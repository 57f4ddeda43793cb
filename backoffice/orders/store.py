"""Orders in the shards and in the reservation Redis. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import structlog
from psycopg.rows import class_row

from backoffice.stores import Stores
from domain import topology
from domain.orders import MalformedEntry, OrderStatus, decode_value
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "orders.sql")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """A row of `orders`; `lines` are objects with sku, quantity and unit_price_minor."""

    id: UUID
    user_id: UUID
    sale_id: UUID
    status: int
    currency: str
    total_minor: int
    lines: list[dict[str, Any]]
    reserved_at: datetime
    expires_at: datetime
    version: int
    changed_at: datetime

    def status_at(self, now: datetime) -> OrderStatus:
        """The status to present at a time: a hold past its time is expired."""
        status = OrderStatus(self.status)
        return OrderStatus.EXPIRED if status is OrderStatus.RESERVED and now >= self.expires_at else status


@dataclass(frozen=True, slots=True)
class Transition:
    """One version of an order."""

    version: int
    status: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Filter:
    """Orders to list; None does not filter. `before`: only orders with a smaller id."""

    user_id: UUID | None
    sale_id: UUID | None
    status: OrderStatus | None
    before: UUID | None


@dataclass(frozen=True, slots=True)
class IdRange:
    """Ids from `first` on, below `end`; None is no bound."""

    first: UUID | None
    end: UUID | None


class Orders:
    """Reads orders, one shard at a time."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' clients, owns nothing."""
        self._stores = stores

    async def page(self, shard: int, wanted: Filter, id_range: IdRange, *, limit: int, now: datetime) -> list[Order]:
        """Orders of one shard, newest first."""
        parameters = {
            "before": wanted.before,
            "user_id": wanted.user_id,
            "sale_id": wanted.sale_id,
            "status": None if wanted.status is None else int(wanted.status),
            "first": id_range.first,
            "end": id_range.end,
            "limit": limit,
            "now": now,
        }
        async with self._stores.shards[shard].connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Order))
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()

    async def sale_window(self, sale_id: UUID) -> tuple[datetime, datetime] | None:
        """The earliest and the latest time of an order of the sale; None if the sale does not exist."""
        async with self._stores.catalogue.connection() as connection:
            row = await (await connection.execute(SQL["sale_window"], {"sale_id": sale_id})).fetchone()
        return None if row is None else (row[0], row[1])

    async def stored(self, order_id: UUID) -> tuple[Order | None, list[Transition]]:
        """The order in its shard, None if it is not stored, and its stored versions in order."""
        shard = self._stores.shards[self._stores.topology.shard_of_order(order_id)]
        async with shard.connection() as connection:
            orders = connection.cursor(row_factory=class_row(Order))
            stored = await (await orders.execute(SQL["get"], {"id": order_id})).fetchone()
            transitions = connection.cursor(row_factory=class_row(Transition))
            history = await (await transitions.execute(SQL["history"], {"id": order_id})).fetchall()
        return stored, history

    async def held(self, order_id: UUID) -> Order | None:
        """The order in Redis; None if Redis does not have it or has a malformed value."""
        raw = cast(bytes | None, await self._stores.redis.get(topology.order_key(order_id)))
        return None if raw is None else _of_value(order_id, raw)


def _of_value(order_id: UUID, raw: bytes) -> Order | None:
    try:
        entry = decode_value(order_id, raw)
    except MalformedEntry as error:
        log.error("malformed order value", error=str(error))
        return None
    return Order(
        id=entry.order_id,
        user_id=entry.user_id,
        sale_id=entry.sale_id,
        status=entry.status,
        currency=entry.currency,
        total_minor=entry.total_minor,
        lines=[
            {"sku": line.sku, "quantity": line.quantity, "unit_price_minor": line.unit_price_minor}
            for line in entry.lines
        ],
        reserved_at=moment(entry.reserved_at_ms),
        expires_at=moment(entry.expires_at_ms),
        version=entry.version,
        changed_at=moment(entry.changed_at_ms),
    )


def moment(unix_ms: int) -> datetime:
    """The time of a number of milliseconds since 1970."""
    return EPOCH + timedelta(milliseconds=unix_ms)
