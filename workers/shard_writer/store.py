"""Executes the effects of a batch in one transaction of a shard: in three round trips for thousands of orders.

Decides nothing: `workers.shard_writer.plan` yields the effects, each method here executes one of them. Does not read
queues and does not retry: transient faults are raised as psycopg raises them, and only orders whose data the database
refuses are answered as poison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from domain import ids
from domain.events import order_event
from domain.messages import SequencedEntry
from domain.orders import OrderEntry
from domain.topology import DESTINATION_ORDER_EVENTS, outbox_partition
from runtime.postgres import columns
from runtime.postgres.sql import load_sql
from workers.consuming import REFUSED, reason_of
from workers.shard_writer.grants import Grants
from workers.shard_writer.plan import (
    AdoptGrants,
    Change,
    Effect,
    Effects,
    Incoming,
    Plan,
    Quota,
    RaiseGrants,
    ReadDeadLettered,
    ReadShard,
    ShardState,
    SkuKey,
    Stored,
    StoreResult,
    Version,
    Write,
    holds_units,
    storing,
)

Connection = AsyncConnection[TupleRow]

_SQL = load_sql("workers.shard_writer", "orders.sql")
# Bounds of the transaction: a lock held longer than this is a fault, and so is a client that stopped talking. They are
# below the client's own bound of a call (`runtime.postgres.connection`), which is for a server that is silent.
_BOUNDS = (
    "SET LOCAL lock_timeout = '5s'",
    "SET LOCAL statement_timeout = '10s'",
    "SET LOCAL idle_in_transaction_session_timeout = '30s'",
)


class _Refused(Exception):
    """The database refuses the data of at least one order of a plan; `reason` is its message."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ShardStore:
    """Writes batches into one shard. Several stores may write to the same shard at once."""

    def __init__(self, pool: AsyncConnectionPool[Connection], grants: Grants) -> None:
        """`pool` is the shard's, `grants` are the same shard's."""
        self._pool = pool
        self._grants = grants

    async def store(self, orders: Sequence[Incoming]) -> StoreResult:
        """Store a batch: every order that can be stored is committed when this returns.

        Raises psycopg errors for transient faults; nothing was written then, or the commit's outcome is unknown.
        Repeating a batch is harmless either way.
        """
        async with self._pool.connection() as connection:
            try:
                return await self._execute(connection, storing(orders, bisect=False))
            except _Refused:
                pass
            # Rare: the database refuses an order. Savepoints cost a round trip each, so only now.
            return await self._execute(connection, storing(orders, bisect=True))

    async def note_dead_lettered(self, versions: Sequence[Version], reason: str, *, letter: bytes) -> None:
        """Note valid entries that the database refuses and that become this dead letter (its identity).

        The reconciler counts their places as accounted for and compares the sale without these entries.
        """
        async with self._pool.connection() as connection:
            await connection.execute(
                _SQL["note_dead_lettered"],
                {
                    "lane": columns.smallints([version.source.lane for version in versions]),
                    "lane_seq": columns.bigints([version.source.lane_seq for version in versions]),
                    "order_id": columns.uuids([version.entry.order_id for version in versions]),
                    "sale_id": columns.uuids([version.entry.sale_id for version in versions]),
                    "entry": columns.byteas([version.source.entry for version in versions]),
                    "reason": reason,
                    "identity": letter,
                },
            )

    async def note_undecodable(self, entries: Sequence[SequencedEntry], reason: str, *, letter: bytes) -> None:
        """Note the places of entries that are no valid orders of this shard and become this dead letter.

        Their places may be wrong, so they raise no floor. A malformed message may name a place beyond the range of the
        columns. No lane reaches such a number, so the reconciler never looks for it: the dead letter is its only trace.
        """
        entries = [e for e in entries if e.lane <= columns.SMALLINT_MAX and e.lane_seq <= columns.BIGINT_MAX]
        if not entries:
            return
        async with self._pool.connection() as connection:
            await connection.execute(
                _SQL["note_undecodable"],
                {
                    "lane": columns.smallints([entry.lane for entry in entries]),
                    "lane_seq": columns.bigints([entry.lane_seq for entry in entries]),
                    "reason": reason,
                    "identity": letter,
                },
            )

    async def note_waiting(self, orders: Sequence[Incoming]) -> None:
        """Note orders that have waited long for a grant: the rejecter finds out whether they wait in vain.

        Those of closed buckets are left out: a note that stays behind would never be taken back.
        """
        async with self._pool.connection() as connection:
            buckets = {"buckets": _buckets([order.order_id for order in orders])}
            entered = await connection.execute(_SQL["enter_buckets"], buckets)
            closed = {bucket for bucket, _, _ in await entered.fetchall()}
            versions = sorted(
                (v for order in orders if ids.bucket_of(order.order_id) not in closed for v in order.versions),
                key=lambda version: version.source.lane_seq,
            )
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
        """Note a fence message: the messages before it in the queue are in hand, stored, or wait for a retry."""
        async with self._pool.connection() as connection:
            await connection.execute(_SQL["note_fence"], {"sale_id": sale_id, "fence": fence})

    async def _execute(self, connection: Connection, effects: Effects) -> StoreResult:
        """Execute effects one after the other, each with the answer to the one before it, in one transaction."""
        answer: object = None
        async with connection.transaction():
            while True:
                try:
                    effect = effects.send(answer)
                except StopIteration as end:
                    result: StoreResult = end.value
                    return result
                answer = await self._run(connection, effect)

    async def _run(self, connection: Connection, effect: Effect) -> object:
        match effect:
            case ReadShard():
                return await _read_shard(connection, effect)
            case ReadDeadLettered():
                return await _read_dead_lettered(connection, effect)
            case RaiseGrants():
                # The catalogue never waits for a shard, so holding the shard's locks here cannot deadlock.
                return await self._grants.raise_to(effect.totals)
            case AdoptGrants():
                await _adopt_grants(connection, effect)
                return None
            case Write():
                return await _write(connection, effect)


def _sku_columns(keys: Sequence[SkuKey]) -> dict[str, columns.Column]:
    return {
        "sale_ids": columns.uuids([UUID(int=sale_id) for sale_id, _ in keys]),
        "skus": columns.texts([sku for _, sku in keys]),
    }


async def _read_shard(connection: Connection, effect: ReadShard) -> ShardState:
    skus = _sku_columns(effect.skus)
    sales = columns.uuids([UUID(int=sale_id) for sale_id in {sale_id for sale_id, _ in effect.skus}])
    async with connection.pipeline():  # network op: one round trip
        for bound in _BOUNDS:
            await connection.execute(bound)
        entered = await connection.execute(_SQL["enter_buckets"], {"buckets": _buckets(effect.orders)})
        await connection.execute(_SQL["make_quotas"], skus)
        locked = await connection.execute(_SQL["lock_quotas"], skus)
        found = await connection.execute(_SQL["read_stored"], {"ids": columns.uuids(effect.orders)})
        gates = await connection.execute(_SQL["read_epochs"], {"sale_ids": sales})
    quotas = {
        (sale_id.int, sku): Quota(granted, seq, sold) for sale_id, sku, granted, seq, sold in await locked.fetchall()
    }
    stored = {
        order_id.int: Stored(version, charged, frozenset(versions or ()))
        for order_id, version, charged, versions in await found.fetchall()
    }
    closed = {bucket: shard if state == "elsewhere" else None for bucket, state, shard in await entered.fetchall()}
    return ShardState(quotas, stored, {sale_id.int: epoch for sale_id, epoch in await gates.fetchall()}, closed)


def _buckets(order_ids: Sequence[UUID]) -> columns.Column:
    return columns.smallints(sorted({ids.bucket_of(order_id) for order_id in order_ids}))


async def _read_dead_lettered(connection: Connection, effect: ReadDeadLettered) -> set[tuple[int, int]]:
    places = {
        "lane": columns.smallints([lane for lane, _ in effect.places]),
        "lane_seq": columns.bigints([lane_seq for _, lane_seq in effect.places]),
    }
    cursor = await connection.execute(_SQL["read_dead_lettered"], places)
    return {(lane, lane_seq) for lane, lane_seq in await cursor.fetchall()}


async def _adopt_grants(connection: Connection, effect: AdoptGrants) -> None:
    grants = effect.grants
    values = _sku_columns(list(grants)) | {
        "totals": columns.integers([grant.total for grant in grants.values()]),
        "seqs": columns.bigints([grant.seq for grant in grants.values()]),
    }
    await connection.execute(_SQL["adopt_grants"], values)


async def _write(connection: Connection, effect: Write) -> str | None:
    """None, or the reason of a refusal that a savepoint undid; without a savepoint a refusal raises _Refused."""
    if not effect.savepoint:
        await _write_plan(connection, effect.plan)
        return None
    try:
        async with connection.transaction():  # a savepoint
            await _write_plan(connection, effect.plan)
    except _Refused as refusal:
        return refusal.reason
    return None


async def _write_plan(connection: Connection, plan: Plan) -> None:
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
            if plan.repeats:
                await connection.execute(_SQL["store_repeated"], _repeat_columns(plan.repeats))
    except REFUSED as error:
        raise _Refused(reason_of(error)) from error


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


def _repeat_columns(repeats: Sequence[Version]) -> dict[str, columns.Column]:
    return {
        "lane": columns.smallints([version.source.lane for version in repeats]),
        "lane_seq": columns.bigints([version.source.lane_seq for version in repeats]),
        "order_id": columns.uuids([version.entry.order_id for version in repeats]),
        "version": columns.integers([version.entry.version for version in repeats]),
        "sale_id": columns.uuids([version.entry.sale_id for version in repeats]),
        "epoch": columns.bigints([version.entry.epoch for version in repeats]),
        "status": columns.smallints([version.entry.status for version in repeats]),
    }


def _outbox_columns(transitions: Sequence[Version]) -> dict[str, columns.Column | str]:
    """One row per partition, its events in the order of the batch."""
    partitions: dict[int, list[dict[str, Any]]] = {}
    for version in transitions:
        event = order_event(version.entry, version.headers)
        partitions.setdefault(outbox_partition(event["key"]), []).append(event)
    return {
        "destination": DESTINATION_ORDER_EVENTS,
        "partition": columns.smallints(list(partitions)),
        "events": columns.jsonbs([orjson.dumps(events) for events in partitions.values()]),
    }
