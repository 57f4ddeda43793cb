"""The analytics database: figures and positions in one transaction, the partitions of days, refusals.

Every method is one transaction. Raises psycopg's errors; the caller repeats.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from psycopg import AsyncConnection, errors, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from domain.figures import COUNTS, SWITCH_LOCK
from runtime.postgres import columns
from runtime.postgres.sql import load_sql
from workers.analytics.changes import Counted
from workers.analytics.tally import Point, Tally

SQL = load_sql(__package__, "figures.sql")
SPACE: Final = "figures"  # the generation that is served
REFUSED_SPACE: Final = "refused"
DAY_MS: Final = 86_400_000
# Tables that keep minutes; the others keep seconds, and the changes that are counted.
MINUTE_TABLES: Final = frozenset({"minutes", "pay_times", "refusals"})
LOCK_MS_MAX: Final = 2_000  # for the partitions of a day: queries of the table wait behind it

Connection = AsyncConnection[TupleRow]
AnalyticsPool = AsyncConnectionPool[Connection]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class PositionsMoved(Exception):
    """The positions are not where this process believes them to be. It loads them and reads on from there."""


@dataclass(frozen=True, slots=True)
class Progress:
    """All events of a topic until `as_of_ms` are counted; `lag_records` are not yet."""

    as_of_ms: int
    lag_records: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one topic that are read: the changes, and the positions before and after them by partition."""

    changes: Sequence[Counted]
    known: Mapping[int, int]
    read: Mapping[int, int]


class Figures:
    """One generation of figures."""

    def __init__(self, pool: AnalyticsPool, *, carrier: str, space: str = SPACE) -> None:
        """`carrier` is the event log's URL scheme: positions of another carrier mean other records."""
        self._pool = pool
        self._carrier = carrier
        self.space = space
        self._days: set[int] = set()

    async def positions(self, topic: str, partitions: int) -> dict[int, int]:
        """The last offset that is counted, by partition; -1 for none."""
        async with self._entered() as connection:
            where = {"carrier": self._carrier, "topic": topic}
            await connection.execute(SQL["make_positions"], {**where, "partitions": partitions})
            rows = await (await connection.execute(SQL["read_positions"], where)).fetchall()
        return dict.fromkeys(range(partitions), -1) | dict(rows)

    async def apply(self, topic: str, batch: Batch, progress: Progress | None) -> int:
        """Count a batch; the number of changes that were not counted before. Raises PositionsMoved."""
        try:
            return await self._apply(topic, batch, progress)
        except errors.CheckViolation:  # a clock that stepped: partitions were dropped after this process made them
            self._days.clear()
            await self.make_days({counted.at_ms // DAY_MS for counted in batch.changes})
            return await self._apply(topic, batch, progress)

    async def _apply(self, topic: str, batch: Batch, progress: Progress | None) -> int:
        async with self._entered() as connection:
            moved = await connection.execute(
                SQL["move_positions"],
                {
                    "carrier": self._carrier,
                    "topic": topic,
                    "partition": columns.smallints(list(batch.read)),
                    "known": columns.bigints([batch.known[partition] for partition in batch.read]),
                    "last_offset": columns.bigints(list(batch.read.values())),
                },
            )
            if moved.rowcount != len(batch.read):
                raise PositionsMoved
            new = await _uncounted(connection, batch.changes) if batch.changes else []
            if new:
                await _add(connection, new)
            if progress is not None:
                await connection.execute(SQL["show_progress"], _progress_row(topic, progress))
        return len(new)

    async def show(self, topic: str, progress: Progress) -> None:
        """Note how far the figures are, without a change of theirs."""
        async with self._entered() as connection:
            await connection.execute(SQL["show_progress"], _progress_row(topic, progress))

    async def make_days(self, days: set[int]) -> None:
        """Make the partitions of days (numbers since 1970) that this process has not made or seen yet."""
        for day in sorted(days - self._days):
            await make_day(self._pool, self.space, day)
            self._days.add(day)

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection:
            await connection.execute(SQL["enter"], {"space": self.space, "lock": SWITCH_LOCK})
            yield connection


async def _uncounted(connection: Connection, changes: Sequence[Counted]) -> list[Counted]:
    rows = await (
        await connection.execute(
            SQL["count_changes"],
            {
                "id": columns.uuids([counted.key for counted in changes]),
                "change": columns.smallints([counted.change for counted in changes]),
                "day": columns.timestamps([counted.at_ms for counted in changes]),
            },
        )
    ).fetchall()
    return [changes[place - 1] for (place,) in rows]


async def _add(connection: Connection, changes: Sequence[Counted]) -> None:
    tally = Tally()
    tally.add(changes)
    tally.close()
    async with connection.pipeline():
        await connection.execute(SQL["add_seconds"], _rows(tally.seconds))
        await connection.execute(SQL["add_minutes"], _rows(tally.minutes))
        if tally.skus:
            points = sorted(tally.skus)
            await connection.execute(
                SQL["add_skus"],
                {
                    "sale_id": columns.uuids([sale for sale, _, _ in points]),
                    "sku": columns.texts([sku for _, sku, _ in points]),
                    "at": columns.timestamps([at for _, _, at in points]),
                    "reserved": columns.bigints([tally.skus[point][0] for point in points]),
                    "returned": columns.bigints([tally.skus[point][1] for point in points]),
                    "first_reserved_at": columns.timestamps([tally.skus[point][2] for point in points]),
                    "last_reserved_at": columns.timestamps([tally.skus[point][3] for point in points]),
                },
            )
        if tally.pay_times:
            steps = sorted(tally.pay_times)
            await connection.execute(
                SQL["add_pay_times"],
                {
                    "sale_id": columns.uuids([sale for sale, _, _ in steps]),
                    "at": columns.timestamps([at for _, at, _ in steps]),
                    "step": columns.smallints([step for _, _, step in steps]),
                    "orders": columns.bigints([tally.pay_times[step] for step in steps]),
                },
            )


def _rows(points: Mapping[Point, Sequence[int]]) -> dict[str, columns.Column]:
    # In one order for all writers, so that two never wait for each other's rows.
    listed = sorted(points)
    counts = zip(*(points[point] for point in listed), strict=True)
    return {
        "sale_id": columns.uuids([sale for sale, _, _ in listed]),
        "at": columns.timestamps([at for _, at, _ in listed]),
        "currency": columns.texts([currency for _, _, currency in listed]),
        **{name: columns.bigints(values) for name, values in zip(COUNTS, counts, strict=True)},
    }


def _progress_row(topic: str, progress: Progress) -> dict[str, Any]:
    return {"topic": topic, "as_of": _time(progress.as_of_ms), "lag_records": progress.lag_records}


def _time(unix_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=unix_ms)


def date_of(day: int) -> date:
    """The date of a number of days since 1970."""
    return _EPOCH.date() + timedelta(days=day)


async def make_day(pool: AnalyticsPool, space: str, day: int) -> None:
    """Make the partitions of a day in a schema, in a transaction of its own: it locks the tables for a moment."""
    async with pool.connection() as connection:
        await _limit_locks(connection)
        await connection.execute(SQL["make_day"], {"space": space, "day": date_of(day)})


async def drop_days(pool: AnalyticsPool, space: str, *, before: int, minutes_before: int) -> list[str]:
    """Drop partitions of days before a day, which is another one for minutes; their names. A transaction each."""
    async with pool.connection() as connection:
        rows = await (await connection.execute(SQL["read_days"], {"space": space})).fetchall()
    old = [name for parent, name, day in rows if day < date_of(minutes_before if parent in MINUTE_TABLES else before)]
    for name in old:
        async with pool.connection() as connection:
            await _limit_locks(connection)
            await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(space, name)))
    return old


async def _limit_locks(connection: Connection) -> None:
    await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS_MAX}")


class RefusalCounts:
    """Refused orders by second, from counts that only grow."""

    def __init__(self, pool: AnalyticsPool) -> None:
        """Uses the pool, does not own it."""
        self._pool = pool
        self._days: set[int] = set()

    async def add(self, counts: Mapping[tuple[UUID, str], int], at_ms: int) -> int:
        """Add the growth since the last sample to the second of `at_ms`; the number of refused orders.

        A count below that of the last sample began again at 0: Redis lost it. Sales without counts are forgotten.
        """
        await self._make_day(at_ms // DAY_MS)
        try:
            return await self._add(counts, at_ms)
        except errors.CheckViolation:  # as in Figures.apply
            self._days.clear()
            await self._make_day(at_ms // DAY_MS)
            return await self._add(counts, at_ms)

    async def _make_day(self, day: int) -> None:
        if day not in self._days:
            await make_day(self._pool, REFUSED_SPACE, day)
            self._days = {day}

    async def _add(self, counts: Mapping[tuple[UUID, str], int], at_ms: int) -> int:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(SQL["read_samples"])).fetchall()
            before = {(sale_id, code): orders for sale_id, code, orders in rows}
            gone = {sale_id for sale_id, _ in before} - {sale_id for sale_id, _ in counts}
            changed = sorted(key for key, count in counts.items() if count != before.get(key, 0))
            growth = [_growth(before.get(key, 0), counts[key]) for key in changed]
            if changed:
                keys = {
                    "sale_id": columns.uuids([sale_id for sale_id, _ in changed]),
                    "code": columns.texts([code for _, code in changed]),
                }
                second = _time(at_ms - at_ms % 1000)
                await connection.execute(SQL["add_refusals"], {**keys, "orders": columns.bigints(growth), "at": second})
                kept = columns.bigints([counts[key] for key in changed])
                await connection.execute(SQL["keep_samples"], {**keys, "orders": kept})
            if gone:
                await connection.execute(SQL["forget_samples"], {"sale_ids": list(gone)})
        return sum(growth)


def _growth(before: int, now: int) -> int:
    return now - before if now >= before else now
