"""One database: a primary, and a replica for reads that need read-your-writes consistency only.

    async with database.connection() as connection: ...              writes, and reads that decide something
    rows = await database.read(query, subjects=("user:1",))          reads for display
    await database.wrote("user:1", "by:2")                           after a commit, before the answer to the caller

A read goes to the replica if one is configured, it lags by less than the bound, and it has replayed the last write
about the subjects (`runtime.postgres.positions`). In doubt, or when the replica fails during a query, the read goes to
the primary. Without a replica there are no extra round trips.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from runtime.postgres.pool import single_statements
from runtime.postgres.positions import KEPT_MS, Positions
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "databases.sql")
WATCH_S: Final = 0.25
REPLICA_WAIT_S: Final = 0.5  # wait for a connection to a replica; then the primary is read
ASK_S_MAX: Final = 2.0  # for the watch's queries
CLOSE_S_MAX: Final = 5.0
UNKNOWN_COMMIT_S: Final = 15.0
_SAMPLES_MAX: Final = 256  # one minute of samples; no bound on the lag is longer

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
T = TypeVar("T")
Query = Callable[[AsyncConnection[TupleRow]], Awaitable[T]]
_FAILED = (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError)

log = structlog.get_logger(__name__)


class Replica:
    """A streaming replica and its lag. The lag is an upper bound by our own clock: the age of the newest sample of the
    primary's position that the replica has replayed since."""

    def __init__(self, pool: Pool, *, lag_ms_max: int) -> None:
        """`pool` belongs to the database."""
        assert lag_ms_max < KEPT_MS, "positions would expire before the replica has replayed them"
        self.pool = pool
        self._lag_s_max = lag_ms_max / 1000
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MAX)
        self._fresh_at: float | None = None

    @property
    def lag_s(self) -> float | None:
        """The replica has all commits that are older than this; None while the lag is unknown."""
        return None if self._fresh_at is None else time.monotonic() - self._fresh_at

    @property
    def may_be_read(self) -> bool:
        """Whether it lags by less than the bound."""
        lag_s = self.lag_s
        return lag_s is not None and lag_s < self._lag_s_max

    def primary_wrote(self, at: float, position: int) -> None:
        """Note that the primary had flushed up to `position` at this time (`time.monotonic`)."""
        self._samples.append((at, position))

    def replayed(self, position: int) -> None:
        """Note that the replica has replayed up to `position`."""
        while self._samples and self._samples[0][1] <= position:
            self._fresh_at = self._samples.popleft()[0]

    def failed(self) -> None:
        """Do not read the replica again before the watch has measured its lag."""
        self._fresh_at = None
        self._samples.clear()


class Commits:
    """Whether COMMITs of a primary are answered. One that waits for a standby still answers reads, and each probe."""

    def __init__(self) -> None:
        """All were answered so far."""
        self._unknown_at: float | None = None

    def unknown(self) -> None:
        """Note a COMMIT without an answer (`pool.postgres_pool`)."""
        self._unknown_at = time.monotonic()

    @property
    def are_answered(self) -> bool:
        """False for `UNKNOWN_COMMIT_S` after a COMMIT without an answer; then requests try again."""
        return self._unknown_at is None or time.monotonic() - self._unknown_at > UNKNOWN_COMMIT_S


class Database:
    """A primary and optionally a replica. `name` is the same in all processes."""

    def __init__(
        self, name: str, primary: Pool, *, replica: Replica | None, positions: Positions, commits: Commits | None = None
    ) -> None:
        """`primary` and the replica's pool are not open yet; `commits` are those of `primary`."""
        self.commits = commits or Commits()
        self.name = name
        self.replica = replica
        self._primary = primary
        self._positions = positions
        self._away = False

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
        """A connection to the primary, in a transaction that commits when the block ends without an exception."""
        return self._primary.connection()

    def single_statements(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
        """A connection to the primary on which each statement is a transaction of its own: for loops that only look."""
        return single_statements(self._primary)

    async def read(self, query: Query[T], *, subjects: Sequence[str]) -> T:
        """The result of `query`, on the replica if it is fresh enough, else on the primary. May call `query` twice."""
        replica = self.replica
        if replica is not None and replica.may_be_read:
            position = await self._positions.newest(self.name, subjects)
            if position is not None:
                try:
                    async with replica.pool.connection(REPLICA_WAIT_S) as connection:
                        if await _has_replayed(connection, position):
                            return await query(connection)
                except _FAILED as error:
                    log.warning("a read goes to the primary", database=self.name, error=type(error).__name__)
                    replica.failed()
        async with self._primary.connection() as connection:
            return await query(connection)

    async def wrote(self, *subjects: str) -> None:
        """Require later reads of these subjects to see the write that was just committed."""
        if self.replica is None:
            return
        position = None
        try:
            async with self._primary.connection() as connection:
                position = await _position(connection, "flushed")
        except _FAILED as error:
            # The write is committed: an exception here would report it as failed.
            log.warning("a write cannot be placed", database=self.name, error=type(error).__name__)
        await self._positions.remember(self.name, subjects, position)

    async def watch(self) -> None:
        """Measure the replica's lag until cancelled."""
        while self.replica is not None:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    await self.look(self.replica)
            except _FAILED as error:
                if not self._away:
                    log.warning("a replica cannot be followed", database=self.name, error=type(error).__name__)
                self._away = True
            else:
                self._away = False
            await asyncio.sleep(WATCH_S)

    async def look(self, replica: Replica) -> None:
        """Compare the positions of primary and replica once."""
        at = time.monotonic()
        async with self._primary.connection() as connection:
            flushed = await _position(connection, "flushed")
        if flushed is not None:
            replica.primary_wrote(at, flushed)
        async with replica.pool.connection(REPLICA_WAIT_S) as connection:
            replayed = await _position(connection, "replayed")
        if replayed is None:
            replica.failed()  # it was promoted, so it does not follow our primary
        else:
            replica.replayed(replayed)

    async def open(self) -> None:
        """Open the pools. Connections are made in the background, so an unreachable server does not block the start."""
        await self._primary.open()
        if self.replica is not None:
            await self.replica.pool.open()

    async def close(self) -> None:
        """Close the pools, in bounded time."""
        pools = [self._primary] + ([self.replica.pool] if self.replica is not None else [])
        await asyncio.gather(*(pool.close(CLOSE_S_MAX) for pool in pools))


async def _position(connection: AsyncConnection[TupleRow], statement: str) -> int | None:
    row = await (await connection.execute(SQL[statement])).fetchone()
    return None if row is None or row[0] is None else int(row[0])


async def _has_replayed(connection: AsyncConnection[TupleRow], position: int) -> bool:
    """Ask on the connection that will be read: several replicas may share one address."""
    if position == 0:
        return True
    replayed = await _position(connection, "replayed")
    return replayed is not None and replayed >= position
