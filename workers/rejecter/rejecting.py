"""Rejects orders without existing units: accepted by a Redis that had lost data, refused by the guard in PostgreSQL.

An order without a grant waits, because a release may be under way. It waits in vain when, in two looks `STEADY_S`
apart,

    every entry that its lanes had numbered when it was first seen waiting is stored, dead-lettered or itself waiting
    (an entry that frees its unit was numbered before, so no release is under way any more), and
    for one of its lines, the ledger's stock less the units sold in all shards is below the line, and did not change.

PostgreSQL decides, under a lock that excludes grants and restocks; Redis numbers the rejected version. That version
arrives at the shard through the stream like every change, and is stored uncharged with its transition and its event. So
there is one source of versions and nothing to undo; after a crash between any two steps the round starts again.

Does not reject paid orders, orders unknown to Redis, or orders of a sale that is closed for recovery: paid orders need
a restock by staff, the others a rebuild.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter as MetricCounter
from prometheus_client import Gauge
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain.orders import MalformedEntry, OrderEntry, OrderStatus, decode_entry
from domain.outcomes import Transition
from reservation.documents import SaleDocuments
from reservation.lane import Lanes
from reservation.reading import read_sequences
from runtime.postgres.databases import Pool
from runtime.postgres.sql import load_sql
from runtime.redis.leases import Lease
from workers.places import cover, unpack

EVERY_S = 1.0
STEADY_S = 5.0
PLACES_PER_LOOK = 50_000
NOTES_MAX = 5_000  # per shard and round
REJECTED_MAX = 200  # per sale and round, since the ledger is locked meanwhile
_LOCK_BOUNDS = ("SET LOCAL lock_timeout = '2s'", "SET LOCAL idle_in_transaction_session_timeout = '30s'")

REJECTED = MetricCounter("flashsale_orders_rejected", "Accepted orders whose units did not exist: Redis had lost data.")
REJECTED_UNITS = MetricCounter("flashsale_units_written_off", "Units of rejected orders.")
WAITING = Gauge("flashsale_orders_waiting", "Orders that have waited for a grant longer than a release takes.")
WAITING_PAID = Gauge("flashsale_paid_orders_waiting", "Paid orders among the waiting ones; they need a restock.")

_SQL = load_sql("workers.rejecter", "rejecting.sql")
log = structlog.get_logger()

Sku = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Supply:
    """The ledger's stock of one SKU and the units sold in each shard, in shard order."""

    stock: int
    sold: tuple[int, ...]

    @property
    def free(self) -> int:
        """Units that a grant could still use, now or after the sweep."""
        return self.stock - sum(self.sold)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Time at which an order was first seen waiting, and right afterwards the newest sequence of its sale's lanes."""

    at_s: float
    seqs: Mapping[int, int]


class Patience:
    """Remembers since when orders wait and since when supplies are unchanged. Pure: the caller passes the time."""

    def __init__(self, *, steady_s: float) -> None:
        """`steady_s`: time for which an order must have waited and its supply must not have changed."""
        self._steady_s = steady_s
        self._seen: dict[UUID, _Seen] = {}
        self._supplies: dict[Sku, tuple[Supply, float]] = {}

    def see_orders(
        self, orders: Mapping[UUID, OrderEntry], seqs: Mapping[UUID, Mapping[int, int]], now_s: float
    ) -> None:
        """Take the orders that wait now, and `seqs` by sale, read after them. All other orders are forgotten."""
        self._seen = {
            order_id: self._seen.get(order_id) or _Seen(now_s, seqs[order.sale_id])
            for order_id, order in orders.items()
            if order.sale_id in seqs
        }

    def places_to_know(self, now_s: float) -> dict[int, int]:
        """By lane, the sequence up to which every entry must be known before an order is rejected."""
        upto: dict[int, int] = {}
        for seen in self._seen.values():
            if now_s - seen.at_s >= self._steady_s:
                for lane, seq in seen.seqs.items():
                    upto[lane] = max(upto.get(lane, 0), seq)
        return upto

    def see_supplies(self, supplies: Mapping[Sku, Supply], now_s: float) -> None:
        """Take the supplies, now, of the SKUs that orders wait for."""
        self._supplies = {
            sku: before if (before := self._supplies.get(sku)) is not None and before[0] == supply else (supply, now_s)
            for sku, supply in supplies.items()
        }

    def in_vain(self, orders: Iterable[OrderEntry], known_lanes: frozenset[int], now_s: float) -> list[OrderEntry]:
        """Orders that wait for a unit that is gone; `known_lanes` are known up to `places_to_know`."""
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
    """The round; one process at a time runs it, although two would do no harm."""

    def __init__(self, *, redis: Redis, catalogue: Pool, shards: Sequence[Pool], steady_s: float = STEADY_S) -> None:
        """`shards` in shard order; uses the clients, does not own them."""
        self._redis = redis
        self._lanes = Lanes(redis)
        self._documents = SaleDocuments(redis)
        self._catalogue = catalogue
        self._shards = shards
        self._patience = Patience(steady_s=steady_s)

    async def round(self, lease: Lease) -> bool:
        """Look at the waiting orders and reject those that wait in vain; False: nothing to do at once."""
        reserved = await self._read_waiting()
        self._patience.see_orders(reserved, await self._lane_seqs(reserved), time.monotonic())
        if not reserved:
            return False
        # Places before supplies: otherwise a release could be stored between the two reads.
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
        """Waiting orders that are reserved at their newest noted version; sets the gauges."""
        notes = await asyncio.gather(*(self._notes(pool) for pool in self._shards))
        counts: Counter[int] = Counter()
        for _, by_status in notes:
            counts.update(by_status)
        WAITING.set(counts.total())
        WAITING_PAID.set(counts[OrderStatus.PAID])
        entries = [_decode(raw) for rows, _ in notes for (raw,) in rows]
        return {entry.order_id: entry for entry in entries if entry is not None}

    async def _notes(self, pool: Pool) -> tuple[list[Any], dict[int, int]]:
        """The reserved orders that wait in one shard, and the number of all by status."""
        wanted = {"status": int(OrderStatus.RESERVED), "limit": NOTES_MAX}
        async with pool.connection() as connection:
            [(any_waiting,)] = await (await connection.execute(_SQL["any_waiting"])).fetchall()
            if not any_waiting:
                return [], {}
            await connection.execute(_SQL["forget_stored"])
            rows = await (await connection.execute(_SQL["read_waiting"], wanted)).fetchall()
            counts: dict[int, int] = dict(await (await connection.execute(_SQL["count_waiting"])).fetchall())
        return rows, counts

    async def _lane_seqs(self, orders: Mapping[UUID, OrderEntry]) -> dict[UUID, dict[int, int]]:
        """Newest sequence of every lane of the orders' sales; sales without a document are left out."""
        sale_ids = list({order.sale_id for order in orders.values()})
        sales = [sale for sale in await self._documents.read(sale_ids) if sale is not None]
        seqs = await read_sequences(self._redis, {lane for sale in sales for lane in sale.lanes})
        return {sale.sale_id: {lane: seqs[lane] for lane in sale.lanes} for sale in sales}

    async def _known_lanes(self, places: Mapping[int, int]) -> frozenset[int]:
        """Lanes of which every place up to the one asked for is known."""
        if not places:
            return frozenset()
        watermarks = dict(await _fetch(self._catalogue, "read_watermarks", {"lanes": list(places)}))
        known = set()
        for lane, upto in places.items():
            after = min(watermarks.get(lane, 0), upto)
            if await self._is_known(lane, after=after, upto=upto):
                known.add(lane)
        return frozenset(known)

    async def _is_known(self, lane: int, *, after: int, upto: int) -> bool:
        """Whether every place in (after, upto] is known to some shard: as a set, so that no duplicate hides a gap."""
        for start in range(after, upto, PLACES_PER_LOOK):
            values = {"lane": lane, "after": start, "upto": min(start + PLACES_PER_LOOK, upto)}
            answers = await asyncio.gather(*(_fetch(pool, "read_known", values) for pool in self._shards))
            noted = [unpack(bytes(rows[0][0])) for rows in answers]
            if not cover(start, values["upto"], stored=(), noted=noted).is_complete:
                return False
        return True

    async def _supplies(self, orders: Iterable[OrderEntry]) -> dict[Sku, Supply]:
        wanted = {(order.sale_id, line.sku) for order in orders for line in order.lines}
        values = {"sale_ids": list({sale_id for sale_id, _ in wanted})}
        stock = _units_by_sku(await _fetch(self._catalogue, "read_stock", values))
        sold = [
            _units_by_sku(rows)
            for rows in await asyncio.gather(*(_fetch(pool, "read_sold", values) for pool in self._shards))
        ]
        return {sku: Supply(stock.get(sku, 0), tuple(shard.get(sku, 0) for shard in sold)) for sku in wanted}

    async def _switches(self) -> int:
        """Odd while rows of buckets may be in two shards."""
        rows = await _fetch(self._catalogue, "read_switches", {})
        return int(rows[0][0]) if rows else 0

    async def _reject(self, sale_id: UUID, orders: Sequence[OrderEntry]) -> None:
        """Decide under the ledger's lock, then change Redis; the stream brings the rejected version to the shard."""
        async with self._catalogue.connection() as connection, connection.transaction():
            for bound in _LOCK_BOUNDS:
                await connection.execute(bound)
            await connection.execute(_SQL["lock_stock"], {"sale_id": sale_id})
            # No grant and no restock from here on. One that came just before lets the orders wait for another round.
            switches = await self._switches()
            supplies = await self._supplies(orders)
            if switches % 2 or await self._switches() != switches:
                return  # orders of a bucket that moves may have been counted in two shards
            for order in orders:
                if any(supplies[sale_id, line.sku].free < line.quantity for line in order.lines):
                    await self._reject_in_redis(order)

    async def _reject_in_redis(self, order: OrderEntry) -> None:
        about = {"order_id": str(order.order_id), "sale_id": str(order.sale_id)}
        try:
            change = await self._lanes.reject(order)
        except ResponseError as error:
            log.error("order could not be rejected", error=str(error), **about)
            return
        if change.transition is Transition.DONE:
            units = sum(line.quantity for line in order.lines)
            REJECTED.inc()
            REJECTED_UNITS.inc(units)
            log.error("order rejected: its units do not exist", units=units, **about)
        elif change.transition is Transition.NOT_FOUND:
            log.error("order without units is not in Redis: rebuild the sale", **about)


def _decode(note: bytes) -> OrderEntry | None:
    """The noted order; None for damaged bytes, which must not end the rejection of all other orders."""
    try:
        return decode_entry(note)
    except MalformedEntry as error:
        log.error("note of a waiting order is malformed", error=str(error))
        return None


def _units_by_sku(rows: Iterable[tuple[UUID, str, int]]) -> dict[Sku, int]:
    return {(sale_id, sku): units for sale_id, sku, units in rows}


async def _fetch(pool: Pool, block: str, values: Mapping[str, Any]) -> list[Any]:
    async with pool.connection() as connection:
        return await (await connection.execute(_SQL[block], values)).fetchall()
