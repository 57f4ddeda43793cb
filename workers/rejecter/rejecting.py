"""Rejects orders whose units do not exist: accepted by a Redis that had lost data, refused by the guard in PostgreSQL.

An order without a grant waits, because a release may be on its way. It waits in vain when, looked at twice with
`STEADY_S` in between,

    every entry that its lanes had numbered when it was first seen waiting is stored, dead-lettered or waiting itself
    (what could make its unit free again came before it, so no release is on its way any more), and
    for one of its lines, the ledger's stock less what all shards have sold is less than the line, and did not move.

PostgreSQL decides, under a lock that lets no grant and no restock in; Redis numbers the version that says so. It comes
to the shard through the stream like every change and is stored uncharged, with its transition and its event. So there
is one source of versions, nothing to undo, and after a crash between any two steps the round begins anew.

Does not reject paid orders, orders that Redis does not know, or orders of a sale that is closed for recovery: staff
restock the first, a rebuild sees to the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.orders import OrderEntry, OrderStatus, decode_entry
from domain.outcomes import Transition
from reservation import scripts
from runtime.postgres.sql import load_sql
from runtime.redis.leases import Lease
from runtime.redis.scripts import run as run_script
from workers.reconciler.reading import Pool, Reading

ROLE = "rejecting"
EVERY_S = 1.0
STEADY_S = 5.0
NOTES_MAX = 5_000  # per shard and round
REJECTED_MAX = 200  # per sale and round: the ledger is locked meanwhile
_LOCK_BOUNDS = ("SET LOCAL lock_timeout = '2s'", "SET LOCAL idle_in_transaction_session_timeout = '30s'")

REJECTED = Counter("flashsale_orders_rejected", "Accepted orders whose units did not exist: Redis had lost data.")
REJECTED_UNITS = Counter("flashsale_units_written_off", "Units of rejected orders.")
WAITING = Gauge("flashsale_orders_waiting", "Orders that wait for a grant for longer than a release takes.")
WAITING_PAID = Gauge("flashsale_paid_orders_waiting", "Paid orders among them: only a restock helps.")

_SQL = load_sql(__package__, "rejecting.sql")
log = structlog.get_logger()

Sku = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Supply:
    """The ledger's stock of one SKU and what each shard has sold of it, in shard order."""

    stock: int
    sold: tuple[int, ...]

    @property
    def free(self) -> int:
        """Units that a grant could still be made from, now or after the sweep."""
        return self.stock - sum(self.sold)


@dataclass(frozen=True, slots=True)
class _Seen:
    """When an order was first seen waiting, and the newest sequence of each lane of its sale right afterwards."""

    at_s: float
    seqs: Mapping[int, int]


class Patience:
    """Remembers since when orders wait and since when supplies stand still. Pure: the caller brings the time."""

    def __init__(self, *, steady_s: float) -> None:
        """`steady_s`: what must not move for this long."""
        self._steady_s = steady_s
        self._seen: dict[UUID, _Seen] = {}
        self._supplies: dict[Sku, tuple[Supply, float]] = {}

    def see_orders(
        self, orders: Mapping[UUID, OrderEntry], seqs: Mapping[UUID, Mapping[int, int]], now_s: float
    ) -> None:
        """`orders` wait now, `seqs` by sale were read after them; whatever else was remembered is forgotten."""
        self._seen = {
            order_id: self._seen.get(order_id) or _Seen(now_s, seqs[order.sale_id])
            for order_id, order in orders.items()
            if order.sale_id in seqs
        }

    def places_to_know(self, now_s: float) -> dict[int, int]:
        """Per lane the place up to which everything must be known before any order is given up."""
        upto: dict[int, int] = {}
        for seen in self._seen.values():
            if now_s - seen.at_s >= self._steady_s:
                for lane, seq in seen.seqs.items():
                    upto[lane] = max(upto.get(lane, 0), seq)
        return upto

    def see_supplies(self, supplies: Mapping[Sku, Supply], now_s: float) -> None:
        """What there is now of the SKUs that orders wait for."""
        self._supplies = {
            sku: before if (before := self._supplies.get(sku)) is not None and before[0] == supply else (supply, now_s)
            for sku, supply in supplies.items()
        }

    def in_vain(self, orders: Iterable[OrderEntry], known_lanes: frozenset[int], now_s: float) -> list[OrderEntry]:
        """Those that wait for what is gone; `known_lanes` are known up to `places_to_know`."""
        return [order for order in orders if self._waits_in_vain(order, known_lanes, now_s)]

    def _waits_in_vain(self, order: OrderEntry, known_lanes: frozenset[int], now_s: float) -> bool:
        seen = self._seen.get(order.order_id)
        if seen is None or now_s - seen.at_s < self._steady_s or not known_lanes.issuperset(seen.seqs):
            return False
        for line in order.lines:
            supply, since_s = self._supplies[order.sale_id, line.sku]
            if supply.free < line.quantity and now_s - since_s >= self._steady_s:
                return True
        return False


class Rejecting:
    """The round; one process at a time does it, though doubles are harmless."""

    def __init__(
        self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool], reading: Reading, steady_s: float = STEADY_S
    ) -> None:
        """`shards` in shard order; uses the clients, does not own them."""
        self._redis = redis
        self._catalogue = catalogue
        self._shards = shards
        self._reading = reading
        self._patience = Patience(steady_s=steady_s)

    async def round(self, lease: Lease) -> bool:
        """Look at the waiting orders, reject what waits in vain; False: nothing is left to do at once."""
        waiting = await self._read_waiting()
        reserved = {i: order for i, order in waiting.items() if order.status is OrderStatus.RESERVED}
        WAITING.set(len(waiting))
        WAITING_PAID.set(sum(order.status is OrderStatus.PAID for order in waiting.values()))
        self._patience.see_orders(reserved, await self._lane_seqs(reserved), time.monotonic())
        if not reserved:
            return False
        # In this order: places first, or a release could be stored between the two.
        known_lanes = await self._known_lanes(self._patience.places_to_know(time.monotonic()))
        self._patience.see_supplies(await self._supplies(reserved.values()), time.monotonic())
        by_sale: dict[UUID, list[OrderEntry]] = {}
        for order in self._patience.in_vain(reserved.values(), known_lanes, time.monotonic()):
            by_sale.setdefault(order.sale_id, []).append(order)
        for sale_id, orders in by_sale.items():
            if lease.held:
                await self._reject(sale_id, orders[:REJECTED_MAX])
        return False

    async def _read_waiting(self) -> dict[UUID, OrderEntry]:
        """Waiting orders at their newest noted version."""
        waiting: dict[UUID, OrderEntry] = {}
        for rows in await asyncio.gather(*(self._notes(pool) for pool in self._shards)):
            for entry in (decode_entry(raw) for (raw,) in rows):
                known = waiting.get(entry.order_id)
                if known is None or entry.version > known.version:
                    waiting[entry.order_id] = entry
        return waiting

    async def _notes(self, pool: Pool) -> list[Any]:
        async with pool.connection() as connection:
            await connection.execute(_SQL["forget_stored"])
            return await (await connection.execute(_SQL["read_waiting"], {"limit": NOTES_MAX})).fetchall()

    async def _lane_seqs(self, orders: Mapping[UUID, OrderEntry]) -> dict[UUID, dict[int, int]]:
        """Newest sequence of every lane of the orders' sales; nothing for a sale that Redis does not know."""
        seqs = {}
        for sale_id in {order.sale_id for order in orders.values()}:
            for sale in await self._reading.sales(only=sale_id):
                lanes = await self._reading.lanes([sale])
                seqs[sale_id] = {lane: look.seq for lane, look in lanes.items()}
        return seqs

    async def _known_lanes(self, places: Mapping[int, int]) -> frozenset[int]:
        """The lanes of which every place up to the one asked for is known."""
        if not places:
            return frozenset()
        watermarks = await self._reading.watermarks()
        known = set()
        for lane, upto in places.items():
            after = min(watermarks.get(lane, 0), upto)
            values = {"lane": lane, "after": after, "upto": upto}
            counts = await asyncio.gather(*(_fetch(pool, "count_known", values) for pool in self._shards))
            if sum(rows[0][0] for rows in counts) >= upto - after:
                known.add(lane)
        return frozenset(known)

    async def _supplies(self, orders: Iterable[OrderEntry]) -> dict[Sku, Supply]:
        wanted = {(order.sale_id, line.sku) for order in orders for line in order.lines}
        sale_ids = list({sale_id for sale_id, _ in wanted})
        ledger = await self._reading.ledger(sale_ids)
        sold: list[dict[Sku, int]] = [
            {(sale_id, sku): units for sale_id, sku, units in rows}
            for rows in await asyncio.gather(
                *(_fetch(pool, "read_sold", {"sale_ids": sale_ids}) for pool in self._shards)
            )
        ]
        return {
            (sale_id, sku): Supply(
                row.stock if (row := ledger[sale_id].get(sku)) is not None else 0,
                tuple(shard.get((sale_id, sku), 0) for shard in sold),
            )
            for sale_id, sku in wanted
        }

    async def _reject(self, sale_id: UUID, orders: Sequence[OrderEntry]) -> None:
        """Decide under the ledger's lock, then tell Redis; what is rejected comes to the shard through the stream."""
        async with self._catalogue.connection() as connection, connection.transaction():
            for bound in _LOCK_BOUNDS:
                await connection.execute(bound)
            await connection.execute(_SQL["lock_stock"], {"sale_id": sale_id})
            # No grant and no restock from here on; what came just before lets the orders wait for another round.
            supplies = await self._supplies(orders)
            for order in orders:
                if any(supplies[sale_id, line.sku].free < line.quantity for line in order.lines):
                    await self._tell_redis(order)

    async def _tell_redis(self, order: OrderEntry) -> None:
        keys = topology.order_change_keys(order.order_id, sale_id=order.sale_id, user_id=order.user_id)
        about = {"order_id": str(order.order_id), "sale_id": str(order.sale_id)}
        try:
            answer = await run_script(
                self._redis, scripts.REJECT, keys, (ids.short(order.sale_id), order.order_id.bytes)
            )
        except ResponseError as error:
            log.error("order could not be rejected", error=str(error), **about)
            return
        transition = Transition(int(answer[0]))
        if transition is Transition.DONE:
            units = sum(line.quantity for line in order.lines)
            REJECTED.inc()
            REJECTED_UNITS.inc(units)
            log.error("order rejected, its units do not exist", units=units, **about)
        elif transition is Transition.NOT_FOUND:
            log.error("order without units is not in Redis: the sale is to be rebuilt", **about)


async def _fetch(pool: Pool, block: str, values: Mapping[str, Any]) -> list[Any]:
    async with pool.connection() as connection:
        return await (await connection.execute(_SQL[block], values)).fetchall()
