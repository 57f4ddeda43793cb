"""The recipient of a notice and the token of its letter: the accounts as the notification worker reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from domain.mailed_tokens import LINKS_MAX, secret_hash
from domain.notices import Notice, NoticeKind
from domain.topology import Topology
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "accounts.sql")

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


@dataclass(frozen=True, slots=True)
class Recipient:
    """An account that gets mail, at its address or at one that it has left."""

    user_id: UUID
    email: str = field(repr=False)
    email_folded: str = field(repr=False)
    verified: bool


class Accounts:
    """Accounts in their shards. Every method raises psycopg.Error when a shard does not answer."""

    def __init__(self, shards: Sequence[Pool], topology: Topology) -> None:
        """`shards` are open, in shard order."""
        self._shards = shards
        self._topology = topology

    async def recipient(self, notice: Notice) -> Recipient | None:
        """The recipient of the notice; None when there is no such account (any more)."""
        user_id = notice.user_id
        if notice.kind is NoticeKind.EMAIL_CHANGED:
            assert notice.email_folded is not None and user_id is not None, "parse_notice checks it"
            # The address may belong to another account by now: the letter is for the reader of the mailbox.
            return Recipient(user_id, email=notice.email_folded, email_folded=notice.email_folded, verified=False)
        if notice.email_folded is not None:
            shard = self._shards[self._topology.shard_of_address(notice.email_folded)]
            async with shard.connection() as connection:
                found = await connection.execute(SQL["find_address"], {"email_folded": notice.email_folded})
                row = await found.fetchone()
            if row is None:
                return None
            user_id = row[0]
        assert user_id is not None
        async with self._shards[self._topology.shard_of_user(user_id)].connection() as connection:
            cursor = connection.cursor(row_factory=class_row(Recipient))
            recipient = await (await cursor.execute(SQL["recipient"], {"user_id": user_id})).fetchone()
        if recipient is None or notice.email_folded not in (None, recipient.email_folded):
            return None
        return recipient

    async def issue_token(self, notice: Notice, recipient: Recipient, *, secret: bytes, life: timedelta) -> bool:
        """Make the secret valid for `life`; False when a newer token was used or the account has changed."""
        token = {
            "user_id": recipient.user_id,
            "purpose": notice.kind.value,
            "notice_id": notice.id,
            "secret_hash": secret_hash(secret),
            "email_folded": recipient.email_folded,
            "life": life,
        }
        async with self._shards[self._topology.shard_of_user(recipient.user_id)].connection() as connection:
            if await (await connection.execute(SQL["issue_token"], token)).fetchone() is None:
                return False
            await connection.execute(SQL["drop_old_tokens"], {**token, "kept": LINKS_MAX})
        return True
