"""The part of a reader that is the same on every carrier: the positions of its group, and the records read ahead.

See `runtime.event_log.port.Reader`. An adapter fills `_ready` and `_losses`, and knows positions and ends of its log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from runtime.event_log.port import READ_RECORDS_MAX, Lag, LogRecord, Overtaken, WentBack


class GroupReader(ABC):
    """Reads partitions of a topic for a group. Offsets begin at 1; 0 is the position before the first record."""

    def __init__(self, *, group: str | None, topic: str, partitions: Sequence[int], begin_at_end: bool) -> None:
        """As the port's `reader`."""
        assert group is not None or not begin_at_end, "without a group, no position is remembered"
        self._group = group
        self._begin_at_end = begin_at_end
        self._topic = topic
        self._read = dict.fromkeys(partitions, 0)  # last offset that was read
        self._handed_out: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._ready: deque[LogRecord] = deque()
        self._losses: deque[Overtaken | WentBack] = deque()

    @abstractmethod
    async def _load(self, group: str) -> Mapping[int, int]:
        """The committed positions by partition, without the partitions that have none."""

    @abstractmethod
    async def _store(self, group: str, positions: Mapping[int, int]) -> None:
        """Store these positions, at least one, in one request."""

    @abstractmethod
    async def _ends(self, partitions: Iterable[int]) -> Mapping[int, int]:
        """The last offsets, also of records that retention removed; 0 for a partition that never had a record."""

    @abstractmethod
    async def _fill(self, count_max: int, wait_s: float) -> None:
        """Append to `_ready` and `_losses`, and move `_read`; nothing when there is nothing after `wait_s`."""

    async def _end_reads(self) -> None:  # noqa: B027 - an adapter without reads under way has nothing to end
        """End reads under way: their positions change."""

    async def __aenter__(self) -> Self:
        """Load the group's positions."""
        if self._group is not None:
            found = dict(await self._load(self._group))
            new = [partition for partition in self._read if partition not in found] if self._begin_at_end else []
            self._read |= found | dict(await self._ends(new))
            self._committed = {partition: offset for partition, offset in self._read.items() if partition not in new}
        self._handed_out = dict(self._read)
        if self._committed != self._handed_out:
            await self.commit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the reads, drop the records that were not handed out."""
        await self._end_reads()
        self._ready.clear()

    async def next_batch(self, *, count_max: int, wait_s: float) -> list[LogRecord]:
        """Hand out records that were read; read when there are none."""
        assert 1 <= count_max <= READ_RECORDS_MAX
        if not self._ready and not self._losses:
            await self._fill(count_max, wait_s)
        if self._losses:
            raise self._losses.popleft()
        batch = [self._ready.popleft() for _ in range(min(count_max, len(self._ready)))]
        for record in batch:
            self._handed_out[record.partition] = record.offset
        return batch

    async def commit(self) -> None:
        """Store the offsets of the last records handed out, those that changed."""
        if self._group is None:
            return
        handed_out = dict(self._handed_out)
        changed = {
            partition: offset for partition, offset in handed_out.items() if self._committed.get(partition) != offset
        }
        if changed:
            await self._store(self._group, changed)
        self._committed = handed_out

    async def skip(self, to: Mapping[int, int]) -> None:
        """Read on behind these offsets."""
        await self._end_reads()
        self._ready = deque(record for record in self._ready if record.offset > to.get(record.partition, 0))
        for partition, offset in to.items():
            self._read[partition] = max(self._read[partition], offset)
            self._handed_out[partition] = max(self._handed_out[partition], offset)

    async def rewind(self, to: Mapping[int, int]) -> None:
        """Read again behind these offsets."""
        await self._end_reads()
        self._ready = deque(record for record in self._ready if record.partition not in to)
        for partition, offset in to.items():
            self._read[partition] = self._handed_out[partition] = min(self._handed_out[partition], offset)

    async def lag(self) -> Mapping[int, Lag]:
        """Position and end by partition."""
        ends = await self._ends(self._handed_out)
        return {partition: Lag(position, ends[partition]) for partition, position in self._handed_out.items()}
