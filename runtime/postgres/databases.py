"""One database: its primary, and a replica that takes reads as long as nobody can tell the difference.

    async with database.connection() as connection: ...              writes, and reads that decide something
    rows = await database.read(query, subjects=("user:1",))          reads that are shown
    await database.wrote("user:1", "by:2")                           after a commit, before anybody is told of it

A read goes to the replica if it is there, lags by less than the bound, and has replayed what was last written about the
subjects (`runtime.postgres.positions`); in any doubt, and when the replica fails in the middle, to the primary. Without a replica
none of this costs anything.
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

from runtime.postgres.positions import KEPT_MS, Positions
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "databases.sql")
WATCH_S: Final = 0.25
REPLICA_WAIT_S: Final = 0.5  # for a connection to a replica; then the primary is asked
ASK_S_MAX: Final = 2.0  # for the watch's questions
CLOSE_S_MAX: Final = 5.0
_SAMPLES_MAX: Final = 256  # a minute's; an older one is beyond every bound

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
T = TypeVar("T")
Query = Callable[[AsyncConnection[TupleRow]], Awaitable[T]]
_FAILED = (psycopg.OperationalError, psycopg.InterfaceError, OSError, TimeoutError)

log = structlog.get_logger(__name__)


class Replica:
    """A streaming replica and how far it is. Its lag is a bound, by our own clock: the age of the newest moment at which
    the primary had written no more than the replica has replayed since."""

    def __init__(self, pool: Pool, *, lag_ms_max: int) -> None:
        """`pool` is owned by the database."""
        assert lag_ms_max < KEPT_MS, "what was written would be forgotten before the replica has it"
        self.pool = pool
        self._lag_s_max = lag_ms_max / 1000
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MAX)
        self._fresh_at: float | None = None

    @property
    def lag_s(self) -> float | None:
        """What was committed longer ago than this is there; None while that is not known."""
        return None if self._fresh_at is None else time.monotonic() - self._fresh_at

    @property
    def may_be_read(self) -> bool:
        """Whether it lags by less than the bound."""
        lag_s = self.lag_s
        return lag_s is not None and lag_s < self._lag_s_max

    def primary_wrote(self, at: float, position: int) -> None:
        """At this moment (`time.monotonic`) the primary had flushed up to here."""
        self._samples.append((at, position))

    def replayed(self, position: int) -> None:
        """The replica has replayed up to here."""
        while self._samples and self._samples[0][1] <= position:
            self._fresh_at = self._samples.popleft()[0]

    def failed(self) -> None:
        """Not read again before the watch has heard of it."""
        self._fresh_at = None
        self._samples.clear()


class Database:
    """A primary, perhaps with a replica; `name` is the same in all processes."""

    def __init__(self, name: str, primary: Pool, *, replica: Replica | None, positions: Positions) -> None:
        """Unopened pools."""
        self.name = name
        self.replica = replica
        self._primary = primary
        self._positions = positions
        self._away = False

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[TupleRow]]:
        """A connection to the primary, in a transaction that commits when the block ends well."""
        return self._primary.connection()

    async def read(self, query: Query[T], *, subjects: Sequence[str]) -> T:
        """What `query` answers, on a replica where it may be and on the primary otherwise. It may be called twice."""
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
        """Something about these subjects was committed: from now on nobody reads them as they were before."""
        if self.replica is None:
            return
        position = None
        try:
            async with self._primary.connection() as connection:
                position = await _position(connection, "flushed")
        except _FAILED as error:
            # It was committed, and must not be taken for failed.
            log.warning("a write cannot be placed", database=self.name, error=type(error).__name__)
        await self._positions.remember(self.name, subjects, position)

    async def watch(self) -> None:
        """Follow the replica for ever. Cancel to stop."""
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
        """Compare primary and replica once."""
        at = time.monotonic()
        async with self._primary.connection() as connection:
            flushed = await _position(connection, "flushed")
        if flushed is not None:
            replica.primary_wrote(at, flushed)
        async with replica.pool.connection(REPLICA_WAIT_S) as connection:
            replayed = await _position(connection, "replayed")
        if replayed is None:
            replica.failed()  # it was promoted: another primary, and none that we know
        else:
            replica.replayed(replayed)

    async def open(self) -> None:
        """Connections come in the background; a server that is away does not keep us from starting."""
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
    """Asked on the connection that is to be read from: behind one address may be several replicas."""
    if position == 0:
        return True
    replayed = await _position(connection, "replayed")
    return replayed is not None and replayed >= position
