"""Reads and writes accounts. Knows no passwords (only their hashes), no tokens, and not who may do what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.stores import Pool, Stores
from backoffice.users.addresses import CLAIM_WORK, Addresses, ClaimLapsed, Release
from backoffice.web.messages import Role
from domain import ids
from domain.topology import bucket_of_user
from runtime.sql import load_sql

SQL = load_sql(__package__, "users.sql")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class User:
    """What an account is to everybody but the login. Neither name nor address gets into a log by accident."""

    id: UUID
    email: str = field(repr=False)
    name: str = field(repr=False)
    role: str
    version: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Account(User):
    """An account as the login needs it. Never leaves the process, never gets into a cache."""

    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be another; None leaves a member as it is."""

    email: str | None = None
    name: str | None = None
    role: Role | None = None

    def differs_from(self, user: User) -> bool:
        """Whether it would change anything."""
        wanted = (self.email, self.name, self.role)
        return any(value is not None and value != old for value, old in zip(wanted, _members(user), strict=True))


def _members(user: User) -> tuple[str, str, str]:
    return user.email, user.name, user.role


class EmailTaken(Exception):
    """Another account has the address, or is about to."""


def fold_email(email: str) -> str:
    """The form in which addresses are compared. Addresses are ASCII, so there is nothing to normalise."""
    return email.lower()


Together = Callable[[AsyncConnection[TupleRow], UUID], Awaitable[None]]


class Users:
    """Accounts in their shards."""

    def __init__(self, stores: Stores, addresses: Addresses) -> None:
        """Uses the stores' pools, owns nothing."""
        self._stores = stores
        self._addresses = addresses

    async def create(
        self, *, email: str, name: str, password_hash: str, role: Role, together: Together | None = None
    ) -> User | None:
        """A new account, or None when the address is in use. `together` writes what belongs to it in its transaction.

        Two shards and no common transaction: claim the address, make the user, confirm. A crash before the user is made
        leaves a claim, which the next registration of the address takes over after a minute; a crash after it leaves an
        account that is whole, and a claim that the sweeper confirms.
        """
        user_id = ids.new_uuid7()
        folded = fold_email(email)
        claimed_at = await self._addresses.claim(folded, user_id)
        if claimed_at is None:
            return None
        row = {
            "id": user_id,
            "bucket": bucket_of_user(user_id),
            "email": email,
            "email_folded": folded,
            "name": name,
            "password_hash": password_hash,
            "role": role,
            "claimed_at": claimed_at,
            "work": CLAIM_WORK,
        }
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(User))
            user = await (await cursor.execute(SQL["insert_user"], row)).fetchone()
            if together is not None:
                await together(connection, user_id)
        if user is None:
            raise ClaimLapsed
        if await self._confirm(folded, user_id):
            return user
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["delete_user"], {"id": user_id})
        return None

    async def newest(self, user_id: UUID) -> User | None:
        """The account with this id as the primary has it: for decisions."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(User))
            return await (await cursor.execute(SQL["get_user"], {"id": user_id})).fetchone()

    async def get(self, user_id: UUID) -> User | None:
        """The account with this id, to be shown."""
        return await self.newest(user_id)

    async def find(self, email: str) -> Account | None:
        """The account with this address. Asks two shards also for an unknown address: absence must not be faster."""
        folded = fold_email(email)
        user_id = await self._addresses.user_of(folded) or ids.new_uuid7()
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Account))
            parameters = {"id": user_id, "email_folded": folded}
            return await (await cursor.execute(SQL["get_account"], parameters)).fetchone()

    async def page(self, *, role: Role | None, before: UUID | None, limit: int) -> list[User]:
        """Newest first, over all shards: ids begin with their time, so each shard gives its first, the merge is cut."""
        parameters = {"role": role, "before": before, "limit": limit}
        pages = await asyncio.gather(*(self._page(shard, parameters) for shard in self._stores.shards))
        return sorted((user for page in pages for user in page), key=lambda user: user.id, reverse=True)[:limit]

    async def change(self, user: User, change: Change) -> User | None:
        """The changed account, or None when it is not as `user` any more; EmailTaken, ClaimLapsed.

        Another address is claimed, written, confirmed, and the old one released. A crash before it is written leaves the
        old address and a claim that goes by itself; a crash after it leaves what the sweeper works off. What cannot be
        worked off now because a shard is away does not undo the change.
        """
        folded = None if change.email is None else fold_email(change.email)
        left = fold_email(user.email)
        moves = folded is not None and folded != left
        claimed_at = None
        if folded is not None and moves:
            claimed_at = await self._addresses.claim(folded, user.id)
            if claimed_at is None:
                raise EmailTaken
        row = {
            "id": user.id,
            "version": user.version,
            "email": change.email,
            "email_folded": folded,
            "name": change.name,
            "role": change.role,
            "claimed_at": claimed_at,
            "work": CLAIM_WORK,
        }
        async with self._stores.shard_of_user(user.id).connection() as connection:
            users = connection.cursor(row_factory=class_row(User))
            changed = await (await users.execute(SQL["change_user"], row)).fetchone()
            if changed is None:
                return None
            if not moves:
                return changed
            notes = connection.cursor(row_factory=class_row(Release))
            note = {"user_id": user.id, "email_folded": left}
            release = await (await notes.execute(SQL["note_release"], note)).fetchone()
        assert folded is not None and release is not None
        await self._confirm(folded, user.id)
        await self._release(release)
        return changed

    async def other_admins(self, user_id: UUID) -> int:
        """How many administrators there are besides this one."""
        counts = await asyncio.gather(*(self._count_admins(shard, user_id) for shard in self._stores.shards))
        return sum(counts)

    async def _page(self, shard: Pool, parameters: dict[str, Any]) -> list[User]:
        async with shard.connection() as connection:
            cursor = connection.cursor(row_factory=class_row(User))
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()

    async def _count_admins(self, shard: Pool, besides: UUID) -> int:
        async with shard.connection() as connection:
            row = await (await connection.execute(SQL["count_admins"], {"besides": besides})).fetchone()
        return 0 if row is None else int(row[0])

    async def _confirm(self, folded: str, user_id: UUID) -> bool:
        """Whether the address is the user's; taken for granted while its shard is away, since the claim was young."""
        try:
            return await self._addresses.confirm(folded, user_id)
        except psycopg.OperationalError as error:
            log.warning("an address is confirmed later", user_id=str(user_id), error=type(error).__name__)
            return True

    async def _release(self, release: Release) -> None:
        try:
            await self._addresses.work_off(release)
        except psycopg.OperationalError as error:
            log.warning("an address is released later", user_id=str(release.user_id), error=type(error).__name__)
