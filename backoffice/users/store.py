"""Reads and writes accounts. Knows no passwords (only their hashes), no tokens, and not who may do what.

What is shown comes from the cache, or from a replica that has what was written last; what decides comes from the primary.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

import orjson
import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.auth import outbox
from backoffice.caching.cache import Cache, Codec
from backoffice.stores import Stores
from backoffice.users.addresses import CLAIM_WORK, Addresses, ClaimLapsed, Release
from backoffice.web.messages import Role
from domain import ids
from domain.notices import NoticeKind, notice_to_address, notice_to_user
from domain.topology import bucket_of_user
from runtime.postgres.databases import Database
from runtime.postgres.sql import load_sql

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


def _encode(user: User) -> bytes:
    assert type(user) is User, "a hash must not get into the cache"
    return orjson.dumps(user)


def _decode(content: bytes) -> User:
    fields = orjson.loads(content)
    created_at = datetime.fromisoformat(fields["created_at"])
    return User(**{**fields, "id": UUID(fields["id"]), "created_at": created_at})


USER_CODEC: Codec[User] = Codec(_encode, _decode, schema=1)


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


class SessionEnder(Protocol):
    """Ends the access tokens that a user has (`auth.sessions`)."""

    async def note_within(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
        """In the caller's transaction; what to `tell` after its commit. What is noted and not told is told by another."""
        ...

    async def tell(self, user_id: UUID, seconds: int) -> None:
        """Have it known everywhere."""
        ...


class EmailTaken(Exception):
    """Another account has the address, or is about to."""


def fold_email(email: str) -> str:
    """The form in which addresses are compared. Addresses are ASCII, so there is nothing to normalise."""
    return email.lower()


Together = Callable[[AsyncConnection[TupleRow], UUID], Awaitable[None]]


class Users:
    """Accounts in their shards."""

    def __init__(self, stores: Stores, addresses: Addresses, cache: Cache[User], sessions: SessionEnder) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._addresses = addresses
        self._sessions = sessions
        self._cache = cache

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
            if user is not None and together is not None:
                await together(connection, user_id)
        if user is None:
            raise ClaimLapsed
        await self._stores.shard_of_user(user_id).wrote(_subject(user_id))
        if await self._confirm(folded, user_id):
            return user
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["delete_user"], {"id": user_id})
        return None

    async def newest(self, user_id: UUID) -> User | None:
        """The account with this id as the primary has it: for decisions."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            return await _get(connection, user_id)

    async def get(self, user_id: UUID) -> User | None:
        """The account with this id, to be shown. Never older than the last change."""

        async def load() -> User | None:
            shard = self._stores.shard_of_user(user_id)
            return await shard.read(lambda connection: _get(connection, user_id), subjects=[_subject(user_id)])

        return await self._cache.get(str(user_id), load)

    async def find(self, email: str) -> Account | None:
        """The account with this address. Asks two shards also for an unknown address: absence must not be faster."""
        folded = fold_email(email)
        user_id = await self._addresses.user_of(folded) or ids.new_uuid7()
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Account))
            parameters = {"id": user_id, "email_folded": folded}
            return await (await cursor.execute(SQL["get_account"], parameters)).fetchone()

    async def page(self, *, role: Role | None, before: UUID | None, limit: int, reader: UUID) -> list[User]:
        """Newest first, over all shards: ids begin with their time, so each shard gives its first, the merge is cut.

        `reader` finds what it has changed; what others changed this moment may be missing.
        """
        parameters = {"role": role, "before": before, "limit": limit}

        async def query(connection: AsyncConnection[TupleRow]) -> list[User]:
            cursor = connection.cursor(row_factory=class_row(User))
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()

        subjects = [_subject(reader), _work_of(reader)]
        pages = await asyncio.gather(*(shard.read(query, subjects=subjects) for shard in self._stores.shards))
        return sorted((user for page in pages for user in page), key=lambda user: user.id, reverse=True)[:limit]

    async def change(self, user: User, change: Change, *, by: UUID) -> User | None:
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
        release = ended = None
        async with self._changing(user.id, by=by) as connection:
            changed = await _update(connection, user, change, folded, claimed_at)
            if changed is not None and moves:
                release = await _note_release(connection, user.id, left)
                # That the old address was proved says nothing of the new one.
                await outbox.leave(connection, notice_to_user(NoticeKind.VERIFY_EMAIL, user.id))
                # Who reads the old mailbox learns of it, in case it was not the owner who changed it.
                await outbox.leave(connection, notice_to_address(NoticeKind.EMAIL_CHANGED, left))
            if changed is not None and changed.role != user.role:
                # The tokens that the user has say the old role; a refresh gives such as say the new one.
                ended = await self._sessions.note_within(connection, user.id)
        if ended is not None:
            await self._sessions.tell(user.id, ended)
        if release is not None:
            assert folded is not None
            await self._confirm(folded, user.id)
            await self._release(release)
        return changed

    async def erase(self, user: User, *, by: UUID) -> bool:
        """Remove the account and all of the person in its shard; False when it is not as `user` any more."""
        row = {"id": user.id, "version": user.version, "erased_by": by}
        async with self._changing(user.id, by=by) as connection:
            if await (await connection.execute(SQL["erase_user"], row)).fetchone() is None:
                return False
            ended = await self._sessions.note_within(connection, user.id)
        await self._sessions.tell(user.id, ended)
        return True

    async def forget(self, user_id: UUID) -> None:
        """Have every process look at the shard again."""
        async with self._cache.changing(str(user_id)):
            pass

    async def other_admins(self, user_id: UUID) -> int:
        """How many administrators there are besides this one."""
        counts = await asyncio.gather(*(self._count_admins(shard, user_id) for shard in self._stores.shards))
        return sum(counts)

    @asynccontextmanager
    async def _changing(self, user_id: UUID, *, by: UUID) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A transaction on the user's shard, after which nobody reads the account as it was before."""
        shard = self._stores.shard_of_user(user_id)
        async with self._cache.changing(str(user_id)):
            try:
                async with shard.connection() as connection:
                    yield connection
            finally:
                # Before the cache is filled again: from a replica that has this. Also when it failed or was cut, for it may have
                # been committed all the same; this does not fail, so whoever waits learns of that.
                await shard.wrote(_subject(user_id), _work_of(by))

    async def _count_admins(self, shard: Database, besides: UUID) -> int:
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


def _subject(user_id: UUID) -> str:
    return f"user:{user_id}"


def _work_of(user_id: UUID) -> str:
    return f"by:{user_id}"


async def _get(connection: AsyncConnection[TupleRow], user_id: UUID) -> User | None:
    cursor = connection.cursor(row_factory=class_row(User))
    return await (await cursor.execute(SQL["get_user"], {"id": user_id})).fetchone()


async def _update(
    connection: AsyncConnection[TupleRow], user: User, change: Change, folded: str | None, claimed_at: datetime | None
) -> User | None:
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
    cursor = connection.cursor(row_factory=class_row(User))
    return await (await cursor.execute(SQL["change_user"], row)).fetchone()


async def _note_release(connection: AsyncConnection[TupleRow], user_id: UUID, folded: str) -> Release | None:
    cursor = connection.cursor(row_factory=class_row(Release))
    note = {"user_id": user_id, "email_folded": folded}
    return await (await cursor.execute(SQL["note_release"], note)).fetchone()
