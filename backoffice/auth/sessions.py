"""Ends the sessions of a user at once: refresh tokens in the shard, access tokens by a generation in shard and Redis.

    await sessions.end(user_id)                    logins and access tokens
    await sessions.end_access_tokens(user_id)      access tokens only; refresh tokens stay valid

    generation = await sessions.note_within(connection, user_id)    the same in the caller's transaction,
    await sessions.publish(user_id, generation)                     and after its commit

Each end raises the user's generation, and each token carries the generation that its minting process read from the
shard (`refresh.Login`). A login or refresh locks the account for this, and so does an end: exactly the tokens of before
the end have a lower generation, whatever the clocks say.

The shard is the source of truth; Redis carries generations to the other processes. `run` publishes again after a crash
between the two, or after Redis lost data.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final
from uuid import UUID

import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from backoffice.auth.refresh import end_families
from backoffice.stores import AWAY, Stores
from runtime.audit import Action, object_name, record
from runtime.postgres.sql import load_sql
from runtime.process.supervision import TaskSupervisor
from runtime.process.tasks import until_tick
from runtime.redis.cluster import run_ids
from runtime.tokens import session_ends
from runtime.tokens.session_ends import KEPT_S, NOTES_MAX, SessionEnds

SQL = load_sql(__package__, "sessions.sql")
PERIOD_S: Final = 2.0
RECENT_S: Final = 300  # a round publishes ends of this age again; far longer than from a commit to its publication
# The shards remember an end longer than any other process does: after it, new tokens have generation 0.
REMEMBERED_S: Final = KEPT_S + 3600
FORGET_EVERY_S: Final = 3600.0

log = structlog.get_logger(__name__)


class Sessions:
    """One instance a process. `ends` is the copy of this process, and is updated first."""

    def __init__(self, stores: Stores, ends: SessionEnds) -> None:
        """Uses both, owns nothing."""
        self._stores = stores
        self._ends = ends
        self._run_id = ""  # of the Redis that received all ends
        self._failing = False
        self._forgotten_at = 0.0

    async def end(self, user_id: UUID) -> None:
        """End all refresh and access tokens of the user. May be repeated, also for a user without an account."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["lock_account"], {"user_id": user_id})
            await end_families(connection, user_id)
            generation = await self.note_within(connection, user_id)
            await record(connection, Action.USER_END_SESSIONS, object_name("user", user_id))
        await self.publish(user_id, generation)

    async def end_access_tokens(self, user_id: UUID) -> None:
        """As `end`, without the refresh tokens, which give new access tokens."""
        async with self._stores.shard_of_user(user_id).connection() as connection:
            await connection.execute(SQL["lock_account"], {"user_id": user_id})
            generation = await self.note_within(connection, user_id)
        await self.publish(user_id, generation)

    async def note_within(self, connection: AsyncConnection[TupleRow], user_id: UUID) -> int:
        """End access tokens in the caller's transaction on the user's shard, which has locked or written the account.

        Returns the generation to publish after the commit.
        """
        end = {"user_id": user_id, "now_ms": int(time.time() * 1000)}
        row = await (await connection.execute(SQL["end_sessions"], end)).fetchone()
        assert row is not None, "the statement always writes a row"
        return int(row[0])

    async def publish(self, user_id: UUID, generation: int) -> None:
        """Publish an end to all processes. Without Redis `run` publishes it later; this is not an error."""
        self._ends.take(user_id.bytes, generation)
        try:
            await session_ends.publish(self._stores.redis, [(user_id, generation)])
        except AWAY as error:
            log.warning("ended sessions will be published later", error=type(error).__name__)

    async def run(self, background: TaskSupervisor) -> None:
        """Publish ends again, in rounds of `PERIOD_S`, until cancelled. Rounds that keep failing are a problem."""
        with background.rounds("sessions") as beat:
            while True:
                try:
                    await self.step()
                    self._failing = False
                    beat()
                except AWAY as error:
                    if not self._failing:
                        log.warning("ended sessions cannot be published", error=type(error).__name__)
                    self._failing = True
                    beat()
                except Exception:
                    log.exception("publishing ended sessions failed")
                    self._failing = True
                await asyncio.sleep(until_tick(PERIOD_S))

    async def step(self) -> int:
        """One round: publish recent ends, or all when Redis is not the server of the last round; their number."""
        servers = await run_ids(self._stores.redis)
        now = int(time.time())
        is_other_server = servers != self._run_id
        # One end more than Redis keeps, so that Redis merges the oldest.
        parameters = {"since": now - (KEPT_S if is_other_server else RECENT_S), "limit": NOTES_MAX + 1}
        forget = time.monotonic() - self._forgotten_at > FORGET_EVERY_S or not self._forgotten_at
        published = 0
        for shard in self._stores.shards:
            async with shard.single_statements() as connection:
                if forget:
                    await connection.execute(SQL["forget_ends"], {"before": now - REMEMBERED_S})
                rows = await (await connection.execute(SQL["ends_since"], parameters)).fetchall()
            # Oldest first, in the order in which they were noted: at the bound, Redis merges the oldest.
            await session_ends.publish(self._stores.redis, [(row[0], row[1]) for row in reversed(rows)])
            published += len(rows)
        self._run_id = servers
        if forget:
            self._forgotten_at = time.monotonic()
        return published
