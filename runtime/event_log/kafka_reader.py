"""Reads partitions of a Kafka topic by fetches of its own; see `runtime.event_log.port.Reader`.

Offsets of the port are Kafka's plus 1, so the last offset that was read is Kafka's offset of the next record: a group's
position is its committed offset as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

import orjson
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from runtime.event_log.group_reader import GroupReader
from runtime.event_log.kafka_client import REQUEST_S_MAX, RETRY_S, Electing, Fetched, KafkaClient, words
from runtime.event_log.port import EventLogUnavailable, LogRecord, Overtaken, WentBack

FETCH_WAIT_S_MAX = 4.0  # one fetch at a broker; a longer wait of the caller is several


class KafkaReader(GroupReader):
    """See the module. `offsets` and `fetches` are two connections: a fetch that waits would delay other requests."""

    def __init__(
        self,
        offsets: KafkaClient,
        fetches: KafkaClient,
        *,
        group: str | None,
        topic: str,
        partitions: Sequence[int],
        begin_at_end: bool,
    ) -> None:
        """Uses `offsets`, owns `fetches`."""
        super().__init__(group=group, topic=topic, partitions=partitions, begin_at_end=begin_at_end)
        self._offsets = offsets
        self._fetches = fetches
        self._under_way: dict[int, asyncio.Task[list[Fetched]]] = {}  # by broker

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the fetches and close their connection, drop the records that were not handed out."""
        await super().__aexit__(kind, error, trace)
        await self._fetches.close()

    async def _load(self, group: str) -> dict[int, int]:
        return await self._offsets.positions(group, self._topic, self._read)

    async def _store(self, group: str, positions: Mapping[int, int]) -> None:
        await self._offsets.commit(group, self._topic, positions)

    async def _ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """The log end offsets, which outlive retention."""
        return await self._offsets.ends(self._topic, partitions)

    async def _fill(self, count_max: int, wait_s: float) -> None:  # noqa: ARG002 - a fetch is bounded in bytes
        """Fetch until there is a record or a loss, or the time is over; longer while leaders are being elected."""
        began = time.monotonic()
        moved = True
        while moved or (not self._ready and not self._losses and time.monotonic() < began + wait_s):
            left_s = min(FETCH_WAIT_S_MAX, max(0.0, began + wait_s - time.monotonic()))
            try:
                parts = await self._fetched(left_s)
                moved = any([await self._take(fetched) for fetched in parts])
            except Electing:
                if time.monotonic() > began + wait_s + REQUEST_S_MAX:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _fetched(self, wait_s: float) -> list[Fetched]:
        """Results of the fetches that ended: one under way at each broker, and those of the others stay there."""
        try:
            for node, partitions in (await self._fetches.leaders(self._topic, self._read)).items():
                if node not in self._under_way:
                    offsets = {partition: self._read[partition] for partition in partitions}
                    fetch = self._fetches.fetch(node, self._topic, offsets, wait_s=wait_s)
                    self._under_way[node] = asyncio.create_task(fetch, name=f"fetch {self._topic} from {node}")
            done, _ = await asyncio.wait(self._under_way.values(), return_when=asyncio.FIRST_COMPLETED)
            self._under_way = {node: task for node, task in self._under_way.items() if task not in done}
            return [fetched for task in done for fetched in task.result()]
        except EventLogUnavailable:
            await self._end_reads()
            raise

    async def _end_reads(self) -> None:
        """Positions change, or a broker failed: results of fetches under way must not arrive later."""
        ending, self._under_way = list(self._under_way.values()), {}
        for task in ending:
            task.cancel()
        for task in ending:
            with suppress(asyncio.CancelledError, EventLogUnavailable):
                await task
        if ending:
            await self._fetches.close()

    async def _take(self, fetched: Fetched) -> bool:
        """Whether the partition begins elsewhere, without a loss, so that it has to be fetched again."""
        partition = fetched.partition
        if fetched.asked != self._read[partition]:
            return False
        if fetched.out_of_range:
            return not await self._lost(partition)
        try:
            for record in _records(fetched):
                self._ready.append(record)
                self._read[partition] = record.offset
        except KafkaError as error:
            raise EventLogUnavailable(self._topic, partition, words(error)) from error
        return False

    async def _lost(self, partition: int) -> bool:
        """Read on with the oldest record that is left; whether records were lost."""
        oldest, end = (await self._offsets.bounds(self._topic, (partition,)))[partition]
        position = self._read[partition]
        if oldest <= position <= end:
            return False
        self._read[partition] = oldest
        if position > end:
            self._losses.append(WentBack(self._topic, partition, position=position, end=end))
            self._handed_out[partition] = oldest
        elif position > 0:
            self._losses.append(Overtaken(self._topic, partition, first_lost=position + 1, last_lost=oldest))
        else:  # the position of a group that never read: it loses nothing
            self._handed_out[partition] = oldest
            return False
        return True


def _records(fetched: Fetched) -> Iterator[LogRecord]:
    """The records of raw batches, from the offset that was asked for: the first batch may begin before it."""
    batches = MemoryRecords(fetched.batches)
    while batches.has_next():
        batch = batches.next_batch()
        if not batch.validate_crc():
            raise KafkaError(f"a batch at offset {batch.base_offset} is damaged: its checksum is wrong")
        if batch.is_control_batch:
            continue
        for record in batch:
            if record.offset >= fetched.asked:
                yield _record(fetched.partition, record)


def _record(partition: int, record: Any) -> LogRecord:
    """Kafka's record as the port's; one that is not ours has a `problem`, so that it does not stop its reader."""
    try:
        if record.key is None or record.value is None:
            raise ValueError("it has no key or no value")
        return LogRecord(
            partition=partition,
            offset=record.offset + 1,
            key=record.key.decode(),
            value=record.value,
            headers={name: value.decode() for name, value in record.headers},
            at_ms=record.timestamp,
        )
    except (ValueError, AttributeError) as error:
        raw = orjson.dumps({"key": (record.key or b"").hex(), "value": (record.value or b"").hex()})
        problem = f"undecodable record of the partition: {type(error).__name__}: {error}"
        return LogRecord(partition, record.offset + 1, "", raw, {}, record.timestamp, problem)
