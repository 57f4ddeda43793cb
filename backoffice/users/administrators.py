"""Keeps the last administrator: one change at a time, anywhere, may make them fewer. Decides nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.stores import Stores
from backoffice.users.store import Users
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "administrators.sql")
_LOCK_ID = 0x666C6173_61646D6E  # "flasadmn"


class LastAdministrator(Exception):
    """There would be none left."""


class Administrators:
    """Administrators are spread over the shards; what orders changes of them is a lock in the catalogue."""

    def __init__(self, stores: Stores, users: Users) -> None:
        """Uses them, owns nothing."""
        self._catalogue = stores.catalogue
        self._users = users
        # So that this process never waits with more than one of the pool's connections.
        self._here = asyncio.Lock()

    @asynccontextmanager
    async def without(self, user_id: UUID) -> AsyncIterator[None]:
        """Inside of this, the user may stop being an administrator; LastAdministrator when there is no other.

        A crash gives the lock back. `psycopg.errors.LockNotAvailable`, an OperationalError, when others hold it for long.
        """
        async with self._here, self._catalogue.connection() as connection:
            await connection.execute(SQL["wait_at_most"])
            await connection.execute(SQL["lock"], {"lock_id": _LOCK_ID})
            if await self._users.other_admins(user_id) == 0:
                raise LastAdministrator
            await _require_held(connection)
            yield


async def _require_held(connection: AsyncConnection[TupleRow]) -> None:
    """OperationalError if the connection, and the lock with it, was lost while the administrators were counted."""
    await connection.execute("SELECT 1")
