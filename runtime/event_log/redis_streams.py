"""The event log port on Redis Streams.

A partition is the stream `log:{topic.partition}:records`, with entry ids `0-<offset>`;
`log:{topic.partition}:positions` is the hash of committed offsets by group. Retention is by number of records.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from domain.topology import TopicSpec
from runtime.event_log.group_reader import GroupReader
from runtime.event_log.port import (
    EventLogUnavailable,
    LogRecord,
    NewRecord,
    Overtaken,
    WentBack,
    check_append,
    declared,
)
from runtime.redis import client as clients
from runtime.redis.scripts import load_script, run

BLOCK_MS_MAX = 4_000  # below the client's time-out of 5 s
ENDS_CHECKED_S = 1.0  # while other partitions have records

_APPEND = load_script("runtime.event_log", "log_append-1")


def stream_key(topic: str, partition: int) -> str:
    """Stream of a partition."""
    return f"log:{{{topic}.{partition}}}:records"


def positions_key(topic: str, partition: int) -> str:
    """Hash of committed offsets by group."""
    return f"log:{{{topic}.{partition}}}:positions"


class RedisStreamsEventLog:
    """See `runtime.event_log.port.EventLog`."""

    def __init__(self, url: str, specs: Iterable[TopicSpec], *, records_max: int, connections_max: int = 32) -> None:
        """`records_max` bounds a partition without a bound in its spec.

        Redis drops whole nodes, so it may keep a few more.
        """
        self._redis = clients.redis_client(url, connections_max=connections_max)
        self._specs = {spec.name: spec for spec in specs}
        self._records_max = records_max

    async def append(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """One script: all records or none, and the answer comes after the fsync with `appendfsync always`."""
        spec = self._spec(topic, (partition,))
        check_append(topic, partition, records)
        args: list[bytes | str | int] = [spec.records_max or self._records_max]
        for record in records:
            headers = orjson.dumps(dict(record.headers)) if record.headers else b""
            args += (record.key, record.value, headers)
        await _answer(topic, partition, run(self._redis, _APPEND, (stream_key(topic, partition),), args))

    def reader(
        self, group: str | None, topic: str, partitions: Iterable[int], *, begin_at_end: bool = False
    ) -> StreamReader:
        """A reader of these partitions."""
        listed = tuple(partitions)
        self._spec(topic, listed)
        return StreamReader(self._redis, group=group, topic=topic, partitions=listed, begin_at_end=begin_at_end)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _spec(self, topic: str, partitions: Sequence[int]) -> TopicSpec:
        return declared(self._specs, topic, partitions)


class StreamReader(GroupReader):
    """See `runtime.event_log.port.Reader`. One XREAD covers all partitions, so they must be on one Redis server."""

    def __init__(
        self, redis: Redis, *, group: str | None, topic: str, partitions: Sequence[int], begin_at_end: bool
    ) -> None:
        """Uses the client, does not own it."""
        super().__init__(group=group, topic=topic, partitions=partitions, begin_at_end=begin_at_end)
        self._redis = redis
        self._partition_of = {stream_key(topic, partition).encode(): partition for partition in partitions}
        self._ends_checked_at = time.monotonic()

    async def _load(self, group: str) -> dict[int, int]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for partition in self._read:
                pipeline.hget(positions_key(self._topic, partition), group)
            found = await _answer(self._topic, None, pipeline.execute())
        return {
            partition: int(offset) for partition, offset in zip(self._read, found, strict=True) if offset is not None
        }

    async def _store(self, group: str, positions: Mapping[int, int]) -> None:
        """One synced write for all."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for partition, offset in positions.items():
                pipeline.hset(positions_key(self._topic, partition), group, offset)
            await _answer(self._topic, None, pipeline.execute())

    async def _fill(self, count_max: int, wait_s: float) -> None:
        """Read at most `count_max` of each partition at once."""
        streams: Any = {stream_key(self._topic, partition): f"0-{offset}" for partition, offset in self._read.items()}
        block = min(int(wait_s * 1000), BLOCK_MS_MAX) or None  # BLOCK 0 would wait without a bound
        reply = await _answer(self._topic, None, self._redis.xread(streams, count=count_max, block=block))
        for stream, entries in reply or []:
            self._take(self._partition_of[stream], entries)
        if not reply or time.monotonic() >= self._ends_checked_at + ENDS_CHECKED_S:
            await self._check_ends({self._partition_of[stream] for stream, _ in reply or []})
            self._ends_checked_at = time.monotonic()

    def _take(self, partition: int, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        first, before = _offset(entries[0][0]), self._read[partition]
        # Offset 0 is the position of a group that never read: it loses nothing.
        if before and first > before + 1:
            self._losses.append(Overtaken(self._topic, partition, first_lost=before + 1, last_lost=first - 1))
        self._ready.extend(_record(partition, _offset(entry_id), fields) for entry_id, fields in entries)
        self._read[partition] = _offset(entries[-1][0])

    async def _check_ends(self, busy: Collection[int]) -> None:
        """A stream that ends before the position would look empty: its server lost data. `busy` ones have records.

        A reader that never read passes over the records of a stream that was emptied, and loses nothing.
        """
        for partition, (length, end) in (await self._extents(self._read.keys() - busy)).items():
            position = self._read[partition]
            if not position and not length:
                self._read[partition] = self._handed_out[partition] = end
            elif end < position:
                self._losses.append(WentBack(self._topic, partition, position=position, end=end))
                self._read[partition] = self._handed_out[partition] = 0

    async def _ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The streams' last ids, which outlive retention."""
        return {partition: end for partition, (_, end) in (await self._extents(partitions)).items()}

    async def _extents(self, partitions: Iterable[int]) -> dict[int, tuple[int, int]]:
        """The number of entries and the last id of each stream."""
        asked = list(partitions)
        if not asked:
            return {}
        async with self._redis.pipeline(transaction=False) as pipeline:
            for partition in asked:
                pipeline.xinfo_stream(stream_key(self._topic, partition))
            found = await _answer(self._topic, None, pipeline.execute(raise_on_error=False))
        extents = {}
        for partition, info in zip(asked, found, strict=True):
            if isinstance(info, ResponseError) and "no such key" in str(info):
                extents[partition] = (0, 0)
            elif isinstance(info, Exception):
                raise EventLogUnavailable(self._topic, partition, str(info)) from info
            else:
                extents[partition] = (info["length"], _offset(info["last-generated-id"]))
        return extents


def _record(partition: int, offset: int, fields: Mapping[bytes, bytes]) -> LogRecord:
    """A stream entry as a record; one without our fields has a `problem`, so that it does not stop its reader."""
    try:
        return LogRecord(
            partition=partition,
            offset=offset,
            key=fields[b"k"].decode(),
            value=fields[b"v"],
            headers=_headers(fields[b"h"]) if b"h" in fields else {},
            at_ms=int(fields[b"t"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raw = orjson.dumps({name.hex(): value.hex() for name, value in fields.items()})
        problem = f"undecodable entry of the partition's stream: {type(error).__name__}: {error}"
        return LogRecord(partition, offset, "", raw, {}, 0, problem)


def _headers(raw: bytes) -> dict[str, str]:
    headers = orjson.loads(raw)
    if not all(isinstance(value, str) for value in headers.values()):
        raise ValueError("a header is not a text")
    return dict(headers)


def _offset(entry_id: bytes) -> int:
    """`0-<offset>` -> offset."""
    return int(entry_id.partition(b"-")[2])


async def _answer(topic: str, partition: int | None, operation: Awaitable[Any]) -> Any:
    """The client's errors as the port's."""
    try:
        return await operation
    except (RedisError, OSError, TimeoutError) as error:
        raise EventLogUnavailable(topic, partition, str(error) or type(error).__name__) from error
