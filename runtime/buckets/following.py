"""Keeps a process's map of moved buckets up to date, and tells the mover which map the process has.

The truth is in the catalogue (`bucket_owner`); its copy in the reservation Redis is pushed, and read again every ten
seconds. A process with an old map loses nothing: each shard refuses writes to buckets that it does not own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain.topology import BUCKETS_CHANNEL, BUCKETS_KEY, BUCKETS_KNOWN_KEY, Topology
from runtime.process.supervision import TaskEnded, together
from runtime.redis.channel import Channel

TELL_S: Final = 10.0
SILENT_S_MAX: Final = 40.0  # a process that told nothing for so long has ended

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What a process told of itself: its name, its map's version, its number of shards, and how long ago."""

    process: str
    version: int
    shards: int
    age_s: float


async def read(redis: Redis) -> tuple[int, dict[int, int]]:
    """Version and owners in Redis: 0 and none without a map. A malformed one is logged and ignored."""
    raw = cast(bytes | None, await redis.get(BUCKETS_KEY))
    if raw is None:
        return 0, {}
    try:
        document = orjson.loads(raw)
        owners = {int(bucket): int(shard) for bucket, shard in document["owners"].items()}
        return int(document["version"]), owners
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.error("the map of buckets is malformed", error=type(error).__name__)
        return 0, {}


async def refresh(redis: Redis, topology: Topology) -> bool:
    """Read the map; whether it was newer than ours."""
    version, owners = await read(redis)
    unknown = max(owners.values(), default=0)
    if unknown >= topology.shards:
        log.error("the map names a shard that is not configured here", shard=unknown, shards=topology.shards)
        return False
    return topology.buckets.adopt(version, owners)


async def publish(redis: Redis, *, version: int, owners: dict[int, int]) -> None:
    """Put the map of the catalogue into Redis and announce it. Repeating it changes nothing."""
    document = {"version": version, "owners": {str(bucket): shard for bucket, shard in sorted(owners.items())}}
    await redis.set(BUCKETS_KEY, orjson.dumps(document))
    await redis.publish(BUCKETS_CHANNEL, str(version))


async def known(redis: Redis) -> list[Known]:
    """The processes that told of themselves lately; forgets the others."""
    fields: Any = await redis.hgetall(BUCKETS_KNOWN_KEY)
    alive, gone = [], []
    for name, value in fields.items():
        document = orjson.loads(value)
        age_s = time.time() - document["at"]
        if age_s > SILENT_S_MAX:
            gone.append(name)
        else:
            alive.append(Known(name.decode(), document["version"], document["shards"], age_s))
    if gone:
        await redis.hdel(BUCKETS_KNOWN_KEY, *gone)
    return sorted(alive, key=lambda each: each.process)


class Follower:
    """Follows the map until cancelled."""

    def __init__(self, redis: Redis, topology: Topology, *, name: str) -> None:
        """Uses the client, does not own it. `name` is the process's, without host and number."""
        self._redis = redis
        self._topology = topology
        self._process = f"{name}@{socket.gethostname()}:{os.getpid()}"

    async def follow(self) -> None:
        """Run until cancelled. Without Redis the process keeps its map."""
        channel = Channel(self._redis, BUCKETS_CHANNEL, opened=self.look, received=self._received, ping_s=TELL_S)
        await together(channel=channel.follow(), telling=self._keep_telling())

    async def follow_until(self, stopping: asyncio.Event) -> None:
        """As `follow`, and return when this is set."""
        with suppress(TaskEnded):
            await together(following=self.follow(), stopping=stopping.wait())

    async def look(self) -> None:
        """Read the map and tell of it, once. Raises RedisError."""
        await refresh(self._redis, self._topology)
        told = {"version": self._topology.buckets.version, "shards": self._topology.shards, "at": time.time()}
        await self._redis.hset(BUCKETS_KNOWN_KEY, self._process, orjson.dumps(told).decode())

    async def _received(self, _: bytes) -> None:
        await self.look()

    async def _keep_telling(self) -> None:
        while True:
            try:
                await self.look()
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("the map of buckets cannot be read", error=type(error).__name__)
            await asyncio.sleep(TELL_S)
