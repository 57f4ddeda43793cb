"""Deletes entries that are older than the retention, in every database. Several processes may run it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg
import structlog

from backoffice.audit.store import delete_old
from backoffice.stores import AWAY
from runtime.postgres.databases import Database
from runtime.process.supervision import TaskSupervisor

EVERY_S: Final = 3600.0
LOOK_S: Final = 10.0
BATCH_ENTRIES: Final = 5000
WORK_S_MAX: Final = 30.0  # of one step; what is left is deleted by the next one, `LOOK_S` later
ROUND_S_MAX: Final = 300.0

log = structlog.get_logger(__name__)


class Retention:
    """`step` is one round over all databases."""

    def __init__(self, databases: tuple[Database, ...], *, days: int) -> None:
        """Uses the databases, owns nothing."""
        self._databases = databases
        self._kept = timedelta(days=days)
        self._done_at: float | None = None

    async def run(self, background: TaskSupervisor) -> None:
        """Delete old entries every hour, until cancelled. A database that is away is tried again soon."""
        with background.rounds("audit retention", s_max=ROUND_S_MAX) as beat:
            while True:
                if self._done_at is None or time.monotonic() - self._done_at >= EVERY_S:
                    try:
                        deleted, is_done = await self.step()
                        if is_done:
                            self._done_at = time.monotonic()
                        if deleted:
                            log.info("old audit entries deleted", entries=deleted)
                        beat()
                    except AWAY as error:
                        log.warning("old audit entries cannot be deleted", error=type(error).__name__)
                        beat()
                    except psycopg.Error as error:  # such as a table that a migration has not made yet
                        log.error("deleting old audit entries failed", error=type(error).__name__)
                else:
                    beat()
                await asyncio.sleep(LOOK_S)

    async def step(self, *, work_s_max: float = WORK_S_MAX) -> tuple[int, bool]:
        """Delete batches for at most `work_s_max`; the number of entries, and whether all old ones are deleted."""
        until = time.monotonic() + work_s_max
        before = datetime.now(UTC) - self._kept
        deleted = 0
        for database in self._databases:
            while found := await delete_old(database, before, limit=BATCH_ENTRIES):
                deleted += found
                if time.monotonic() >= until:
                    return deleted, False
                if found < BATCH_ENTRIES:
                    break
        return deleted, True
