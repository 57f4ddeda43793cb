"""Reads partitions of a Kafka topic by fetches of its own; see `runtime.event_log.port.Reader`.

Offsets of the port are Kafka's plus 1, so the last offset that was read is Kafka's offset of the next record: a group's
position is its committed offset as it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import orjson
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords

from runtime.event_log.kafka_client import REQUEST_S_MAX, RETRY_S, Electing, Fetched, KafkaClient, words
from runtime.event_log.port import READ_RECORDS_MAX, EventLogUnavailable, Lag, LogRecord, Overtaken, WentBack

FETCH_WAIT_S_MAX = 4.0  # one fetch at a broker; a longer wait of the caller is several


class KafkaReader:
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
        assert group is not None or not begin_at_end, "without a group, no position is remembered"
        self._offsets = offsets
        self._fetches = fetches
        self._group = group
        self._begin_at_end = begin_at_end
        self._topic = topic
        self._read = dict.fromkeys(partitions, 0)  # last offset that was read, 0: none
        self._handed_out: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._ready: deque[LogRecord] = deque()
        self._losses: deque[Overtaken | WentBack] = deque()
        self._under_way: dict[int, asyncio.Task[list[Fetched]]] = {}  # by broker

    async def __aenter__(self) -> Self:
        """Load the group's positions."""
        if self._group is not None:
            found = await self._offsets.positions(self._group, self._topic, self._read)
            new = [partition for partition in self._read if partition not in found] if self._begin_at_end else []
            ends = await self._offsets.ends(self._topic, new)
            self._read |= found | ends
            self._committed = {partition: offset for partition, offset in self._read.items() if partition not in new}
        self._handed_out = dict(self._read)
        if self._committed != self._handed_out:
            await self.commit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the fetches, drop the records that were not handed out."""
        await self._end_fetches()
        await self._fetches.close()
        self._ready.clear()

    async def next_batch(self, *, count_max: int, wait_s: float) -> list[LogRecord]:
        """Hand out fetched records; fetch when there are none."""
        assert 1 <= count_max <= READ_RECORDS_MAX
        if not self._ready and not self._losses:
            await self._fill(wait_s)
        if self._losses:
            raise self._losses.popleft()
        batch = [self._ready.popleft() for _ in range(min(count_max, len(self._ready)))]
        for record in batch:
            self._handed_out[record.partition] = record.offset
        return batch

    async def commit(self) -> None:
        """Store the offsets of the last records handed out, those that changed, in one request."""
        if self._group is None:
            return
        handed_out = dict(self._handed_out)
        changed = {
            partition: offset for partition, offset in handed_out.items() if self._committed.get(partition) != offset
        }
        if changed:
            await self._offsets.commit(self._group, self._topic, changed)
        self._committed = handed_out

    async def skip(self, to: Mapping[int, int]) -> None:
        """Read on behind these offsets."""
        await self._end_fetches()
        self._ready = deque(record for record in self._ready if record.offset > to.get(record.partition, 0))
        for partition, offset in to.items():
            self._read[partition] = max(self._read[partition], offset)
            self._handed_out[partition] = max(self._handed_out[partition], offset)

    async def rewind(self, to: Mapping[int, int]) -> None:
        """Read again behind these offsets."""
        await self._end_fetches()
        self._ready = deque(record for record in self._ready if record.partition not in to)
        for partition, offset in to.items():
            self._read[partition] = self._handed_out[partition] = min(self._handed_out[partition], offset)

    async def lag(self) -> Mapping[int, Lag]:
        """Ends by the log end offsets, which outlive retention."""
        ends = await self._offsets.ends(self._topic, self._handed_out)
        return {partition: Lag(position, ends[partition]) for partition, position in self._handed_out.items()}

    async def _fill(self, wait_s: float) -> None:
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
            await self._end_fetches()
            raise

    async def _end_fetches(self) -> None:
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
