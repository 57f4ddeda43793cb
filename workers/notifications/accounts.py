"""The recipient of a notice and the token of its letter: the accounts as the notification worker reads them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from domain.mailed_tokens import LINKS_MAX, secret_hash
from domain.notices import Notice, NoticeKind
from domain.topology import Topology
from runtime.postgres.sql import load_sql
from workers.consuming import REFUSED

AWAY_S: Final = 5.0
CONNECTION_S: Final = 2.0  # for a connection of the pool, which usually has a free one
SQL = load_sql(__package__, "accounts.sql")
log = structlog.get_logger()

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


@dataclass(frozen=True, slots=True)
class Recipient:
    """An account that gets mail, at its address or at one that it has left."""

    user_id: UUID
    email: str = field(repr=False)
    email_folded: str = field(repr=False)
    verified: bool


class ShardAway(Exception):
    """A shard does not answer, or did not a moment ago. The message names it."""


class Accounts:
    """Accounts in their shards. Every method raises ShardAway, at once while the shard is known to be away."""

    def __init__(
        self, shards: Sequence[Pool], topology: Topology, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`shards` are open, in shard order."""
        self._shards = shards
        self._topology = topology
        self._now = now
        self._away_until = dict.fromkeys(range(len(shards)), 0.0)
        self._away: dict[int, str] = {}

    @property
    def problem(self) -> str | None:
        """The shards that did not answer at the last request; None when all did."""
        return ", ".join(f"shard {shard}: {error}" for shard, error in sorted(self._away.items())) or None

    @asynccontextmanager
    async def _shard(self, shard: int) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection. After a failure one request in `AWAY_S` asks the shard again, the others are not held up."""
        if self._now() < self._away_until[shard]:
            raise ShardAway(f"shard {shard} is away")
        try:
            async with self._shards[shard].connection(timeout=CONNECTION_S) as connection:
                yield connection
        except (psycopg.Error, OSError, TimeoutError) as error:
            if isinstance(error, REFUSED):
                raise
            self._away_until[shard] = self._now() + AWAY_S
            self._away[shard] = type(error).__name__
            log.warning("shard away", shard=shard, error=f"{type(error).__name__}: {error}")
            raise ShardAway(f"shard {shard} is away") from error
        self._away.pop(shard, None)

    async def recipient(self, notice: Notice) -> Recipient | None:
        """The recipient of the notice; None when there is no such account (any more)."""
        user_id = notice.user_id
        if notice.kind is NoticeKind.EMAIL_CHANGED:
            assert notice.email_folded is not None and user_id is not None, "parse_notice checks it"
            # The address may belong to another account by now: the letter is for the reader of the mailbox.
            return Recipient(user_id, email=notice.email_folded, email_folded=notice.email_folded, verified=False)
        if notice.email_folded is not None:
            async with self._shard(self._topology.shard_of_address(notice.email_folded)) as connection:
                found = await connection.execute(SQL["find_address"], {"email_folded": notice.email_folded})
                row = await found.fetchone()
            if row is None:
                return None
            user_id = row[0]
        assert user_id is not None
        async with self._shard(self._topology.shard_of_user(user_id)) as connection:
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
        async with self._shard(self._topology.shard_of_user(recipient.user_id)) as connection:
            if await (await connection.execute(SQL["issue_token"], token)).fetchone() is None:
                return False
            await connection.execute(SQL["drop_old_tokens"], {**token, "kept": LINKS_MAX})
        return True
