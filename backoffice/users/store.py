"""Reads and writes accounts. Knows no passwords (only their hashes) and no tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import class_row

from backoffice.stores import Stores
from backoffice.web.messages import Role
from domain import ids
from domain.topology import bucket_of_user
from runtime.sql import load_sql

SQL = load_sql(__package__, "users.sql")
CLAIM_STALE = timedelta(seconds=60)  # far beyond the time that a registration may take


@dataclass(frozen=True, slots=True)
class User:
    """A row of `users`."""

    id: UUID
    email: str
    name: str
    password_hash: str = field(repr=False)
    role: str
    created_at: datetime


def fold_email(email: str) -> str:
    """The form in which addresses are compared. Addresses are ASCII, so there is nothing to normalise."""
    return email.lower()


class Users:
    """Accounts in their shards."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._stores = stores

    async def create(self, *, email: str, name: str, password_hash: str, role: Role) -> User | None:
        """A new account, or None when the address is in use.

        Two shards and no common transaction: claim the address, make the user, confirm. A crash before the end leaves an
        unconfirmed claim, which the next registration of the address takes over after a minute.
        """
        user_id = ids.new_uuid7()
        folded = fold_email(email)
        claim = {"email_folded": folded, "user_id": user_id, "stale": CLAIM_STALE}
        async with self._stores.shard_of_address(folded).connection() as connection:
            if await (await connection.execute(SQL["claim_address"], claim)).fetchone() is None:
                return None
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(User))
            row = {
                "id": user_id,
                "bucket": bucket_of_user(user_id),
                "email": email,
                "email_folded": folded,
                "name": name,
                "password_hash": password_hash,
                "role": role,
            }
            user = await (await cursor.execute(SQL["insert_user"], row)).fetchone()
        async with self._stores.shard_of_address(folded).connection() as connection:
            confirmed = await (await connection.execute(SQL["confirm_address"], claim)).fetchone()
        if confirmed is None:
            async with self._stores.shard_of_user(user_id).connection() as connection:
                await connection.execute(SQL["delete_user"], {"id": user_id})
            return None
        return user

    async def get(self, user_id: UUID) -> User | None:
        """The account with this id."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(User))
            return await (await cursor.execute(SQL["get_user"], {"id": user_id})).fetchone()

    async def find(self, email: str) -> User | None:
        """The account with this address. Asks two shards also for an unknown address: absence must not be faster."""
        folded = fold_email(email)
        async with self._stores.shard_of_address(folded).connection() as connection:
            row = await (await connection.execute(SQL["find_address"], {"email_folded": folded})).fetchone()
        return await self.get(row[0] if row is not None else ids.new_uuid7())
