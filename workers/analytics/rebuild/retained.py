"""What the event log still has: the records of each topic, and the time from which on it is complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from domain.topology import TopicSpec
from runtime.event_log import EventLog, LogRecord, Overtaken, Reader, WentBack
from workers.analytics.store import DAY_MS
from workers.analytics.topics import COUNTED_TOPICS

FIRSTS_AT_ONCE = 100
WAIT_S = 2.0  # for records that the log has


@dataclass(frozen=True, slots=True)
class Retained:
    """A topic's records: how many there are, how many retention removed, and the time of the oldest one."""

    topic: str
    records: int
    removed: int
    oldest_ms: int | None
    complete_ms: int  # records that the log took from then on are all there


async def retained(log: EventLog, *, now_ms: int) -> list[Retained]:
    """Look at each topic that is counted. Changes nothing."""
    found = []
    for topic in COUNTED_TOPICS:
        async with log.reader(None, topic.name, range(topic.partitions)) as reader:
            ends = {partition: lag.end for partition, lag in (await reader.lag()).items()}
            found.append(_summary(topic, await _firsts(reader, ends), ends, now_ms=now_ms))
    return found


def first_day(topics: Iterable[Retained], *, oldest_counted_day: int) -> int | None:
    """The first day that can be counted anew; the days before are kept. None: the log has no records.

    It is complete in the log: it begins after the last removed record, or with the oldest record of all. Events of
    days before `oldest_counted_day` are not counted any more.
    """
    listed = list(topics)
    oldest = [topic.oldest_ms for topic in listed if topic.oldest_ms is not None]
    if not oldest:
        return None
    complete = max(-(-topic.complete_ms // DAY_MS) for topic in listed)
    return max(complete, min(oldest) // DAY_MS, oldest_counted_day)


async def _firsts(reader: Reader, ends: Mapping[int, int]) -> dict[int, LogRecord]:
    """The oldest record of each partition that has records."""
    firsts: dict[int, LogRecord] = {}
    while len(firsts) < sum(end > 0 for end in ends.values()):
        try:
            records = await reader.next_batch(count_max=FIRSTS_AT_ONCE, wait_s=WAIT_S)
        except (Overtaken, WentBack):
            continue
        new = {record.partition: record for record in reversed(records) if record.partition not in firsts}
        if not records:
            break  # retention removed all records of the other partitions
        firsts |= new
        await reader.skip({partition: ends[partition] for partition in new})
    return firsts


def _summary(topic: TopicSpec, firsts: Mapping[int, LogRecord], ends: Mapping[int, int], *, now_ms: int) -> Retained:
    records = sum(max(0, ends[partition] - first.offset + 1) for partition, first in firsts.items())
    times = [first.at_ms for first in firsts.values() if first.problem is None]
    gaps = [first.at_ms for first in firsts.values() if first.offset > 1]
    if any(end for partition, end in ends.items() if partition not in firsts):
        # Only retention by age empties a partition.
        gaps.append(now_ms - topic.retention_s * 1000)
    return Retained(
        topic.name, records, removed=sum(ends.values()) - records, oldest_ms=min(times, default=None),
        complete_ms=max(gaps, default=0),
    )  # fmt: skip
