"""The recipient of a notice and the token of its letter: the accounts as the notification worker reads them."""

from __future__ import annotations

from datetime import timedelta

from psycopg.rows import class_row

from domain.mailed_tokens import LINKS_MAX, secret_hash
from domain.notices import Notice, NoticeKind
from domain.topology import Topology
from notices.letters import Recipient
from runtime.postgres.sql import load_sql
from workers.shards import Shards

SQL = load_sql(__package__, "accounts.sql")


class Accounts:
    """Accounts in their shards. Every method raises ShardAway, at once while the shard is known to be away."""

    def __init__(self, shards: Shards, topology: Topology) -> None:
        """Uses its arguments, owns nothing."""
        self._shards = shards
        self._topology = topology

    @property
    def problem(self) -> str | None:
        """The shards that did not answer at the last request; None when all did."""
        return self._shards.problem

    async def recipient(self, notice: Notice) -> Recipient | None:
        """The recipient of the notice; None when there is no such account (any more)."""
        user_id = notice.user_id
        if notice.kind is NoticeKind.EMAIL_CHANGED:
            assert notice.email_folded is not None and user_id is not None, "parse_notice checks it"
            async with self._shards.connection(self._topology.shard_of_user(user_id)) as connection:
                row = await (await connection.execute(SQL["language"], {"user_id": user_id})).fetchone()
            # The address may belong to another account by now: the letter is for the reader of the mailbox.
            return Recipient(
                user_id,
                notice.email_folded,
                notice.email_folded,
                verified=False,
                language=None if row is None else row[0],
            )
        if notice.email_folded is not None:
            shard = self._topology.shard_of_address(notice.email_folded)
            async with self._shards.connection(shard) as connection:
                found = await connection.execute(SQL["find_address"], {"email_folded": notice.email_folded})
                row = await found.fetchone()
            if row is None:
                return None
            user_id = row[0]
        assert user_id is not None
        async with self._shards.connection(self._topology.shard_of_user(user_id)) as connection:
            cursor = connection.cursor(row_factory=class_row(Recipient))
            parameters = {"user_id": user_id, "kind": notice.kind.value}
            recipient = await (await cursor.execute(SQL["recipient"], parameters)).fetchone()
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
        async with self._shards.connection(self._topology.shard_of_user(recipient.user_id)) as connection:
            if await (await connection.execute(SQL["issue_token"], token)).fetchone() is None:
                return False
            await connection.execute(SQL["drop_old_tokens"], {**token, "kept": LINKS_MAX})
        return True
