"""What erasing an account entails outside of the user's shard. Every step may be repeated; the last one says that it is done.

With one commit the row is gone, all that references it, and with it whatever tables to come hold of a person (`erase_user`);
access tokens are noted as ended. Then caches forget, and the address leaves the login index, which may be in another shard. A
crash anywhere leaves an unfinished row of `erasures`, which the next request to erase the account finishes, and the sweeper
otherwise.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import psycopg
import redis.exceptions
import structlog

from backoffice.stores import Stores
from backoffice.users.addresses import Addresses
from backoffice.users.store import User, Users
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "users.sql")
AWAY = (psycopg.OperationalError, redis.exceptions.RedisError, TimeoutError, OSError)

log = structlog.get_logger(__name__)


class Erasures:
    """Erases accounts, and finishes what was begun."""

    def __init__(self, stores: Stores, users: Users, addresses: Addresses) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._users = users
        self._addresses = addresses

    async def erase(self, user: User, *, by: UUID) -> bool:
        """Remove the account and all of the person; False when it is not as `user` any more."""
        if not await self._users.erase(user, by=by):
            return False
        log.info("account erased", user_id=str(user.id), by=str(by))
        await self.finish_soon(user.id)
        return True

    async def is_finished(self, user_id: UUID) -> bool | None:
        """Whether nothing is left to do for an account that was erased; None when none was."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["get_erasure"], {"id": user_id})).fetchone()
        return None if row is None else bool(row[0])

    async def finish_soon(self, user_id: UUID) -> None:
        """Finish now, or leave it to the sweeper when something that is needed for it is away."""
        try:
            await self.finish(user_id)
        except AWAY as error:
            log.warning("an erasure is finished later", user_id=str(user_id), error=type(error).__name__)

    async def finish(self, user_id: UUID) -> None:
        """Everything that follows; nothing is different when it was done before."""
        await self._users.forget(user_id)
        for release in await self._addresses.releases_of(user_id):
            await self._addresses.work_off(release)
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["finish_erasure"], {"id": user_id})

    async def unfinished(self, shard: int, *, settled: timedelta, limit: int) -> list[UUID]:
        """Accounts of a shard that were erased longer than `settled` ago, the oldest first."""
        async with self._stores.shards[shard].connection() as connection:
            parameters = {"settled": settled, "limit": limit}
            return [
                row[0] for row in await (await connection.execute(SQL["unfinished_erasures"], parameters)).fetchall()
            ]
