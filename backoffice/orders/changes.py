"""Changes of orders by staff: cancelling a reserved order, refunding a paid one, putting its units on sale again.

The result of a crash after each step of a refund with restock:

    the refund is stored            its money goes back; `Restocker` puts the units on sale
    the ledger has the units        the synchroniser of sales brings them to the lane, `Restocker` notes it
    the lane has the units          `Restocker` repeats the restock under the same key, which changes nothing
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol
from uuid import UUID

import structlog
from redis.exceptions import ResponseError

from backoffice.orders.service import OrderService
from backoffice.orders.store import Order
from backoffice.stores import AWAY, Stores
from domain import ids
from domain.orders import OrderStatus
from domain.outcomes import Transition
from payments.staff_refunds import (
    Line,
    NotStoredYet,
    RefundOrder,
    Requested,
    ToRestock,
    is_known,
    note_restocked,
    request_refund,
    to_restock,
)
from reservation.lane import LaneForgot, Lanes
from reservation.payment_marks import mark_payments
from runtime.audit.entries import BEGUN, DONE, Action, object_name
from runtime.audit.recording import record
from runtime.buckets.gate import BucketDatabase
from runtime.process.supervision import TaskSupervisor

PERIOD_S: Final = 5.0
STORED_S_MAX: Final = 3.0  # an order takes less from its payment to its shard, unless a server is away
STORED_POLL_S: Final = 0.1
NIL: Final = UUID(int=0)  # before every refund
SETTLED: Final = timedelta(seconds=10)  # no request works longer on a refund
RESTOCKS_MAX: Final = 100  # refunds of one shard in one round

log = structlog.get_logger(__name__)


class OrderMissing(Exception):
    """There is no such order."""


class OrderStateConflict(Exception):
    """The order's state does not allow this; the message says why."""


class NotOnSale(Exception):
    """The sale is over: units cannot be put back. Nothing was changed."""


class UnknownLine(Exception):
    """The order has no such line; the message names the SKU."""


@dataclass(frozen=True, slots=True)
class _Ids:
    """The ids by which a script finds an order."""

    order_id: UUID
    sale_id: UUID
    user_id: UUID


class Restocks(Protocol):
    """The restocks of the sales, as far as refunds need them."""

    async def may_restock(self, sale_id: UUID) -> bool:
        """Whether the sale takes units."""
        ...

    async def restock_once(self, sale_id: UUID, *, sku: str, quantity: int, key: str, created_by: UUID) -> bool:
        """Put units on sale, once per key; False when the sale takes no units any more."""
        ...


class OrderChanges:
    """Changes orders for staff. Every change leaves an audit entry in the order's shard."""

    def __init__(self, stores: Stores, orders: OrderService, restocks: Restocks) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._orders = orders
        self._restocks = restocks
        self._lanes = Lanes(stores.redis)
        self._restocked_to: dict[int, UUID] = {}  # by shard: the last refund that this pass has looked at

    async def cancel(self, order_id: UUID) -> None:
        """Cancel a reserved order; repeating it changes nothing. OrderMissing, OrderStateConflict, LaneForgot.

        No transaction holds Redis and the shard: the audit log has an entry before the change, and one after it.
        """
        order = await self._find(order_id)
        if OrderStatus(order.status).is_final and order.status != OrderStatus.CANCELLED:
            raise OrderStateConflict(f"The order is {OrderStatus(order.status).label}")
        if order.status != OrderStatus.CANCELLED:
            await self._record_cancel(order_id, BEGUN)
        try:
            change = await self._lanes.cancel(_Ids(order.id, order.sale_id, order.user_id))
        except ResponseError as error:  # the sale is closed for recovery
            raise LaneForgot(sale_id=order.sale_id, lane=ids.lane_of(order_id)) from error
        if change.transition is Transition.CONFLICT:
            now_ms = await self._stores.now_ms()
            status = OrderStatus(order.status) if change.entry is None else change.entry.status_at(now_ms)
            raise OrderStateConflict(f"The order is {status.label}")
        if change.transition is Transition.NOT_FOUND and order.status != OrderStatus.CANCELLED:
            raise OrderMissing
        if change.transition is Transition.DONE:
            await self._record_cancel(order_id, DONE)

    async def _record_cancel(self, order_id: UUID, outcome: str) -> None:
        before, after = {"status": OrderStatus.RESERVED.label}, {"status": OrderStatus.CANCELLED.label}
        name = object_name("order", order_id)
        async with self._shard(order_id).connection() as connection:
            await record(connection, Action.ORDER_CANCEL, name, before=before, after=after, outcome=outcome)

    async def refund(
        self,
        order_id: UUID,
        *,
        quantities: Mapping[str, int | None] | None,
        restock: bool,
        key: str,
        requested_by: UUID,
    ) -> Requested:
        """Refund a paid order or some of its lines, once per key and line; a line's quantity is None for all of it.

        OrderMissing, OrderStateConflict, UnknownLine, NotOnSale, and those of `payments.staff_refunds.request_refund`.
        """
        order = await self._find(order_id)
        if order.status != OrderStatus.PAID:
            raise OrderStateConflict(f"The order is {OrderStatus(order.status).label}")
        lines = [Line(line["sku"], line["quantity"], line["unit_price_minor"]) for line in order.lines]
        ordered = {line.sku: line.quantity for line in lines}
        for sku, quantity in (quantities or {}).items():
            if ordered.get(sku) is None or quantity not in (None, ordered[sku]):
                raise UnknownLine(sku if sku not in ordered else f"{quantity} of {sku}; a line is refunded as a whole")
        skus = None if quantities is None else frozenset(quantities)
        if restock and not await self._restocks.may_restock(order.sale_id) and not await self._is_known(order_id, key):
            raise NotOnSale
        wanted = RefundOrder(order_id, lines, skus, restock, key, requested_by)
        await mark_payments(self._stores.redis, [order_id])
        requested = await self._request_when_stored(wanted)
        if restock:
            await self.put_back(
                ToRestock(requested.refund_id, order_id, order.sale_id, list(requested.skus), requested_by), order
            )
        return requested

    async def _request_when_stored(self, wanted: RefundOrder) -> Requested:
        """Store the request, its audit entry with it. An order that was paid a moment ago is on its way to its shard.

        NotStoredYet after `STORED_S_MAX`.
        """
        deadline = time.monotonic() + STORED_S_MAX
        while True:
            try:
                return await self._request(wanted)
            except NotStoredYet:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(STORED_POLL_S)

    async def _request(self, wanted: RefundOrder) -> Requested:
        name = object_name("order", wanted.order_id)
        async with self._shard(wanted.order_id).connection() as connection:
            requested = await request_refund(connection, wanted)
            if not requested.replayed:
                lines, amount_minor = list(requested.skus), requested.amount_minor
                after = {"lines": lines, "amount_minor": amount_minor, "restock": wanted.restock}
                await record(connection, Action.ORDER_REFUND, name, after=after)
            return requested

    async def put_back(self, refund: ToRestock, order: Order) -> None:
        """Put the units of a refund on sale, once; repeating it changes nothing."""
        for line in order.lines:
            if line["sku"] not in refund.lines:
                continue
            key = f"refund-{refund.id.hex}-{order.lines.index(line)}"
            applied = await self._restocks.restock_once(
                order.sale_id, sku=line["sku"], quantity=line["quantity"], key=key, created_by=refund.requested_by
            )
            if not applied:
                log.warning("units not put back: the sale is over", order_id=str(order.id), sku=line["sku"])
        async with self._shard(order.id).connection() as connection:
            await note_restocked(connection, refund.id)

    async def finish_restocks(self, *, settled: timedelta = SETTLED) -> int:
        """Take up restocks that were interrupted, of every shard; their number.

        A shard that is away holds up no other. A refund whose units cannot be put back at present comes again after
        all others: a round looks at the next `RESTOCKS_MAX` of a shard, and begins anew at their end.
        """
        finished = 0
        for number, shard in enumerate(self._stores.shards):
            try:
                async with shard.connection() as connection:
                    after = self._restocked_to.get(number, NIL)
                    waiting = await to_restock(connection, age=settled, after=after, limit=RESTOCKS_MAX)
            except AWAY as error:
                log.warning("restocker cannot reach a shard", shard=number, error=type(error).__name__)
                continue
            for refund in waiting:
                try:
                    await self.put_back(refund, await self._find(refund.order_id))
                    finished += 1
                except AWAY as error:
                    log.warning("restocker cannot reach a server", shard=number, error=type(error).__name__)
                    break
                except Exception as error:
                    log.exception("units not put back", refund=str(refund.id), error=type(error).__name__)
                self._restocked_to[number] = refund.id
            if len(waiting) < RESTOCKS_MAX:
                self._restocked_to.pop(number, None)
        return finished

    async def _is_known(self, order_id: UUID, key: str) -> bool:
        """Whether a refund of the order was made under this key: its repetition needs no sale."""
        async with self._shard(order_id).connection() as connection:
            return await is_known(connection, order_id, key)

    async def _find(self, order_id: UUID) -> Order:
        found = await self._orders.get(order_id)
        if found is None:
            raise OrderMissing
        return found[0]

    def _shard(self, order_id: UUID) -> BucketDatabase:
        return self._stores.shard_of_order(order_id)


class Restocker:
    """Takes up interrupted restocks of refunds beside requests; any number of processes may."""

    def __init__(self, changes: OrderChanges) -> None:
        """Uses it, owns nothing."""
        self._changes = changes

    async def run(self, background: TaskSupervisor) -> None:
        """Repeat until cancelled. A server that is away is asked again in the next round."""
        with background.rounds("restocker") as beat:
            while True:
                try:
                    await self._changes.finish_restocks()
                    beat()
                except AWAY as error:
                    log.warning("restocker cannot reach a server", error=type(error).__name__)
                    beat()
                except Exception:
                    log.exception("restocker failed")
                await asyncio.sleep(PERIOD_S)
