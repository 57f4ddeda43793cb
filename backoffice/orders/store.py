"""Reads orders: in the shards, all at once where the user is not known, and one order's newest version in Redis."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import structlog
from psycopg.rows import class_row

from backoffice.stores import Stores
from domain import ids, topology
from domain.orders import MalformedEntry, OrderStatus, decode_value
from runtime.postgres.databases import Database
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "orders.sql")
CLOCK_MARGIN = timedelta(hours=1)  # order ids carry the clock of an edge, windows are by Redis's
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """A row of `orders`; `lines` are objects of sku, quantity and unit_price_minor."""

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
        """The status to present: a hold past its time is expired."""
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
    """Which orders; None leaves a member open. `before` continues a list."""

    user_id: UUID | None
    sale_id: UUID | None
    status: OrderStatus | None
    before: UUID | None


class Orders:
    """Reads only: orders change by the order path alone."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._stores = stores

    async def page(self, wanted: Filter, *, limit: int, now: datetime) -> list[Order]:
        """Newest first, over all shards, or the one of the user.

        An order's id begins with its time, so ids order all shards alike: each gives its first `limit`, the merge is cut there.
        """
        parameters = {
            "before": wanted.before,
            "user_id": wanted.user_id,
            "sale_id": wanted.sale_id,
            "status": None if wanted.status is None else int(wanted.status),
            "limit": limit,
            "now": now,
            "first": None,
            "last": None,
        }
        if wanted.sale_id is not None:
            span = await self._span(wanted.sale_id)
            if span is None:
                return []
            parameters |= span
        if wanted.user_id is not None:
            return await self._page(self._stores.shard_of_user(wanted.user_id), parameters)
        pages = await asyncio.gather(*(self._page(shard, parameters) for shard in self._stores.shards))
        return sorted((order for page in pages for order in page), key=lambda order: order.id, reverse=True)[:limit]

    async def _span(self, sale_id: UUID) -> dict[str, UUID] | None:
        """Bounds of the ids that orders of a sale may have; None for a sale that the catalogue does not know, and has no orders.

        Instead of an index on the sale, which every order would pay for: ids begin with their time, and a sale has a window.
        """
        async with self._stores.catalogue.connection() as connection:
            row = await (await connection.execute(SQL["sale_window"], {"sale_id": sale_id})).fetchone()
        if row is None:
            return None  # sales are never removed
        first, last = ((at - _EPOCH) // timedelta(milliseconds=1) for at in row)
        margin_ms = CLOCK_MARGIN // timedelta(milliseconds=1)
        return {"first": ids.first_order_id(first - margin_ms), "last": ids.first_order_id(last + margin_ms)}

    async def get(self, order_id: UUID) -> tuple[Order, list[Transition]] | None:
        """The newest version known to Redis or the shard, and all versions in order."""
        if not ids.is_order_id(order_id) or ids.lane_of(order_id) >= self._stores.topology.lanes:
            return None
        shard = self._stores.shards[self._stores.topology.shard_of_order(order_id)]
        # Redis first: what leaves it meanwhile is stored.
        raw = cast(bytes | None, await self._stores.redis.get(topology.order_key(order_id)))
        async with shard.connection() as connection:
            orders = connection.cursor(row_factory=class_row(Order))
            stored = await (await orders.execute(SQL["get"], {"id": order_id})).fetchone()
            transitions = connection.cursor(row_factory=class_row(Transition))
            history = await (await transitions.execute(SQL["history"], {"id": order_id})).fetchall()
        held = None if raw is None else _of_value(order_id, raw)
        newest = max((order for order in (stored, held) if order is not None), key=lambda o: o.version, default=None)
        if newest is None:
            return None
        known = {transition.version for transition in history}
        if newest.version not in known:
            history.append(Transition(newest.version, newest.status, newest.changed_at))
        if newest.version > 1 and 1 not in known:
            # Its reservation is not stored yet, but every version tells when that was.
            history.append(Transition(1, OrderStatus.RESERVED, newest.reserved_at))
        return newest, sorted(history, key=lambda transition: transition.version)

    async def _page(self, shard: Database, parameters: dict[str, Any]) -> list[Order]:
        async with shard.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Order))
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()


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
    return _EPOCH + timedelta(milliseconds=unix_ms)
