"""Combines the orders of all shards, and one order's versions in Redis and its shard, with its money. Reads only."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

from backoffice.orders.store import EPOCH, Filter, IdRange, Order, Orders, Transition, moment
from backoffice.stores import Stores
from domain import ids
from domain.orders import OrderStatus
from payments.staff_refunds import PaymentRow, RefundRow, money_of_order

CLOCK_MARGIN = timedelta(hours=1)  # order ids carry the clock of an edge, windows that of Redis


class OrderService:
    """Reads orders for staff."""

    def __init__(self, stores: Stores, orders: Orders) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._orders = orders

    async def now(self) -> datetime:
        """The Redis time, by which statuses are judged."""
        return moment(await self._stores.now_ms())

    async def page(self, wanted: Filter, *, limit: int, now: datetime) -> list[Order]:
        """Orders, newest first: from all shards, or from the shard of the user.

        An order id begins with its time, so that ids order the orders of all shards: each shard returns its first
        `limit` orders, and the merged list is cut there.
        """
        id_range = IdRange(None, None)
        if wanted.sale_id is not None:
            known = await self._id_range(wanted.sale_id)
            if known is None:
                return []
            id_range = known
        if wanted.user_id is not None:
            shards = [self._stores.topology.shard_of_user(wanted.user_id)]
        else:
            shards = list(range(len(self._stores.shards)))
        pages = await asyncio.gather(
            *(self._orders.page(shard, wanted, id_range, limit=limit, now=now) for shard in shards)
        )
        return sorted((order for page in pages for order in page), key=lambda order: order.id, reverse=True)[:limit]

    async def _id_range(self, sale_id: UUID) -> IdRange | None:
        """The range of ids that orders of a sale can have; None if the sale does not exist and hence has no orders.

        It replaces an index on the sale, which would cost every order: ids begin with their time, a sale has a window.
        """
        window = await self._orders.sale_window(sale_id)
        if window is None:
            return None  # only drafts are deleted, and a draft has no orders
        first_ms, last_ms = ((at - EPOCH) // timedelta(milliseconds=1) for at in window)
        margin_ms = CLOCK_MARGIN // timedelta(milliseconds=1)
        return IdRange(ids.first_order_id(first_ms - margin_ms), ids.first_order_id(last_ms + margin_ms))

    async def get(self, order_id: UUID) -> tuple[Order, list[Transition]] | None:
        """The newest version in Redis or the shard, and all versions in order; None if the order does not exist."""
        if not ids.is_order_id(order_id) or ids.lane_of(order_id) >= self._stores.topology.lanes:
            return None
        # Redis first: an order that leaves Redis meanwhile is stored.
        held = await self._orders.held(order_id)
        stored, history = await self._orders.stored(order_id)
        newest = max((order for order in (stored, held) if order is not None), key=lambda o: o.version, default=None)
        if newest is None:
            return None
        known = {transition.version for transition in history}
        if newest.version not in known:
            history.append(Transition(newest.version, newest.status, newest.changed_at))
        if newest.version > 1 and 1 not in known:
            # The reservation is not stored yet, but every version carries its time.
            history.append(Transition(1, OrderStatus.RESERVED, newest.reserved_at))
        return newest, sorted(history, key=lambda transition: transition.version)

    async def money(self, order_id: UUID) -> tuple[list[PaymentRow], list[RefundRow]]:
        """Every payment and refund of an order, oldest first."""
        async with self._stores.shards[self._stores.topology.shard_of_order(order_id)].connection() as connection:
            return await money_of_order(connection, order_id)
