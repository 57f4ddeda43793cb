"""One database's outbox table: pages of rows per destination and partition, and their removal. Does not deliver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Place(NamedTuple):
    """Rows that are delivered in order, one page after the other."""

    destination: str
    partition: int


class Lag(NamedTuple):
    """Rows waiting, at most `MEASURED_ROWS_MAX`, and the age of the oldest in seconds."""

    rows: int
    age_s: float


class Outbox:
    """The rows of one database. Every method raises psycopg.Error when the database does not answer."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        """`pool` is open."""
        self._pool = pool

    async def is_empty(self) -> bool:
        """Whether there is no row at all, of any destination. Cheap."""
        async with self._pool.connection() as connection:
            return await (await connection.execute(_SQL["oldest"])).fetchone() is None

    async def next_rows(self, places: Sequence[Place], *, rows_max: int) -> dict[Place, list[OutboxRow]]:
        """The oldest rows, at most `rows_max` of each place, in id order; by one statement, however many places."""
        pages: dict[Place, list[OutboxRow]] = {}
        parameters = {
            "destinations": [place.destination for place in places],
            "partitions": [place.partition for place in places],
            "rows_max": rows_max,
        }
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["next_rows"], parameters)
            for row_id, destination, partition, events in await cursor.fetchall():
                place = Place(destination, partition)
                pages.setdefault(place, []).append(OutboxRow(row_id, partition, events))
        return pages

    async def delete(self, ids: Sequence[int]) -> None:
        """Remove acknowledged rows."""
        async with self._pool.connection() as connection:
            await connection.execute(_SQL["delete_rows"], {"ids": list(ids)})

    async def measure(self, destinations: Sequence[str]) -> dict[str, Lag]:
        """The lag of each destination."""
        parameters = {"destinations": list(destinations), "rows_max": MEASURED_ROWS_MAX}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SQL["measure"], parameters)
            return {destination: Lag(rows, age_s) for destination, rows, age_s in await cursor.fetchall()}
