"""Ends a user's sessions at once: refresh tokens in the shard, access tokens by `not_before`, in the shard and at every edge.

    await sessions.end(user_id)                  logins and access tokens
    await sessions.end_access_tokens(user_id)    access tokens only: a login goes on, by a refresh

    seconds = await sessions.note_within(connection, user_id)    the same together with what it is the consequence of,
    await sessions.tell(user_id, seconds)                        and once that is committed

The shard is the truth, Redis the way to the edges: a crash between the two, or a Redis that lost it, is made good by `run`.
Tokens minted after the end, even in the same second, are good: whoever mints asks the shard (`refresh.Login`).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final
from uuid import UUID

import psycopg
import redis.exceptions
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.auth.refresh import end_families
from backoffice.stores import Stores
from backoffice.web.messages import Role
from runtime.postgres.sql import load_sql
from runtime.tokens.session_ends import KEPT_S, NOTES_MAX, SessionEnds, publish

SQL = load_sql(__package__, "sessions.sql")
PERIOD_S: Final = 2.0
RECENT_S: Final = 300  # what a round tells again; far longer than from a commit to its message
FORGET_EVERY_S: Final = 3600.0
_AWAY = (psycopg.OperationalError, redis.exceptions.RedisError, TimeoutError, OSError)

log = structlog.get_logger(__name__)


class Sessions:
    """One instance a process. `ends` is the process's own copy, which is told first."""

    def __init__(self, stores: Stores, ends: SessionEnds) -> None:
        """Uses them, owns nothing."""
        self._stores = stores
        self._ends = ends
        self._run_id = ""  # of the Redis that was told everything
        self._failing = False
        self._forgotten_at = 0.0

    async def end(self, user_id: UUID) -> None:
        """Everything issued to the user until now counts no more. May be repeated, also for a user without account."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await end_families(connection, user_id)
            seconds = await self.note_within(connection, user_id)
        await self.tell(user_id, seconds)

    async def end_access_tokens(self, user_id: UUID) -> None:
        """As `end`, but for logins: their refresh tokens give new access tokens."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            seconds = await self.note_within(connection, user_id)
        await self.tell(user_id, seconds)

    async def note_within(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
        """As `end_access_tokens`, in the caller's transaction on the user's shard; what to `tell` after its commit."""
        # The second that is passing counts as before: what was issued in it must end, too.
        seconds = int(time.time()) + 1
        await connection.execute(SQL["end_sessions"], {"user_id": user_id, "not_before": seconds})
        return seconds

    async def tell(self, user_id: UUID, seconds: int) -> None:
        """Have it known everywhere. Does not fail for Redis: edges learn of it when it is back."""
        self._ends.take(user_id.bytes, seconds)
        try:
            await publish(self._stores.redis, [(user_id, seconds)])
        except _AWAY as error:
            log.warning("edges learn later of ended sessions", error=type(error).__name__)

    async def role_of(self, user_id: UUID) -> Role | None:
        """The role of an account, straight from its shard; None without one."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            row = await (await connection.execute(SQL["get_role"], {"user_id": user_id})).fetchone()
        return None if row is None else Role(row[0])

    async def run(self) -> None:
        """Tell again for ever what may not have been told. Cancel to stop."""
        while True:
            try:
                await self.step()
                self._failing = False
            except _AWAY as error:
                if not self._failing:
                    log.warning("ended sessions cannot be told", error=type(error).__name__)
                self._failing = True
            except Exception:
                log.exception("telling ended sessions failed")
                self._failing = True
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> int:
        """One round: the recent ends, or all of them when this Redis is not the one of the last round; how many."""
        info = await self._stores.redis.info("server")
        now = int(time.time())
        whole = info["run_id"] != self._run_id
        parameters = {
            "since": now - (KEPT_S if whole else RECENT_S),
            "limit": NOTES_MAX + 1,
        }  # beyond it: one for everybody
        forget = time.monotonic() - self._forgotten_at > FORGET_EVERY_S or not self._forgotten_at
        told = 0
        for shard in self._stores.shards:
            async with shard.connection() as connection:
                if forget:
                    await connection.execute(SQL["forget_ends"], {"before": now - KEPT_S})
                rows = await (await connection.execute(SQL["ends_since"], parameters)).fetchall()
            # The oldest first, as they were noted: at the bound it is them that become one for everybody.
            await publish(self._stores.redis, [(row[0], row[1]) for row in reversed(rows)])
            told += len(rows)
        self._run_id = info["run_id"]
        if forget:
            self._forgotten_at = time.monotonic()
        return told
