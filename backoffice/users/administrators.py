"""Keeps at least one administrator: changes that make the first or remove one are serial over all processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.stores import Stores
from runtime.postgres.databases import Database
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "administrators.sql")
_LOCK_ID = 0x666C6173_61646D6E  # "flasadmn"


class LastAdministrator(Exception):
    """No other administrator would remain."""


class Administrators:
    """Administrators are in all shards; a lock in the catalogue orders changes of them."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores, owns nothing."""
        self._catalogue = stores.catalogue
        self._shards = stores.shards
        # Bounds the connections of this process that wait for the lock to one.
        self._here = asyncio.Lock()

    @asynccontextmanager
    async def without(self, user_id: UUID) -> AsyncIterator[None]:
        """While this is open, the user may cease to be an administrator; LastAdministrator when there is no other.

        A crash releases the lock. `psycopg.errors.LockNotAvailable` (an OperationalError) when the wait takes too long.
        """
        async with self._counted(besides=user_id) as others:
            if others == 0:
                raise LastAdministrator
            yield

    @asynccontextmanager
    async def none_yet(self) -> AsyncIterator[bool]:
        """Whether there is no administrator. While this is open, only the caller may make one. Raises as `without`."""
        async with self._counted(besides=None) as count:
            yield count == 0

    @asynccontextmanager
    async def _counted(self, *, besides: UUID | None) -> AsyncIterator[int]:
        async with self._here, self._catalogue.connection() as connection:
            await connection.execute(SQL["limit_lock_wait"])
            await connection.execute(SQL["lock"], {"lock_id": _LOCK_ID})
            counts = await asyncio.gather(*(_count(shard, besides) for shard in self._shards))
            await _require_held(connection)
            yield sum(counts)


async def _count(shard: Database, besides: UUID | None) -> int:
    async with shard.connection() as connection:
        row = await (await connection.execute(SQL["count_admins"], {"besides": besides})).fetchone()
    return 0 if row is None else int(row[0])


async def _require_held(connection: AsyncConnection[TupleRow]) -> None:
    """OperationalError if the connection, and with it the lock, was lost during the count."""
    await connection.execute("SELECT 1")
