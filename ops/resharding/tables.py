"""The rows that move with a bucket, table by table, and their copy from one shard into another.

    moves with its bucket     orders and their versions, places and notes of entries, payments and refunds, accounts
                              with everything that references them, the login index
    stays                     `outbox` (published from the shard that wrote it, before the bucket opens elsewhere),
                              `audit.entries` (read from all shards), notes of dead letters without a valid order
    each shard has its own    `quota` (units move with their orders), `sale_epochs` (gates are raised in the target)

Every statement is of one transaction of the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

Connection = AsyncConnection[TupleRow]


@dataclass(frozen=True, slots=True)
class MovedTable:
    """A table whose rows belong to buckets. `bucket` is the expression of a row's bucket, or of that in `of`.

    `indexed`: so many rows that the mover needs an index on the expression while it works.
    `of`: a column and the table that it references; the row is where the referenced one is.
    """

    name: str
    bucket: str
    indexed: bool = False
    of: tuple[str, str] | None = None

    def rows(self, buckets: Sequence[int]) -> sql.Composed:
        """`FROM table WHERE ...`: the rows of the buckets."""
        here = sql.SQL("{} = ANY({}::smallint[])").format(sql.SQL(self.bucket), sql.Literal(list(buckets)))
        if self.of is not None:
            column, table = map(sql.Identifier, self.of)
            here = sql.SQL("{} IN (SELECT id FROM {} WHERE {})").format(column, table, here)
        return sql.SQL("FROM {} AS t WHERE {}").format(sql.Identifier(self.name), here)

    @property
    def index(self) -> str:
        """Name of the index that exists while buckets move."""
        return f"moving_{self.name}"


INDEXED_BYTES_MIN: Final = 1 << 20  # a smaller table is read as a whole
_OF_ORDER: Final = "bucket_of_order(order_id)"
_OF_USER: Final = "bucket_of_user(user_id)"
# Referenced tables before those that reference them.
MOVED: Final = (
    MovedTable("users", "bucket"),
    MovedTable("login_index", "bucket", indexed=True),
    MovedTable("refresh_families", _OF_USER, indexed=True),
    MovedTable("refresh_tokens", _OF_USER, of=("family_id", "refresh_families")),
    MovedTable("mailed_tokens", _OF_USER),
    MovedTable("mailed_links", _OF_USER, indexed=True),
    MovedTable("login_releases", _OF_USER),
    MovedTable("erasures", _OF_USER),
    MovedTable("session_ends", _OF_USER),
    MovedTable("notice_preferences", _OF_USER, indexed=True),
    MovedTable("push_subscriptions", _OF_USER, indexed=True),
    MovedTable("orders", "bucket", indexed=True),
    MovedTable("order_transitions", _OF_ORDER, indexed=True),
    MovedTable("repeated_places", _OF_ORDER),
    MovedTable("dead_lettered", _OF_ORDER),
    MovedTable("waiting_entries", _OF_ORDER),
    MovedTable("payments", _OF_ORDER, indexed=True),
    MovedTable("refunds", _OF_ORDER, indexed=True),
    MovedTable("refunded_lines", _OF_ORDER),
)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Number of rows, and a sum of their hashes in any order: equal in both shards, or the copy is not complete."""

    rows: int
    digest: int


async def fingerprints(connection: Connection, buckets: Sequence[int]) -> dict[str, Fingerprint]:
    """Of each table's rows of the buckets, as text with all columns."""
    found = {}
    for table in MOVED:
        query = sql.SQL("SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) {}")
        row = await (await connection.execute(query.format(table.rows(buckets)))).fetchone()
        assert row is not None, "an aggregate has one row"
        found[table.name] = Fingerprint(int(row[0]), int(row[1]))
    return found


async def copy(source: Connection, target: Connection, buckets: Sequence[int]) -> None:
    """Copy all rows of the buckets, which are frozen in the source. A row that exists in the target is an error."""
    for table in MOVED:
        select = sql.SQL("COPY (SELECT t.* {}) TO STDOUT").format(table.rows(buckets))
        insert = sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(table.name))
        async with source.cursor().copy(select) as rows, target.cursor().copy(insert) as into:
            async for block in rows:
                await into.write(block)


async def delete(connection: Connection, buckets: Sequence[int]) -> int:
    """Delete all rows of the buckets; their number. Rows that reference others first."""
    deleted = 0
    for table in reversed(MOVED):
        cursor = await connection.execute(sql.SQL("DELETE {}").format(table.rows(buckets)))
        deleted += cursor.rowcount
    return deleted


async def make_indexes(connection: Connection) -> None:
    """Indexes of large tables for the time of the work, without a lock on writers. `connection` commits by itself.

    The wait for an old transaction ends with the statement's bound; an index that stayed invalid is made anew.
    """
    for table in MOVED:
        if table.indexed and await _size(connection, table.name) >= INDEXED_BYTES_MIN:
            if await _is_invalid(connection, table.index):
                await connection.execute(_drop(table))
            create = sql.SQL("CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON {} ({})")
            expression = sql.SQL(table.bucket if table.bucket == "bucket" else f"({table.bucket})")
            names = sql.Identifier(table.index), sql.Identifier(table.name)
            await connection.execute(create.format(*names, expression))
            await connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(table.name)))


async def drop_indexes(connection: Connection) -> None:
    """Drop them again."""
    for table in MOVED:
        if table.indexed:
            await connection.execute(_drop(table))


def _drop(table: MovedTable) -> sql.Composed:
    return sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(table.index))


async def _size(connection: Connection, name: str) -> int:
    row = await (await connection.execute("SELECT pg_relation_size(%s::regclass)", (name,))).fetchone()
    assert row is not None, "a function has one row"
    return int(row[0])


async def _is_invalid(connection: Connection, index: str) -> bool:
    query = "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    row: Any = await (await connection.execute(query, (index,))).fetchone()
    return row is not None and bool(row[0])
