"""Positions of recent writes, shared by all processes in the cache Redis: a replica must replay them before a read.

A subject is an entity that is read, such as an account, or the caller that changed one. Its position is the end of its
last write in the primary's write-ahead log. The cache Redis may lose all data and be unreachable at any time, so a mark
holds the time since which positions are complete. When the mark is missing or young, any subject may have been written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import topology
from runtime.redis.clock import milliseconds
from runtime.redis.scripts import load_script, run

log = structlog.get_logger(__name__)

KEPT_MS: Final = 60_000  # longer than the lag at which a replica is still read
CALL_S_MAX: Final = 0.25  # timeout of the client that is passed in: bounds the delay of a read
_PAUSE_S: Final = 1.0  # no calls for this time after a failure
_RAISE = load_script("runtime.postgres", "position_raise-1")


class Positions:
    """Positions of one process's reads and writes; shared by its databases."""

    def __init__(self, redis: Redis) -> None:
        """Uses the client, does not own it. Its timeout should be `CALL_S_MAX`."""
        self._redis = redis
        self._resumes_at = 0.0
        self._owes = False  # a write could not be stored: the mark must go, because positions are incomplete

    async def remember(self, database: str, subjects: Sequence[str], position: int | None) -> None:
        """Require replicas to have replayed this position before these subjects are read; None for an unknown position.

        Never raises. When Redis is unreachable, a later call removes the mark, and reads go to primaries for a while.
        """
        self._owes = self._owes or position is None
        try:
            await self._pay()
            if position is None:
                return
            for subject in subjects:
                await run(self._redis, _RAISE, [topology.position_key(database, subject)], [position, KEPT_MS])
        except (RedisError, OSError, TimeoutError) as error:
            self._owes = True
            self._failed(error)

    async def newest(self, database: str, subjects: Sequence[str]) -> int | None:
        """The position that a replica must have replayed for these subjects, 0 for any; None when it is unknown."""
        if time.monotonic() < self._resumes_at:
            return None
        try:
            await self._pay()
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                keys = [topology.position_key(database, subject) for subject in subjects]
                pipeline.mget([topology.POSITIONS_SINCE_KEY, *keys])
                now, values = await pipeline.execute()
            return await self._judge(milliseconds(now), values)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return None

    async def _judge(self, now_ms: int, values: list[bytes | None]) -> int | None:
        since, *positions = values
        if since is None:
            await self._redis.set(topology.POSITIONS_SINCE_KEY, now_ms, nx=True)
            return None
        if now_ms - int(since) < KEPT_MS:
            return None
        return max((int(position) for position in positions if position is not None), default=0)

    async def _pay(self) -> None:
        if self._owes:
            await self._redis.delete(topology.POSITIONS_SINCE_KEY)
            self._owes = False

    def _failed(self, error: Exception) -> None:
        if time.monotonic() >= self._resumes_at:
            log.warning("reads go to primaries, positions are not known", error=type(error).__name__)
        self._resumes_at = time.monotonic() + _PAUSE_S
