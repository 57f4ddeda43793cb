"""Reads and writes accounts. Knows password hashes, but no passwords, tokens or permissions.

Accounts to be shown come from the cache, or from a replica that has replayed the newest write. Decisions read the
primary.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Protocol
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.caching.cache import Cache
from backoffice.outbox.store import enqueue_notice
from backoffice.stores import Stores
from backoffice.users.addresses import CLAIM_WORK, Addresses, ClaimLapsed, Release
from backoffice.users.model import Account, Change, User, fold_email
from backoffice.web.messages import Role
from domain import ids
from domain.notices import NoticeKind, notice_of_left_address, notice_to_user
from domain.topology import bucket_of_user
from runtime.audit import ANONYMOUS, DONE, Action, acting, differences, object_name, record
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "users.sql")

ADDRESS_LOST = "address_lost"  # outcome of a registration whose address another one got first

log = structlog.get_logger(__name__)


class SessionEnder(Protocol):
    """Ends the access tokens of a user (`auth.sessions`)."""

    async def note_within(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
        """End them in the caller's transaction; the generation to publish after its commit."""
        ...

    async def publish(self, user_id: UUID, generation: int) -> None:
        """Publish the end to all processes.

        An end that a crash left unpublished is published by `Sessions.run`.
        """
        ...


class EmailTaken(Exception):
    """Another account has the address, or has claimed it."""


Together = Callable[[AsyncConnection[TupleRow], UUID], Awaitable[None]]


class Users:
    """Accounts in their shards."""

    def __init__(self, stores: Stores, addresses: Addresses, cache: Cache[User], sessions: SessionEnder) -> None:
        """Uses its arguments, owns nothing."""
        self._stores = stores
        self._addresses = addresses
        self._sessions = sessions
        self._cache = cache

    async def create(
        self,
        *,
        email: str,
        name: str,
        password_hash: str,
        role: Role,
        verified: bool = False,
        together: Together | None = None,
    ) -> User | None:
        """A new account, or None when the address is in use. `together` writes related rows in the same transaction.

        There is no transaction over the two shards: claim the address, insert the user, confirm the claim. A crash
        before the insert leaves a claim, which the next registration of the address takes over after a minute. A crash
        after the insert leaves a complete account and a claim that the sweeper confirms.
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
            "verified": verified,
            "claimed_at": claimed_at,
            "work": CLAIM_WORK,
        }
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(User))
            user = await (await cursor.execute(SQL["insert_user"], row)).fetchone()
            if user is not None:
                await _record_registration(connection, user, outcome=DONE)
                if together is not None:
                    await together(connection, user_id)
        if user is None:
            raise ClaimLapsed
        await self._stores.shard_of_user(user_id).wrote(_subject(user_id))
        if await self._confirm(folded, user_id):
            return user
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["delete_user"], {"id": user_id})
            await _record_registration(connection, user, outcome=ADDRESS_LOST)
        return None

    async def newest(self, user_id: UUID) -> User | None:
        """The account with this id as the primary has it; for decisions."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            return await _get(connection, user_id)

    async def get(self, user_id: UUID) -> User | None:
        """The account with this id, to be shown. Never older than the last change of it."""

        async def load() -> User | None:
            shard = self._stores.shard_of_user(user_id)
            return await shard.read(lambda connection: _get(connection, user_id), subjects=[_subject(user_id)])

        return await self._cache.get(str(user_id), load)

    async def account(self, user_id: UUID) -> Account | None:
        """The account with this id and its password hash, as the primary has it."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Account))
            return await (await cursor.execute(SQL["get_account_by_id"], {"id": user_id})).fetchone()

    async def find(self, email: str) -> Account | None:
        """The account with this address. An unknown address costs the same two reads, so timing does not reveal it."""
        folded = fold_email(email)
        user_id = await self._addresses.user_of(folded) or ids.new_uuid7()
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Account))
            parameters = {"id": user_id, "email_folded": folded}
            return await (await cursor.execute(SQL["get_account"], parameters)).fetchone()

    async def page(self, *, role: Role | None, before: UUID | None, limit: int, reader: UUID) -> list[User]:
        """Accounts of all shards, newest first. Ids begin with their time, so merging the first rows of each shard is
        enough.

        Includes every change by `reader`; the newest changes by others may be missing.
        """
        parameters = {"role": role, "before": before, "limit": limit}

        async def query(connection: AsyncConnection[TupleRow]) -> list[User]:
            cursor = connection.cursor(row_factory=class_row(User))
            return await (await cursor.execute(SQL["page"], parameters)).fetchall()

        subjects = [_subject(reader), _work_of(reader)]
        pages = await asyncio.gather(*(shard.read(query, subjects=subjects) for shard in self._stores.shards))
        return sorted((user for page in pages for user in page), key=lambda user: user.id, reverse=True)[:limit]

    async def change(self, user: User, change: Change, *, by: UUID) -> User | None:
        """The changed account, or None when its version has changed. Raises EmailTaken, ClaimLapsed.

        A new address is claimed, written, and confirmed; then the old one is released. A crash before the write leaves
        the old address, and a claim that goes stale. A crash after the write leaves work for the sweeper. A shard that
        is away delays this work and does not undo the change.
        """
        folded = None if change.email is None else fold_email(change.email)
        left = fold_email(user.email)
        moves = folded is not None and folded != left
        claimed_at = await self._claim(folded, user.id) if folded is not None and moves else None
        release = generation = None
        async with self.changing(user.id, by=by) as connection:
            changed = await _update(connection, user, change, folded, claimed_at)
            if changed is not None:
                await _record_change(connection, user, changed)
            if changed is not None and moves:
                release = await _note_release(connection, user.id, left)
                # The new address is not verified.
                await enqueue_notice(connection, notice_to_user(NoticeKind.VERIFY_EMAIL, user.id))
                # Warns the owner of the old mailbox, and lets them undo a change by another person.
                await enqueue_notice(connection, notice_of_left_address(user.id, left))
            if changed is not None and changed.role != user.role:
                # Present tokens carry the old role; a refresh gives tokens with the new one.
                generation = await self._sessions.note_within(connection, user.id)
        if generation is not None:
            await self._sessions.publish(user.id, generation)
        if release is not None:
            assert folded is not None
            await self._confirm(folded, user.id)
            await self._release(release)
        return changed

    async def move_back(
        self, user: User, email: str, *, together: Callable[[AsyncConnection[TupleRow]], Awaitable[None]]
    ) -> bool:
        """Give the account a former address back; False when its version has changed. Raises EmailTaken, ClaimLapsed.

        Sends no letter to the address that the account leaves. `together` writes related rows in the same transaction.
        """
        folded, left = fold_email(email), fold_email(user.email)
        claimed_at = None if folded == left else await self._claim(folded, user.id)
        release = None
        async with self.changing(user.id, by=user.id) as connection:
            if await _update(connection, user, Change(email=email), folded, claimed_at) is None:
                return False
            if claimed_at is not None:
                release = await _note_release(connection, user.id, left)
            await together(connection)
        if release is not None:
            await self._confirm(folded, user.id)
            await self._release(release)
        return True

    async def _claim(self, folded: str, user_id: UUID) -> datetime:
        claimed_at = await self._addresses.claim(folded, user_id)
        if claimed_at is None:
            raise EmailTaken
        return claimed_at

    async def erase(self, user: User, *, by: UUID) -> bool:
        """Delete the account and all personal data in its shard; False when its version has changed."""
        row = {"id": user.id, "version": user.version, "erased_by": by}
        async with self.changing(user.id, by=by) as connection:
            if await (await connection.execute(SQL["erase_user"], row)).fetchone() is None:
                return False
            await record(connection, Action.USER_ERASE, object_name("user", user.id), before={"role": user.role})
            generation = await self._sessions.note_within(connection, user.id)
        await self._sessions.publish(user.id, generation)
        return True

    async def forget(self, user_id: UUID) -> None:
        """Drop the account from the caches of all processes."""
        async with self._cache.changing(str(user_id)):
            pass

    @asynccontextmanager
    async def changing(self, user_id: UUID, *, by: UUID) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A transaction on the shard of the user.

        After it, no process reads the old account from a cache or a replica.
        """
        shard = self._stores.shard_of_user(user_id)
        async with self._cache.changing(str(user_id)):
            try:
                async with shard.connection() as connection:
                    yield connection
            finally:
                # Before a reader fills the cache again, so that a replica serves it only after it has replayed this
                # write. Also after an error, because the commit may have succeeded. `wrote` never raises, so the error
                # is not lost.
                await shard.wrote(_subject(user_id), _work_of(by))

    async def _confirm(self, folded: str, user_id: UUID) -> bool:
        """Whether the user has the address. True while the shard of the address is away, because the claim is young."""
        try:
            return await self._addresses.confirm(folded, user_id)
        except psycopg.OperationalError as error:
            log.warning("an address will be confirmed later", user_id=str(user_id), error=type(error).__name__)
            return True

    async def _release(self, release: Release) -> None:
        try:
            await self._addresses.work_off(release)
        except psycopg.OperationalError as error:
            log.warning("an address will be released later", user_id=str(release.user_id), error=type(error).__name__)


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


async def _record_registration(connection: AsyncConnection[TupleRow], user: User, *, outcome: str) -> None:
    actor = str(user.id) if acting().actor == ANONYMOUS else None
    about = object_name("user", user.id)
    await record(connection, Action.USER_REGISTER, about, after={"role": user.role}, actor=actor, outcome=outcome)


async def _record_change(connection: AsyncConnection[TupleRow], user: User, changed: User) -> None:
    """Record the change; of personal data only which members changed: the entry outlives an erasure."""
    action = Action.USER_CHANGE if changed.role == user.role else Action.USER_ROLE
    before, after = differences(_facts(user), _facts(changed))
    personal = [name for name in ("email", "name") if getattr(user, name) != getattr(changed, name)]
    if personal:
        after["personal"] = personal
    await record(connection, action, object_name("user", user.id), before=before, after=after)


def _facts(user: User) -> dict[str, object]:
    return {"role": user.role, "email_verified": user.email_verified}


async def _note_release(connection: AsyncConnection[TupleRow], user_id: UUID, folded: str) -> Release | None:
    cursor = connection.cursor(row_factory=class_row(Release))
    note = {"user_id": user_id, "email_folded": folded}
    return await (await cursor.execute(SQL["note_release"], note)).fetchone()
