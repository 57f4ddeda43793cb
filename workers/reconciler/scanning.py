"""Reads one shard for a deep look: every order and every version, in slices, all of one snapshot.

    open     BEGIN REPEATABLE READ; quotas, contradictions, dead letters: the snapshot is of this moment
    step     one slice of `orders`, later of `order_transitions`, by key; continues where the last slice ended
    close    ROLLBACK

A slice has a bound on its rows and on its statements' time. A slice that exceeds the time is undone by its savepoint
and read again with fewer rows: the snapshot and the slices before it stay. Only a lost connection ends a scan.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.errors import QueryCanceled
from psycopg.rows import TupleRow

from domain.orders import MalformedEntry, OrderEntry, decode_entry
from workers.consuming import TRANSIENT
from workers.reconciler.reading import SQL, Away, Source
from workers.reconciler.stock import UnitsLook
from workers.shard_writer.plan import holds_units

SLICE_ROWS_MAX: Final = 20_000
SLICE_ROWS_MIN: Final = 100
SLICE_S_MAX: Final = 2  # of each statement of a slice
SLICE_TRIES_MAX: Final = 10
SNAPSHOT_IDLE_S_MAX: Final = 60  # a reconciler that stands still gives its snapshots up: they hold back vacuum
CONTRADICTIONS_MAX: Final = 100
REFUSED_MAX: Final = 10_000
_FIRST, _LAST = UUID(int=0), UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A version that a lane numbered twice, with two statuses."""

    order_id: UUID
    version: int
    stored_seq: int
    stored_status: int
    repeated_seq: int
    repeated_status: int


@dataclass(slots=True)
class ShardPart:
    """What a scan found. `sales` are those that it looked for; everything is of one moment, `at_ms` of Redis time.

    `unreadable`: lines by sale. `strays` by lane: versions without order, orders without version. `refused` by sale and
    SKU: units that dead letters add to those of stored orders; None if there are too many dead letters to read.
    `undecodable`: places, `(lane, lane_seq)`, of dead letters without a valid order; nothing tells their units.
    """

    at_ms: int
    sales: frozenset[UUID]
    units: dict[UUID, dict[str, UnitsLook]] = field(default_factory=dict)
    unreadable: dict[UUID, int] = field(default_factory=dict)
    strays: dict[int, tuple[int, int]] = field(default_factory=dict)
    contradictions: dict[UUID, list[Contradiction]] = field(default_factory=dict)
    refused: dict[UUID, dict[str, int]] | None = field(default_factory=dict)
    undecodable: list[tuple[int, int]] = field(default_factory=list)
    slices: int = 0


class ShardScan:
    """One scan of one shard. Every method raises Away when the shard does not answer; then only `close` is left."""

    def __init__(self, source: Source, sale_ids: Collection[UUID], *, at_ms: int) -> None:
        """`at_ms`: Redis time before the snapshot."""
        self._source = source
        self._sale_ids = list(sale_ids)
        self._stack = AsyncExitStack()
        self._connection: AsyncConnection[TupleRow] | None = None
        self._after = _FIRST
        self._in_orders = True
        self._rows_max = SLICE_ROWS_MAX
        self.cut_slices = 0
        self.part = ShardPart(at_ms, frozenset(sale_ids))

    async def open(self) -> None:
        """Take the snapshot and read the small tables."""
        await self._source.ask(self._open())

    async def step(self) -> bool:
        """Read the next slice; whether more are left."""
        for _ in range(SLICE_TRIES_MAX):
            try:
                more = await self._source.ask(self._slice())
            except Away as away:
                if not isinstance(away.__cause__, QueryCanceled):
                    raise
                self._source.begin_look()
                self.cut_slices += 1
                self._rows_max = max(SLICE_ROWS_MIN, self._rows_max // 2)
                continue
            self._rows_max = min(SLICE_ROWS_MAX, self._rows_max * 2)
            return more
        raise Away(self._source.part, f"a slice of {self._rows_max} rows takes longer than {SLICE_S_MAX} s")

    async def close(self) -> None:
        """Give the snapshot up."""
        with suppress(*TRANSIENT):
            await self._stack.aclose()

    async def _open(self) -> None:
        connection = await self._stack.enter_async_context(self._source.pool.connection())
        await self._stack.enter_async_context(connection.transaction(force_rollback=True))
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await connection.execute(f"SET LOCAL statement_timeout = '{SLICE_S_MAX}s'")
        await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{SNAPSHOT_IDLE_S_MAX}s'")
        self._connection = connection
        for sale_id, sku, granted, seq, sold in await self._rows("read_quotas"):
            self.part.units.setdefault(sale_id, {})[sku] = UnitsLook(0, granted, seq, sold)
        for sale_id, *found in await self._rows("read_contradictions", rows_max=CONTRADICTIONS_MAX):
            self.part.contradictions.setdefault(sale_id, []).append(Contradiction(*found))
        refused = await self._rows("read_refused", rows_max=REFUSED_MAX + 1)
        self.part.refused = _refused_units(refused) if len(refused) <= REFUSED_MAX else None
        self.part.undecodable = [(lane, seq) for lane, seq in await self._rows("read_unreadable", rows_max=REFUSED_MAX)]

    async def _slice(self) -> bool:
        assert self._connection is not None, "open comes first"
        async with self._connection.transaction():  # a savepoint
            block = "end_of_orders" if self._in_orders else "end_of_transitions"
            end = await self._rows(block, after=self._after, rows_max=self._rows_max)
            upto: UUID = end[0][0] if end else _LAST
            bounds = {"after": self._after, "upto": upto}
            if self._in_orders:
                units = await self._rows("read_units", **bounds)
                strays = await self._rows("count_stray_orders", **bounds)
            else:
                units = []
                strays = await self._rows("count_stray_transitions", **bounds)
        # Counted only now: a slice that was cut leaves nothing behind.
        self._count(units, strays)
        self.part.slices += 1
        self._after = upto
        if not end:
            if not self._in_orders:
                return False
            self._in_orders, self._after = False, _FIRST
        return True

    def _count(self, units: list[TupleRow], strays: list[TupleRow]) -> None:
        for sale_id, sku, held, unreadable in units:
            if unreadable:
                self.part.unreadable[sale_id] = self.part.unreadable.get(sale_id, 0) + unreadable
            skus = self.part.units.setdefault(sale_id, {})
            before = skus.get(sku, UnitsLook(0, 0, 0, 0))
            skus[sku] = UnitsLook(before.held + held, before.granted, before.seq, before.sold)
        for lane, count in strays:
            versions, orders = self.part.strays.get(lane, (0, 0))
            found = (versions, orders + count) if self._in_orders else (versions + count, orders)
            self.part.strays[lane] = found

    async def _rows(self, block: str, **values: Any) -> list[TupleRow]:
        assert self._connection is not None, "open comes first"
        cursor = await self._connection.execute(SQL[block], {"sale_ids": self._sale_ids, **values})
        return await cursor.fetchall()


def _refused_units(rows: list[TupleRow]) -> dict[UUID, dict[str, int]]:
    """Units that the newest dead-lettered version of each order adds to its stored version, by sale and SKU.

    Redis has executed the dead-lettered version, the shard has not: exactly these units differ.
    """
    newest: dict[UUID, tuple[OrderEntry, bool]] = {}
    for packed, stored_version, is_held in rows:
        try:
            entry = decode_entry(bytes(packed))
        except MalformedEntry:
            continue  # it was valid when it was noted, so the row is damaged: the comparison shows its units
        known = newest.get(entry.order_id)
        if entry.version > (stored_version or 0) and (known is None or known[0].version < entry.version):
            newest[entry.order_id] = entry, is_held
    refused: dict[UUID, dict[str, int]] = {}
    for entry, is_held in newest.values():
        sign = int(holds_units(entry)) - int(is_held)
        units = refused.setdefault(entry.sale_id, {})
        for line in entry.lines if sign else ():
            units[line.sku] = units.get(line.sku, 0) + sign * line.quantity
    return refused
