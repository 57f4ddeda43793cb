"""Connections to the shards for workers that must not wait for one that is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import psycopg
import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from runtime.buckets.gate import is_closed
from workers.consuming import REFUSED

AWAY_S: Final = 5.0
CONNECTION_S: Final = 2.0  # for a connection of the pool, which usually has a free one
log = structlog.get_logger()

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]


class ShardAway(Exception):
    """A shard does not answer, or did not a moment ago. The message names it."""


class Shards:
    """The shards of one worker; it remembers those that are away."""

    def __init__(self, pools: Sequence[Pool], *, now: Callable[[], float] = time.monotonic) -> None:
        """`pools` are open, in shard order."""
        self._pools = pools
        self._now = now
        self._away_until = dict.fromkeys(range(len(pools)), 0.0)
        self._away: dict[int, str] = {}

    @property
    def problem(self) -> str | None:
        """The shards that did not answer at the last request; None when all did."""
        return ", ".join(f"shard {shard}: {error}" for shard, error in sorted(self._away.items())) or None

    @asynccontextmanager
    async def connection(self, shard: int) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection. After a failure one request in `AWAY_S` asks the shard again, the others are not held up.

        Raises ShardAway, at once while the shard is known to be away, and psycopg's errors of the data (REFUSED).
        """
        if self._now() < self._away_until[shard]:
            raise ShardAway(f"shard {shard} is away")
        try:
            async with self._pools[shard].connection(timeout=CONNECTION_S) as connection:
                yield connection
        except (psycopg.Error, OSError, TimeoutError) as error:
            if isinstance(error, REFUSED):
                raise
            if is_closed(error):  # the shard is well: the bucket of this message moves
                raise ShardAway(f"a bucket moves from shard {shard}") from error
            self._away_until[shard] = self._now() + AWAY_S
            self._away[shard] = type(error).__name__
            log.warning("shard away", shard=shard, error=f"{type(error).__name__}: {error}")
            raise ShardAway(f"shard {shard} is away") from error
        self._away.pop(shard, None)
