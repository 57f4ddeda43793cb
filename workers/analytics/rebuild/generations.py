"""The two generations of figures in the analytics database: begin the next one, compare, switch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import date
from typing import Any, Final

from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow

from domain.figures import REBUILD_LOCK, SWITCH_LOCK
from runtime.postgres.sql import load_sql
from workers.analytics.rebuild.errors import RebuildError
from workers.analytics.store import LOCK_MS_MAX, AnalyticsPool, Connection, date_of

SQL = load_sql(__package__, "generations.sql")
NEXT_SPACE: Final = "figures_next"
_KEEP: Final = ("keep_seconds", "keep_minutes", "keep_sku_seconds", "keep_pay_times", "keep_counted")


class Generations:
    """See the module. Every method is one transaction."""

    def __init__(self, pool: AnalyticsPool, *, carrier: str) -> None:
        """Uses the pool, does not own it. `carrier` is the event log's URL scheme."""
        self._pool = pool
        self._carrier = carrier
        self._beyond: list[str] = []

    async def lock(self, guard: AsyncConnection[TupleRow]) -> None:
        """Exclude other rebuilds as long as the connection lives. Raises RebuildError."""
        row = await (await guard.execute(SQL["try_lock"], {"lock": REBUILD_LOCK})).fetchone()
        if row is None or not row[0]:
            raise RebuildError("another rebuild of the figures is running: wait for its end")

    async def kept_days(self, before: int) -> int:
        """The number of days with figures before a day (its number since 1970)."""
        async with self._pool.connection() as connection:
            return int(await _number(connection, "count_kept", {"before": date_of(before)}))

    async def begin(self, before: int) -> None:
        """Make the next generation anew, with a copy of all figures of the days before a day."""
        async with self._pool.connection() as connection:
            for block in ("freeze", "remove_next", "remove_old", "make_next", "make_days"):
                await connection.execute(SQL[block])
            for block in _KEEP:
                await connection.execute(SQL[block], {"before": date_of(before)})
            await connection.execute(SQL["keep_positions"], {"carrier": self._carrier})

    async def positions(self) -> dict[tuple[str, int], int]:
        """The last offset that the served generation has counted, by topic and partition."""
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(SQL["read_positions"], {"carrier": self._carrier})).fetchall()
        return {(topic, partition): offset for topic, partition, offset in rows}

    def ignore(self, beyond: Mapping[tuple[str, int], int]) -> None:
        """Take these positions of the served generation for none: the log lost data and ends before them."""
        self._beyond = [f"{topic}/{partition}/{offset}" for (topic, partition), offset in beyond.items()]

    async def missing(self, since: int) -> list[tuple[date, int]] | None:
        """Changes by day, from a day on, that only the served generation has; None while the next one is behind."""
        async with self._pool.connection() as connection:
            await connection.execute(SQL["freeze"])
            if await self._is_behind(connection):
                return None
            return list(await (await connection.execute(SQL["read_missing"], {"since": date_of(since)})).fetchall())

    async def switch(self) -> bool:
        """Put the next generation in its place; False if it is behind, or if the served one is in use for too long."""
        try:
            async with self._locked() as connection:
                if await self._is_behind(connection):
                    return False
                for block in ("make_days", "keep_progress", "set_served_aside", "serve_next"):
                    await connection.execute(SQL[block])
        except errors.LockNotAvailable:
            return False
        return True

    async def remove_old(self) -> None:
        """Remove the generation that was replaced."""
        async with self._pool.connection() as connection:
            await connection.execute(SQL["remove_old"])

    async def _is_behind(self, connection: Connection) -> bool:
        return bool(await _number(connection, "read_behind", {"carrier": self._carrier, "beyond": self._beyond}))

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[Connection]:
        async with self._pool.connection() as connection:
            await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS_MAX}")
            await connection.execute(SQL["lock_switch"], {"lock": SWITCH_LOCK})
            yield connection


async def _number(connection: Connection, block: str, values: dict[str, Any]) -> int:
    row = await (await connection.execute(SQL[block], values)).fetchone()
    assert row is not None
    return int(row[0])
