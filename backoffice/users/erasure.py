"""Erases accounts, in the shard of the user and outside of it. Every step may be repeated.

One commit deletes the row and every row that references it (`erase_user`), and ends access tokens. Then caches forget
the account, and the address leaves the login index, which may be in another shard. A crash leaves an unfinished row of
`erasures`; the next request to erase the account finishes it, or the sweeper.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import structlog

from backoffice.stores import AWAY, Stores
from backoffice.users.addresses import Addresses
from backoffice.users.model import User
from backoffice.users.store import Users
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "erasure.sql")

log = structlog.get_logger(__name__)


class Erasures:
    """Erases accounts, and finishes interrupted erasures."""

    def __init__(self, stores: Stores, users: Users, addresses: Addresses) -> None:
        """Uses its arguments, owns nothing."""
        self._stores = stores
        self._users = users
        self._addresses = addresses

    async def erase(self, user: User, *, by: UUID) -> bool:
        """Erase the account and all personal data; False when the version of the account has changed."""
        if not await self._users.erase(user, by=by):
            return False
        log.info("account erased", user_id=str(user.id), by=str(by))
        await self.finish_soon(user.id)
        return True

    async def is_finished(self, user_id: UUID) -> bool | None:
        """Whether the erasure is complete; None when the account was not erased."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["get_erasure"], {"id": user_id})).fetchone()
        return None if row is None else bool(row[0])

    async def finish_soon(self, user_id: UUID) -> None:
        """Finish now, or leave it to the sweeper when a required server is away."""
        try:
            await self.finish(user_id)
        except AWAY as error:
            log.warning("an erasure will be finished later", user_id=str(user_id), error=type(error).__name__)

    async def finish(self, user_id: UUID) -> None:
        """All steps after the commit. Idempotent."""
        await self._users.forget(user_id)
        for release in await self._addresses.releases_of(user_id):
            await self._addresses.work_off(release)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["finish_erasure"], {"id": user_id})

    async def unfinished(self, shard: int, *, settled: timedelta, limit: int) -> list[UUID]:
        """Accounts of a shard whose erasure began longer than `settled` ago and is unfinished, oldest first."""
        async with self._stores.shards[shard].single_statements() as connection:
            parameters = {"settled": settled, "limit": limit}
            rows = await (await connection.execute(SQL["unfinished_erasures"], parameters)).fetchall()
        return [row[0] for row in rows]
