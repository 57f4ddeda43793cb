"""One database's outbox table: pages of rows per partition, and their removal. Does not deliver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from runtime.postgres.sql import load_sql

MEASURED_ROWS_MAX = 10_000

_SQL = load_sql("workers.dispatcher", "outbox.sql")


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row: `events` is a JSON array as text, the events of one batch in order."""

    id: int
    partition: int
    events: str


class Outbox:
    """Rows of one destination in one database. Every method raises psycopg.Error when the database does not answer."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], *, destination: str) -> None:
        """`pool` is open."""
        self._pool = pool
        self._destination = destination

    async def next_rows(self, partitions: Sequence[int], *, rows_max: int) -> dict[int, list[OutboxRow]]:
        """The oldest rows, at most `rows_max` of each partition, by partition and in id order."""
        pages: dict[int, list[OutboxRow]] = {}
        parameters = {"partitions": list(partitions), "destination": self._destination, "rows_max": rows_max}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["next_rows"], parameters)
            for row in await cursor.fetchall():
                pages.setdefault(row[1], []).append(OutboxRow(*row))
        return pages

    async def delete(self, ids: Sequence[int]) -> None:
        """Remove acknowledged rows."""
        async with self._pool.connection() as connection:
            await connection.execute(_SQL["delete_rows"], {"ids": list(ids)})

    async def measure(self) -> tuple[int, float]:
        """Rows waiting, at most `MEASURED_ROWS_MAX`, and the age of the oldest in seconds."""
        parameters = {"destination": self._destination, "rows_max": MEASURED_ROWS_MAX}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["measure"], parameters)
            [(rows, age_s)] = await cursor.fetchall()
        return rows, age_s
