"""The event log port: partitioned, ordered, retained for a while, read by any number of groups.

Carriers are Redis Streams and Kafka.

Order is kept within a partition. Appending is at least once: after EventLogUnavailable the records may be there.
Reading is at least once: a reader that ends before its commit reads again. So readers drop the events that they know,
by the event's id and version. Performs no I/O.

Each promise on the two carriers:

    promise               Redis Streams                     Kafka
    declaration           none: checks topic and partition  topics created from the specs, in one place
    append acknowledged   one script (synced AOF)           acks=all, idempotent producer, send_batch
    largest record        RECORD_BYTES_MAX                  the same; a batch is below message.max.bytes
    headers               JSON in a field of the entry      record headers
    offset                entry id `0-<offset>`             offset + 1: the first record has 1 on both
    position of a group   hash by group                     committed offset of the group
    retention             MAXLEN of the stream              retention.ms, retention.bytes
    Overtaken             a gap in the offsets              OffsetOutOfRange, log start offset
    WentBack              last entry id below the position  OffsetOutOfRange, end below the position
    lag, end              last entry id, minus position     end offsets, minus position
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from domain.topology import TopicSpec

APPEND_RECORDS_MAX = 1_000
READ_RECORDS_MAX = 10_000
RECORD_BYTES_MAX = 512 * 1024  # key, value and headers of one record


class EventLogUnavailable(Exception):
    """The log did not acknowledge or answer; the operation happened or not, and is safe to repeat."""

    def __init__(self, topic: str, partition: int | None, detail: str) -> None:
        """`partition` is None for an operation on several; `detail` is the client's message."""
        super().__init__(f"{topic}{'' if partition is None else f'/{partition}'}: {detail}")
        self.topic = topic
        self.partition = partition
        self.detail = detail


class RecordTooLarge(ValueError):
    """A record has more than RECORD_BYTES_MAX: no carrier takes it, and no repetition helps. Nothing was appended."""

    def __init__(self, topic: str, partition: int, *, bytes_found: int) -> None:
        """`bytes_found` is the size of the first such record."""
        super().__init__(f"{topic}/{partition}: a record of {bytes_found} bytes; at most {RECORD_BYTES_MAX} are taken")
        self.topic = topic
        self.partition = partition
        self.bytes_found = bytes_found


class UnknownTopic(ValueError):
    """The topic or the partition is not among the specs that the log was opened with: a programmer's error."""

    def __init__(self, topic: str, partition: int | None = None) -> None:
        """`partition` is None when the topic itself is unknown."""
        super().__init__(f"{topic}{'' if partition is None else f'/{partition}'} is not declared in domain.topology")
        self.topic = topic
        self.partition = partition


class Overtaken(Exception):
    """Retention removed records that the reader had not read.

    The reader goes on with the oldest record that is left.
    """

    def __init__(self, topic: str, partition: int, *, first_lost: int, last_lost: int) -> None:
        """Offsets of the lost range, both inclusive."""
        super().__init__(f"{topic}/{partition}: records {first_lost} to {last_lost} were removed before they were read")
        self.topic = topic
        self.partition = partition
        self.first_lost = first_lost
        self.last_lost = last_lost


class WentBack(Exception):
    """The log ends before the reader's position: its server lost data. The reader goes on with the oldest record."""

    def __init__(self, topic: str, partition: int, *, position: int, end: int) -> None:
        """`position` is the last offset that was read, `end` the last offset that there is."""
        super().__init__(f"{topic}/{partition}: read up to {position}, but the log ends at {end}: it lost data")
        self.topic = topic
        self.partition = partition
        self.position = position
        self.end = end


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A record to be appended. `headers` are for transport, such as traces; the meaning is in the value alone."""

    key: str
    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name.encode()) + len(value.encode()) for name, value in self.headers.items())
        return len(self.key.encode()) + len(self.value) + headers


def check_append(topic: str, partition: int, records: Sequence[NewRecord]) -> None:
    """Check the number and the sizes of records to be appended. Raises RecordTooLarge."""
    assert 1 <= len(records) <= APPEND_RECORDS_MAX
    for record in records:
        # A character has at most 4 bytes: most records need no encoding here.
        surely_small = len(record.value) + 4 * len(record.key) <= RECORD_BYTES_MAX and not record.headers
        if not surely_small and (size := record.size_bytes) > RECORD_BYTES_MAX:
            raise RecordTooLarge(topic, partition, bytes_found=size)


def declared(specs: Mapping[str, TopicSpec], topic: str, partitions: Iterable[int]) -> TopicSpec:
    """The topic's spec, which has these partitions. Raises UnknownTopic."""
    spec = specs.get(topic)
    if spec is None:
        raise UnknownTopic(topic)
    for partition in partitions:
        if not 0 <= partition < spec.partitions:
            raise UnknownTopic(topic, partition)
    return spec


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record as read. `at_ms` is the time at which the log took it.

    Offsets of a partition begin at 1 and grow by 1: a gap is a loss. So Kafka's topics have neither transactions nor
    compaction, which leave gaps.

    `problem` says why the carrier's record could not be decoded; `value` then shows its raw content, and the reader
    passes it over.
    """

    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    at_ms: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a reader is behind in one partition.

    `position` is the last offset handed out, `end` the newest of the log.
    """

    position: int
    end: int

    @property
    def records(self) -> int:
        """Records that are still to be read, those that retention removed included."""
        return max(0, self.end - self.position)


class Reader(Protocol):
    """Reads partitions of one topic for a group: an async context manager. Everything raises EventLogUnavailable.

    Entering loads the group's committed positions. A partition without one begins at the oldest retained record, or,
    with `begin_at_end`, behind the newest one, and that position is committed.
    There is no assignment of partitions to members of a group: the caller makes sure that one reader of a group has a
    partition (by a lease, say). Two at once read twice and lose nothing.
    """

    async def next_batch(self, *, count_max: int, wait_s: float) -> list[LogRecord]:
        """At most `count_max` records, each partition's in order, as soon as there is one.

        Empty after `wait_s` without any.

        Raises Overtaken or WentBack, once for each loss; the next call goes on behind it.
        """
        ...

    async def commit(self) -> None:
        """Every record handed out so far is processed: remember that for the group. Without effect for no group."""
        ...

    async def skip(self, to: Mapping[int, int]) -> None:
        """Pass over the records up to these offsets, by partition, as if they had been handed out."""
        ...

    async def rewind(self, to: Mapping[int, int]) -> None:
        """Go back to these offsets, by partition: the records behind them are read again. `commit` makes it last."""
        ...

    async def lag(self) -> Mapping[int, Lag]:
        """Position and end by partition."""
        ...

    async def __aenter__(self) -> Self:
        """Load the positions."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; commits nothing."""
        ...


class EventLog(Protocol):
    """The topics of its specs; any other topic or partition raises UnknownTopic."""

    async def append(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """Append 1..APPEND_RECORDS_MAX records in this order and return when all are acknowledged.

        Records of one partition keep their order only if the caller waits for one append before the next. Raises
        EventLogUnavailable: the log may hold the first of the records, or all. Raises RecordTooLarge: it holds none.
        """
        ...

    def reader(self, group: str | None, topic: str, partitions: Iterable[int], *, begin_at_end: bool = False) -> Reader:
        """A reader for a group, or without a group (None): from the oldest record, and nothing is remembered."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
