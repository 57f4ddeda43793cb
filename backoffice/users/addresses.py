"""The login index: which user an address leads to, sharded by the address's hash. Knows no accounts beyond their addresses.

A user's row says which address the user has; the index says that nobody else has it. They are in different databases, so
a new address is claimed, then written into the user's row, then confirmed. A claim is a lease: the row is written only
within its first `CLAIM_WORK`, and nobody else takes the claim over before `CLAIM_STALE`, by clocks of database servers that
agree far better than that. So at any moment after a crash the user's row alone tells what the entry ought to be, and
`settle` makes it so. Entries are found by their claim or by a note in `login_releases`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg.rows import class_row

from backoffice.stores import Stores
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "addresses.sql")
CLAIM_WORK = timedelta(seconds=30)  # twice the time that a request may take
CLAIM_STALE = timedelta(seconds=60)
_TRIES = 3  # an entry that changes hands this often meanwhile is in use


class ClaimLapsed(TimeoutError):
    """The claim was too old when the user's row was to be written: nothing was."""


@dataclass(frozen=True, slots=True)
class Release:
    """A note that this address may be left over of this user."""

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
    """What a user's shard says: the address, None without a row; and whether there was an account."""

    email_folded: str | None
    erased: bool

    def has_left(self, folded: str, entry: _Entry) -> bool:
        """Whether the entry leads to nobody, and nobody is at work to change that."""
        if self.email_folded == folded:
            return False
        if self.erased:
            return True  # no row of this user is ever written again
        # An entry that is confirmed and whose user has another address now was left behind. Without a row it may be a
        # registration at work, as long as its claim is young.
        return entry.stale if not entry.confirmed else self.email_folded is not None


class Addresses:
    """The index in its shards."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._stores = stores

    async def claim(self, folded: str, user_id: UUID) -> datetime | None:
        """When the address was claimed for the user, or None when it is in use. Heals what a crash has left of it."""
        shard = self._stores.shard_of_address(folded)
        for _ in range(_TRIES):
            async with shard.connection() as connection:
                row = await (
                    await connection.execute(SQL["claim_address"], {"email_folded": folded, "user_id": user_id})
                ).fetchone()
            if row is not None:
                return _time(row[0])
            entry = await self._entry(folded)
            if entry is None:
                continue  # released meanwhile
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
        """The user's row has the address: whether the entry is the user's."""
        async with self._stores.shard_of_address(folded).connection() as connection:
            cursor = await connection.execute(SQL["confirm"], {"email_folded": folded, "user_id": user_id})
            return await cursor.fetchone() is not None

    async def user_of(self, folded: str) -> UUID | None:
        """To whom the entry leads. Whether the user has this address is for the user's row to say."""
        entry = await self._entry(folded)
        return None if entry is None else entry.user_id

    async def settle(self, folded: str, user_id: UUID) -> bool:
        """Make this user's entry agree with the user's row; False while somebody may be at work on it.

        The entry is read before the row and changed only if it is the same still: whoever is to write the address into the
        row claims it first, which changes the entry.
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
        """Settle a noted address and remove the note; False while somebody may be at work on it."""
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
        """What is noted of one user."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Release))
            return await (await cursor.execute(SQL["releases_of_user"], {"user_id": user_id})).fetchall()

    async def releases(self, shard: int, *, settled: timedelta, limit: int) -> list[Release]:
        """Notes in a shard that are older than `settled`, the oldest first."""
        async with self._stores.shards[shard].connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Release))
            return await (await cursor.execute(SQL["releases"], {"settled": settled, "limit": limit})).fetchall()

    async def stale_claims(self, shard: int, *, limit: int) -> list[tuple[str, UUID]]:
        """`(address, user)` of claims in a shard whose work must be over, the oldest first."""
        async with self._stores.shards[shard].connection() as connection:
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
        assert holder is not None, "a row of two subqueries"
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
