"""The login index: address to user, sharded by the hash of the address. Reads of accounts only their addresses.

The row of a user holds the address; the index makes it unique. They are in different databases, so a new address is
claimed, then written into the row of the user, then confirmed. A claim is a lease: the row is written only within
`CLAIM_WORK` of the claim, and no other user takes the claim over before `CLAIM_STALE`. The clocks of the database
servers differ far less than that. So after a crash the row of the user alone determines the entry, and `settle`
corrects the entry. Entries to settle are found by their claim, or by a note in `login_releases`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import class_row

from backoffice.stores import Stores
from domain.topology import bucket_of_address
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "addresses.sql")
CLAIM_WORK = timedelta(seconds=30)  # twice the time limit of a request
CLAIM_STALE = timedelta(seconds=60)
_ATTEMPTS_MAX = 3  # an entry that changes its user this often is in use


class ClaimLapsed(TimeoutError):
    """The claim was too old to write the row of the user; nothing was written."""


@dataclass(frozen=True, slots=True)
class Release:
    """A note that the entry of this address may be left over from this user."""

    user_id: UUID
    email_folded: str
    noted_at: datetime


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of `login_index`."""

    user_id: UUID
    confirmed: bool
    claimed_at: datetime
    stale: bool


@dataclass(frozen=True, slots=True)
class _Holder:
    """The address in the row of a user, None without a row, and whether the account was erased."""

    email_folded: str | None
    erased: bool

    def has_left(self, folded: str, entry: _Entry) -> bool:
        """Whether the user does not have the address, and no request is writing it."""
        if self.email_folded == folded:
            return False
        if self.erased:
            return True  # an erased user never gets a row again
        # A confirmed entry of a user with another address is left over. Without a row, a registration may be in
        # progress as long as the claim is young.
        return entry.stale if not entry.confirmed else self.email_folded is not None


class Addresses:
    """The login index in its shards."""

    def __init__(self, stores: Stores) -> None:
        """Uses the pools of the stores; owns nothing."""
        self._stores = stores

    async def claim(self, folded: str, user_id: UUID) -> datetime | None:
        """The time of the claim, or None when the address is in use. Repairs an entry that a crash left behind."""
        shard = self._stores.shard_of_address(folded)
        for _ in range(_ATTEMPTS_MAX):
            async with shard.connection() as connection:
                claim = {"email_folded": folded, "user_id": user_id, "bucket": bucket_of_address(folded)}
                row = await (await connection.execute(SQL["claim_address"], claim)).fetchone()
            if row is not None:
                return _time(row[0])
            entry = await self._entry(folded)
            if entry is None:
                continue  # released since the claim failed
            holder = await self._holder(entry.user_id)
            if not holder.has_left(folded, entry):
                if holder.email_folded == folded and not entry.confirmed:
                    await self.confirm(folded, entry.user_id)
                return None
            async with shard.connection() as connection:
                row = await (
                    await connection.execute(SQL["take_over"], {**_key(folded, entry), "user_id": user_id})
                ).fetchone()
            if row is not None:
                return _time(row[0])
        return None

    async def confirm(self, folded: str, user_id: UUID) -> bool:
        """Confirm the entry after the row of the user has the address; False when the entry is another user's."""
        async with self._stores.shard_of_address(folded).connection() as connection:
            cursor = await connection.execute(SQL["confirm"], {"email_folded": folded, "user_id": user_id})
            return await cursor.fetchone() is not None

    async def user_of(self, folded: str) -> UUID | None:
        """The user of the entry. Only the row of the user tells whether the user has the address.

        Text that cannot be an address has none, without a query: PostgreSQL rejects NUL.
        """
        entry = await self._entry(folded) if folded.isascii() and folded.isprintable() else None
        return None if entry is None else entry.user_id

    async def settle(self, folded: str, user_id: UUID) -> bool:
        """Make the entry of this user agree with the row of the user; False while a request may be working on it.

        The entry is read before the row, and changed only if it is unchanged: a request that will write the address
        into the row claims it first, which changes the entry.
        """
        entry = await self._entry(folded)
        if entry is None or entry.user_id != user_id:
            return True
        holder = await self._holder(user_id)
        if holder.email_folded == folded:
            return await self.confirm(folded, user_id)
        if not holder.has_left(folded, entry):
            return False
        async with self._stores.shard_of_address(folded).connection() as connection:
            cursor = await connection.execute(SQL["release"], {**_key(folded, entry), "user_id": user_id})
            return await cursor.fetchone() is not None

    async def work_off(self, release: Release) -> bool:
        """Settle a noted address and remove the note; False while a request may be working on it."""
        if not await self.settle(release.email_folded, release.user_id):
            return False
        note = {
            "user_id": release.user_id,
            "email_folded": release.email_folded,
            "noted_at": release.noted_at,
        }
        async with self._stores.shard_of_user(release.user_id).connection() as connection:
            await connection.execute(SQL["forget_release"], note)
        return True

    async def releases_of(self, user_id: UUID) -> list[Release]:
        """The notes of one user."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Release))
            return await (await cursor.execute(SQL["releases_of_user"], {"user_id": user_id})).fetchall()

    async def releases(self, shard: int, *, settled: timedelta, limit: int) -> list[Release]:
        """Notes in a shard that are older than `settled`, oldest first."""
        async with self._stores.shards[shard].single_statements() as connection:
            cursor = connection.cursor(row_factory=class_row(Release))
            return await (await cursor.execute(SQL["releases"], {"settled": settled, "limit": limit})).fetchall()

    async def stale_claims(self, shard: int, *, limit: int) -> list[tuple[str, UUID]]:
        """`(address, user)` of stale claims in a shard, oldest first."""
        async with self._stores.shards[shard].single_statements() as connection:
            cursor = await connection.execute(SQL["stale_claims"], {"stale": CLAIM_STALE, "limit": limit})
            return [(str(row[0]), UUID(str(row[1]))) for row in await cursor.fetchall()]

    async def _entry(self, folded: str) -> _Entry | None:
        async with self._stores.shard_of_address(folded).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(_Entry))
            parameters = {"email_folded": folded, "stale": CLAIM_STALE}
            return await (await cursor.execute(SQL["get_entry"], parameters)).fetchone()

    async def _holder(self, user_id: UUID) -> _Holder:
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(_Holder))
            holder = await (await cursor.execute(SQL["holder"], {"user_id": user_id})).fetchone()
        assert holder is not None, "a SELECT of two subqueries returns one row"
        return holder


def _time(value: object) -> datetime:
    assert isinstance(value, datetime)
    return value


def _key(folded: str, entry: _Entry) -> dict[str, object]:
    return {
        "email_folded": folded,
        "from": entry.user_id,
        "confirmed": entry.confirmed,
        "claimed_at": entry.claimed_at,
    }
