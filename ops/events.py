"""Reads topics of the event log for an operator, and sets the position of a group back. Works over the port alone."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from domain.topology import TOPICS
from runtime.event_log import EventLog, LogRecord, Overtaken, Reader, WentBack

RECORDS_AT_ONCE: Final = 1_000
WAIT_S: Final = 2.0  # for records that the log says it has
FOLLOW_S: Final = 1.0  # until each topic was looked at
PARTITIONS: Final = {spec.name: spec.partitions for spec in TOPICS}


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A record with its topic."""

    topic: str
    record: LogRecord


@dataclass(frozen=True, slots=True)
class Step:
    """A partition whose records behind `to` are to be read again; `position` is the group's."""

    partition: int
    position: int
    to: int

    @property
    def records(self) -> int:
        """Records to read again, those included that retention removed."""
        return self.position - self.to


async def newest(
    log: EventLog, topics: Sequence[str], wanted: Callable[[LogRecord], bool], *, limit: int, everything: bool
) -> tuple[list[TopicRecord], dict[str, Mapping[int, int]]]:
    """The newest wanted records, oldest first, at most `limit`; and the end of each topic, to follow from.

    `everything`: look at all records, because few of them are wanted.
    """
    found: list[TopicRecord] = []
    ends: dict[str, Mapping[int, int]] = {}
    for topic in topics:
        kept: dict[int, deque[LogRecord]] = {p: deque(maxlen=limit) for p in range(PARTITIONS[topic])}
        async with log.reader(None, topic, kept) as reader:
            lags = await reader.lag()
            ends[topic] = {partition: lag.end for partition, lag in lags.items()}
            if not everything:
                await reader.skip({partition: max(0, end - limit) for partition, end in ends[topic].items()})
            async for record in _up_to(reader, ends[topic]):
                if wanted(record):
                    kept[record.partition].append(record)
        found += [TopicRecord(topic, record) for records in kept.values() for record in records]
    found.sort(key=lambda one: one.record.at_ms)  # stable: records of a partition stay in order
    return found[-limit:], ends


async def follow(log: EventLog, ends: Mapping[str, Mapping[int, int]]) -> AsyncIterator[TopicRecord]:
    """The records behind these ends as they come, without an end. The topics are looked at in turn."""
    async with AsyncExitStack() as stack:
        readers: dict[str, Reader] = {}
        for topic, end in ends.items():
            reader = readers[topic] = await stack.enter_async_context(log.reader(None, topic, end))
            await reader.skip(end)
        while True:
            for topic, reader in readers.items():
                for record in await _batch(reader, FOLLOW_S / len(readers)):
                    yield TopicRecord(topic, record)


async def plan_replay(
    log: EventLog, *, topic: str, group: str, since_ms: int | None, offset: int | None, partitions: Collection[int]
) -> list[Step]:
    """The partitions in which the group would go back: to records since a time, to an offset, or to the oldest."""
    async with log.reader(group, topic, partitions) as reader:
        positions = {partition: lag.position for partition, lag in (await reader.lag()).items()}
    if since_ms is not None:
        targets = await _before(log, topic, positions, since_ms)
    else:
        targets = dict.fromkeys(positions, 0 if offset is None else max(0, offset - 1))
    return [
        Step(partition, position, targets[partition])
        for partition, position in sorted(positions.items())
        if targets[partition] < position
    ]


async def replay(log: EventLog, *, topic: str, group: str, steps: Sequence[Step]) -> None:
    """Set the group's positions back."""
    async with log.reader(group, topic, [step.partition for step in steps]) as reader:
        await reader.rewind({step.partition: step.to for step in steps})
        await reader.commit()


async def _before(log: EventLog, topic: str, positions: Mapping[int, int], since_ms: int) -> dict[int, int]:
    """By partition, the offset before the first record that the log took since a time; else the position."""
    before = dict(positions)
    async with log.reader(None, topic, positions) as reader:
        async for record in _up_to(reader, positions):
            if record.at_ms >= since_ms and record.problem is None:
                before[record.partition] = min(before[record.partition], record.offset - 1)
                if record.offset < positions[record.partition]:
                    await reader.skip({record.partition: positions[record.partition]})
    return before


async def _up_to(reader: Reader, ends: Mapping[int, int]) -> AsyncIterator[LogRecord]:
    """The records up to these offsets."""
    left = {partition for partition, end in ends.items() if end}
    while left:
        records = await _batch(reader, WAIT_S)
        for record in records:
            if record.offset <= ends[record.partition]:
                yield record
            if record.offset >= ends[record.partition]:
                left.discard(record.partition)
        positions = await reader.lag()
        left -= {partition for partition in left if positions[partition].position >= ends[partition]}
        if not records:
            return  # retention removed them


async def _batch(reader: Reader, wait_s: float) -> list[LogRecord]:
    """The next records. Records that retention removed are passed over: an operator sees those that are there."""
    while True:
        try:
            return await reader.next_batch(count_max=RECORDS_AT_ONCE, wait_s=wait_s)
        except (Overtaken, WentBack):
            continue
