"""The gate of a shard: a transaction enters a bucket before it writes rows of it.

The shard decides, not the map of the process: a closed bucket is left alone, by whatever process. A writer that entered
a bucket keeps it open to the end of its transaction (migrations/shard/0014_closed_buckets.sql).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from domain.topology import Topology
from runtime.postgres.databases import Database, Query
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "gate.sql")
CLOSED: Final = "55B01"  # SQLSTATE of a write to a closed bucket
MOVING_S_MAX: Final = 6.0  # a request waits so long for a bucket; a move keeps it for some tenths of a second
LOOK_S: Final = 0.02
RECENT_S: Final = 60.0  # longer than replicas that are read may lag

T = TypeVar("T")


class BucketMoves(psycopg.OperationalError):
    """The bucket is on its way to another shard for longer than usual. Nothing was written; repeat later."""


def is_closed(error: BaseException) -> bool:
    """Whether a shard refused a write because the bucket is not open there."""
    return isinstance(error, psycopg.Error) and error.sqlstate == CLOSED


class BucketDatabase:
    """The shard of a bucket, wherever the bucket is when it is asked. Used as a `Database`.

    Writes wait while the bucket moves; reads for display do not.
    """

    def __init__(
        self, bucket: int, shards: Sequence[Database], topology: Topology, seen: dict[int, tuple[int, float]]
    ) -> None:
        """`shards` in shard order. `seen`: owner of moved buckets and since when this process reads there."""
        self._bucket = bucket
        self._shards = shards
        self._topology = topology
        self._seen = seen

    @property
    def now(self) -> Database:
        """The shard by the process's map."""
        return self._shards[self._topology.shard_of_bucket(self._bucket)]

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection in a transaction that has entered the bucket. Raises BucketMoves, an OperationalError."""
        end = time.monotonic() + MOVING_S_MAX
        while True:
            shard = self._topology.shard_of_bucket(self._bucket)
            async with self._shards[shard].connection() as connection:
                row = await (await connection.execute(SQL["enter_bucket"], {"bucket": self._bucket})).fetchone()
                if row is None:
                    yield connection
                    return
            state, owner = row
            if time.monotonic() > end:
                raise BucketMoves(f"bucket {self._bucket} is moving to another shard; try again")
            if state == "elsewhere" and owner != shard and owner < len(self._shards):
                self._topology.buckets.learn(self._bucket, owner)
            await asyncio.sleep(LOOK_S)

    async def read(self, query: Query[T], *, subjects: Sequence[str]) -> T:
        """As `Database.read`. Lately moved rows are read from the primary: positions are of the former shard."""
        owner = self._topology.buckets.owner(self._bucket)
        if owner is not None:
            known, since = self._seen.get(self._bucket, (-1, 0.0))
            if known != owner:
                since = time.monotonic()
                self._seen[self._bucket] = owner, since
            if time.monotonic() - since < RECENT_S:
                async with self.now.connection() as connection:
                    return await query(connection)
        return await self.now.read(query, subjects=subjects)

    async def wrote(self, *subjects: str) -> None:
        """As `Database.wrote`."""
        await self.now.wrote(*subjects)
