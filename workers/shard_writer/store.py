"""One transaction of a shard: orders, their transitions, the guard and the outbox, in three round trips for thousands.

Does not read queues and does not retry: transient faults are raised as psycopg raises them, and only orders whose data
the database refuses are answered as poison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from domain import ids
from domain.events import order_event
from domain.messages import SequencedEntry
from domain.orders import OrderEntry, OrderStatus
from domain.topology import DESTINATION_ORDER_EVENTS, outbox_partition
from runtime.postgres.sql import load_sql
from workers.shard_writer import columns
from workers.shard_writer.faults import is_poison, reason_of
from workers.shard_writer.grants import Grant, Grants
from workers.shard_writer.plan import (
    Change,
    Incoming,
    Plan,
    Quota,
    SkuKey,
    Stored,
    Version,
    apply_changes,
    holds_units,
    make_plan,
    needs,
    sku_keys,
)

_SQL = load_sql("workers.shard_writer", "orders.sql")
# Bounds of the transaction: a lock held longer than this is a fault, and so is a client that stopped talking.
_BOUNDS = (
    "SET LOCAL lock_timeout = '5s'",
    "SET LOCAL statement_timeout = '30s'",
    "SET LOCAL idle_in_transaction_session_timeout = '30s'",
)


@dataclass(slots=True)
class StoreResult:
    """What became of a batch. `final` are orders of the batch that are stored in a final state."""

    stored_count: int = 0
    repeated_count: int = 0
    event_count: int = 0
    waiting: list[Incoming] = field(default_factory=list)
    poison: list[tuple[Incoming, str]] = field(default_factory=list)
    final: list[UUID] = field(default_factory=list)
    given_up: dict[SkuKey, Grant] = field(default_factory=dict)


class _Refused(Exception):
    """The database refuses the data of at least one order of a batch; `reason` is in its words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShardStore:
    """Writes batches into one shard. Several stores may write to the same shard at once."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], grants: Grants) -> None:
        """`pool` is the shard's, `grants` are the same shard's."""
        self._pool = pool
        self._grants = grants

    async def store(self, orders: Sequence[Incoming]) -> StoreResult:
        """Store a batch: whatever can be stored is committed when this returns.

        Raises psycopg errors for transient faults; nothing was written then, or the commit's outcome is unknown.
        Repeating a batch is harmless either way.
        """
        async with self._pool.connection() as connection:
            columns.teach(connection)
            try:
                return await self._store(connection, orders, bisect=False)
            except _Refused:
                pass
            # Rare: some order is refused. Savepoints cost a round trip each, so only now.
            return await self._store(connection, orders, bisect=True)

    async def note_dead_lettered(self, entries: Sequence[SequencedEntry], reason: str) -> None:
        """Note entries that are in the dead letters now, so that the reconciler counts them as accounted for.

        A malformed message may name a place beyond what the columns hold. No lane comes to such a number, so nobody will
        ever look for it: the dead letter alone tells of it.
        """
        entries = [e for e in entries if e.lane <= columns.SMALLINT_MAX and e.lane_seq <= columns.BIGINT_MAX]
        if not entries:
            return
        async with self._pool.connection() as connection:
            columns.teach(connection)
            await connection.execute(
                _SQL["note_dead_lettered"],
                {
                    "lane": columns.smallints([entry.lane for entry in entries]),
                    "lane_seq": columns.bigints([entry.lane_seq for entry in entries]),
                    "reason": reason,
                },
            )

    async def note_waiting(self, orders: Sequence[Incoming]) -> None:
        """Note orders that have waited long for a grant: the rejecter finds out whether they wait in vain."""
        versions = sorted(
            (version for order in orders for version in order.versions), key=lambda version: version.source.lane_seq
        )
        async with self._pool.connection() as connection:
            columns.teach(connection)
            await connection.execute(
                _SQL["note_waiting"],
                {
                    "lane": columns.smallints([version.source.lane for version in versions]),
                    "lane_seq": columns.bigints([version.source.lane_seq for version in versions]),
                    "order_id": columns.uuids([version.entry.order_id for version in versions]),
                    "version": columns.integers([version.entry.version for version in versions]),
                    "entry": columns.byteas([version.source.entry for version in versions]),
                },
            )

    async def note_fence(self, sale_id: UUID, fence: UUID) -> None:
        """Acknowledge a fence message: what was in the queue before it is in hand, stored, or waits for a retry."""
        async with self._pool.connection() as connection:
            await connection.execute(_SQL["note_fence"], {"sale_id": sale_id, "fence": fence})

    async def _store(
        self, connection: AsyncConnection[TupleRow], orders: Sequence[Incoming], *, bisect: bool
    ) -> StoreResult:
        result = StoreResult()
        changed: set[SkuKey] = set()
        async with connection.transaction():
            quotas, stored, epochs = await _lock_and_read(connection, orders)
            if epochs:
                orders = await _past_the_gate(connection, orders, stored, epochs)
            await self._adopt(connection, needs(orders, stored, quotas), quotas)
            if bisect:
                await _store_by_halves(connection, orders, stored, quotas, result, changed)
            else:
                plan = make_plan(orders, stored, quotas)
                await _write(connection, plan, result)
                _account(plan, quotas, changed)
        # A grant that was not used up, for poison or by a release, is the sweep's to give up.
        result.given_up = {key: Grant(quotas[key].granted, quotas[key].seq) for key in changed}
        _count_final(orders, stored, result)
        return result

    async def _adopt(
        self, connection: AsyncConnection[TupleRow], wanted: dict[SkuKey, int], quotas: dict[SkuKey, Quota]
    ) -> None:
        """Raise grants in the catalogue, then take them over in the orders' own transaction."""
        if not wanted:
            return
        # The catalogue never waits for a shard, so holding the shard's locks here cannot deadlock.
        grants = await self._grants.raise_to(wanted)
        keys = [key for key in grants if grants[key].seq > quotas[key].seq]
        if keys:
            await connection.execute(
                _SQL["adopt_grants"],
                _sku_columns(keys)
                | {
                    "totals": columns.integers([grants[key].total for key in keys]),
                    "seqs": columns.bigints([grants[key].seq for key in keys]),
                },
            )
        for key in keys:
            quotas[key].granted, quotas[key].seq = grants[key].total, grants[key].seq


def _sku_columns(keys: Sequence[SkuKey]) -> dict[str, columns.Column]:
    return {
        "sale_ids": columns.uuids([UUID(int=sale_id) for sale_id, _ in keys]),
        "skus": columns.texts([sku for _, sku in keys]),
    }


async def _lock_and_read(
    connection: AsyncConnection[TupleRow], orders: Sequence[Incoming]
) -> tuple[dict[SkuKey, Quota], dict[int, Stored], dict[int, int]]:
    keys = sku_keys(orders)
    skus = _sku_columns(keys)
    sales = columns.uuids([UUID(int=sale_id) for sale_id in {sale_id for sale_id, _ in keys}])
    async with connection.pipeline():  # network op: one round trip
        for bound in _BOUNDS:
            await connection.execute(bound)
        await connection.execute(_SQL["make_quotas"], skus)
        locked = await connection.execute(_SQL["lock_quotas"], skus)
        found = await connection.execute(
            _SQL["read_stored"], {"ids": columns.uuids([order.order_id for order in orders])}
        )
        gates = await connection.execute(_SQL["read_epochs"], {"sale_ids": sales})
    quotas = {
        (sale_id.int, sku): Quota(granted, seq, sold) for sale_id, sku, granted, seq, sold in await locked.fetchall()
    }
    stored = {
        order_id.int: Stored(version, charged, frozenset(versions or ()))
        for order_id, version, charged, versions in await found.fetchall()
    }
    return quotas, stored, {sale_id.int: epoch for sale_id, epoch in await gates.fetchall()}


async def _past_the_gate(
    connection: AsyncConnection[TupleRow],
    orders: Sequence[Incoming],
    stored: dict[int, Stored],
    epochs: dict[int, int],
) -> list[Incoming]:
    """The orders, those as rejected that a rebuild of their sale did not count: they came too late to hold a unit.

    Dead letters were counted, so one that somebody replays may still be charged.
    """
    late = [
        order
        for order in orders
        if order.newest.epoch < epochs.get(order.newest.sale_id.int, 0)
        and order.order_id.int not in stored
        and holds_units(order.newest)
    ]
    if not late:
        return list(orders)
    sources = [version.source for order in late for version in order.versions]
    cursor = await connection.execute(
        _SQL["read_dead_lettered"],
        {
            "lane": columns.smallints([source.lane for source in sources]),
            "lane_seq": columns.bigints([source.lane_seq for source in sources]),
        },
    )
    counted = set(await cursor.fetchall())
    refused = {
        order.order_id.int
        for order in late
        if not any((version.source.lane, version.source.lane_seq) in counted for version in order.versions)
    }
    return [_rejected(order) if order.order_id.int in refused else order for order in orders]


def _rejected(order: Incoming) -> Incoming:
    versions = [replace(v, entry=replace(v.entry, status=OrderStatus.REJECTED)) for v in order.versions]
    return Incoming(order.order_id, replace(order.newest, status=OrderStatus.REJECTED), versions)


async def _store_by_halves(
    connection: AsyncConnection[TupleRow],
    orders: Sequence[Incoming],
    stored: dict[int, Stored],
    quotas: dict[SkuKey, Quota],
    result: StoreResult,
    changed: set[SkuKey],
) -> None:
    """Bisect: halves that the database takes are written, single orders that it refuses are poison."""
    plan = make_plan(orders, stored, quotas)
    part = StoreResult()
    try:
        async with connection.transaction():  # a savepoint
            await _write(connection, plan, part)
    except _Refused as refusal:
        if len(orders) == 1:
            result.poison.append((orders[0], refusal.reason))
            return
        middle = len(orders) // 2
        await _store_by_halves(connection, orders[:middle], stored, quotas, result, changed)
        await _store_by_halves(connection, orders[middle:], stored, quotas, result, changed)
        return
    _account(plan, quotas, changed)
    result.stored_count += part.stored_count
    result.event_count += part.event_count
    result.waiting += part.waiting


async def _write(connection: AsyncConnection[TupleRow], plan: Plan, result: StoreResult) -> None:
    """Send every statement of a plan in one round trip; _Refused when the database refuses some order's data."""
    changes = {key: change for key, change in plan.changes.items() if change.sold or change.give_back}
    try:
        async with connection.pipeline():  # network op
            if changes:
                await connection.execute(_SQL["change_quotas"], _change_columns(changes))
            if plan.rows:
                await connection.execute(_SQL["store_orders"], _order_columns(plan.rows))
            if plan.transitions:
                await connection.execute(_SQL["store_transitions"], _transition_columns(plan.transitions))
                await connection.execute(_SQL["store_outbox"], _outbox_columns(plan.transitions))
    except psycopg.Error as error:
        if is_poison(error):
            raise _Refused(reason_of(error)) from error
        raise
    result.stored_count += len(plan.rows)
    result.event_count += len(plan.transitions)
    result.waiting += plan.waiting


def _account(plan: Plan, quotas: dict[SkuKey, Quota], changed: set[SkuKey]) -> None:
    apply_changes(quotas, plan.changes)
    changed.update(key for key, change in plan.changes.items() if change.give_back)


def _count_final(orders: Sequence[Incoming], stored: dict[int, Stored], result: StoreResult) -> None:
    """Final states that are stored by now, also those that a redelivery repeats: their Redis value gets its TTL."""
    left_out = {order.order_id.int for order in (*result.waiting, *(order for order, _ in result.poison))}
    for order in orders:
        if order.order_id.int in left_out:
            continue
        before = stored.get(order.order_id.int)
        if before is not None and before.version >= order.newest.version:
            result.repeated_count += 1
        if order.newest.status.is_final:
            result.final.append(order.order_id)


def _change_columns(changes: dict[SkuKey, Change]) -> dict[str, columns.Column]:
    return _sku_columns(list(changes)) | {
        "sold": columns.integers([change.sold for change in changes.values()]),
        "give_back": columns.integers([change.give_back for change in changes.values()]),
    }


def _order_columns(rows: Sequence[OrderEntry]) -> dict[str, columns.Column]:
    return {
        "id": columns.uuids([row.order_id for row in rows]),
        "user_id": columns.uuids([row.user_id for row in rows]),
        "sale_id": columns.uuids([row.sale_id for row in rows]),
        "bucket": columns.smallints([ids.bucket_of(row.order_id) for row in rows]),
        "idempotency_key": columns.texts([row.idempotency_key for row in rows]),
        "status": columns.smallints([row.status for row in rows]),
        "version": columns.integers([row.version for row in rows]),
        "epoch": columns.bigints([row.epoch for row in rows]),
        "currency": columns.texts([row.currency for row in rows]),
        "total_minor": columns.bigints([row.total_minor for row in rows]),
        "lines": columns.jsonbs([_lines_json(row) for row in rows]),
        "reserved_at": columns.timestamps([row.reserved_at_ms for row in rows]),
        "expires_at": columns.timestamps([row.expires_at_ms for row in rows]),
        "changed_at": columns.timestamps([row.changed_at_ms for row in rows]),
        "lane": columns.smallints([ids.lane_of(row.order_id) for row in rows]),
        "charged": columns.booleans([holds_units(row) for row in rows]),
    }


def _lines_json(row: OrderEntry) -> bytes:
    return orjson.dumps(
        [{"sku": line.sku, "quantity": line.quantity, "unit_price_minor": line.unit_price_minor} for line in row.lines]
    )


def _transition_columns(transitions: Sequence[Version]) -> dict[str, columns.Column]:
    return {
        "order_id": columns.uuids([version.entry.order_id for version in transitions]),
        "version": columns.integers([version.entry.version for version in transitions]),
        "status": columns.smallints([version.entry.status for version in transitions]),
        "at": columns.timestamps([version.entry.changed_at_ms for version in transitions]),
        "lane": columns.smallints([version.source.lane for version in transitions]),
        "lane_seq": columns.bigints([version.source.lane_seq for version in transitions]),
    }


def _outbox_columns(transitions: Sequence[Version]) -> dict[str, columns.Column | str]:
    """One row per partition, its events in the order of the batch."""
    partitions: dict[int, list[dict[str, Any]]] = {}
    for version in transitions:
        event = order_event(version.entry)
        partitions.setdefault(outbox_partition(event["key"]), []).append(event)
    return {
        "destination": DESTINATION_ORDER_EVENTS,
        "partition": columns.smallints(list(partitions)),
        "events": columns.jsonbs([orjson.dumps(events) for events in partitions.values()]),
    }
