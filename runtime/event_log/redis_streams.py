"""The event log port on Redis Streams: one stream a partition, `log:{topic.partition}:stream`, committed positions in
`log:{topic.partition}:groups`. Retention is by number of records; a reader that falls behind it misses records, as in Kafka.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from redis.exceptions import RedisError

from runtime.event_log.port import APPEND_RECORDS_MAX, READ_RECORDS_MAX, EventLogUnavailable, LogRecord
from runtime.redis import client as clients
from runtime.redis.scripts import load_script, run

BLOCK_MS_MAX = 4_000  # below the client's time-out of 5 s

_APPEND = load_script("runtime.event_log", "log_append-1")


def stream_key(topic: str, partition: int) -> str:
    """Stream of a partition."""
    return f"log:{{{topic}.{partition}}}:stream"


def groups_key(topic: str, partition: int) -> str:
    """Hash of committed positions by group."""
    return f"log:{{{topic}.{partition}}}:groups"


class RedisStreamsEventLog:
    """See `runtime.event_log.port.EventLog`."""

    def __init__(self, url: str, *, records_max: int, connections_max: int = 32) -> None:
        """`records_max` bounds a partition; Redis drops whole nodes, so somewhat more may be kept."""
        self._redis = clients.redis_client(url, connections_max=connections_max)
        self._records_max = records_max

    async def append(self, topic: str, partition: int, records: Sequence[tuple[str, bytes]]) -> None:
        """One script: all records or none, and the answer comes after the fsync with `appendfsync always`."""
        assert 1 <= len(records) <= APPEND_RECORDS_MAX
        args: list[bytes | str | int] = [self._records_max]
        for key, value in records:
            args += (key, value)
        await _answer(topic, partition, run(self._redis, _APPEND, (stream_key(topic, partition),), args))

    async def read(
        self, topic: str, partition: int, *, after: str | None, limit: int, wait_ms: int = 0
    ) -> list[LogRecord]:
        """Records behind `after`."""
        assert 1 <= limit <= READ_RECORDS_MAX
        stream = stream_key(topic, partition)
        block = min(wait_ms, BLOCK_MS_MAX) or None  # BLOCK 0 would be for ever
        reply = await _answer(topic, partition, self._redis.xread({stream: after or "0-0"}, count=limit, block=block))
        return [
            LogRecord(
                position=entry_id.decode(),
                key=fields[b"k"].decode(),
                value=fields[b"v"],
                at_ms=int(entry_id.partition(b"-")[0]),
            )
            for _, entries in reply or []
            for entry_id, fields in entries
        ]

    async def commit(self, group: str, topic: str, partition: int, position: str) -> None:
        """Remember a group's position."""
        await _answer(topic, partition, self._redis.hset(groups_key(topic, partition), group, position))

    async def committed(self, group: str, topic: str, partition: int) -> str | None:
        """A group's position."""
        position = await _answer(topic, partition, self._redis.hget(groups_key(topic, partition), group))
        return position.decode() if position is not None else None

    async def length(self, topic: str, partition: int) -> int:
        """Number of retained records."""
        return int(await _answer(topic, partition, self._redis.xlen(stream_key(topic, partition))))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


async def _answer(topic: str, partition: int, operation: Awaitable[Any]) -> Any:
    """The client's errors in the port's words."""
    try:
        return await operation
    except (RedisError, OSError, TimeoutError) as error:
        raise EventLogUnavailable(topic, partition, str(error) or type(error).__name__) from error
