"""The event log port: partitioned, ordered, retained for a while, read by anyone from any place (Redis Streams, later Kafka).

Order is kept within a partition. Appending is at least once: after EventLogUnavailable the records may be there, so
readers drop what they know by the event's id and version. There is no assignment of partitions to group members:
a consumer owns its partitions by a lease and commits its position. Performs no I/O.

What each promise becomes on the two carriers:

    promise               Redis Streams                  Kafka
    append acknowledged   one script (synced AOF)        acks=all, idempotent producer, send_batch
    position              stream id                      offset
    commit, committed     hash by group                  committed offsets of the group
    retention             MAXLEN of the stream           retention.ms, retention.bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

APPEND_RECORDS_MAX = 1_000
READ_RECORDS_MAX = 10_000


class EventLogUnavailable(Exception):
    """The log did not acknowledge or answer; the operation happened or not, and is safe to repeat."""

    def __init__(self, topic: str, partition: int, detail: str) -> None:
        """`detail` is the client's own words."""
        super().__init__(f"{topic}/{partition}: {detail}")
        self.topic = topic
        self.partition = partition
        self.detail = detail


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record as read. `position` is opaque; `at_ms` is when the log took it."""

    position: str
    key: str
    value: bytes
    at_ms: int


class EventLog(Protocol):
    """Topics of partitions, which come into being at first use. Everything raises EventLogUnavailable."""

    async def append(self, topic: str, partition: int, records: Sequence[tuple[str, bytes]]) -> None:
        """Append `(key, value)` records in this order and return when all are acknowledged.

        1..APPEND_RECORDS_MAX records. Records of one partition keep their order only if the caller waits for one
        append before the next.
        """
        ...

    async def read(
        self, topic: str, partition: int, *, after: str | None, limit: int, wait_ms: int = 0
    ) -> list[LogRecord]:
        """Records behind the position `after` (None: the oldest retained), oldest first, at most `limit`.

        With `wait_ms`, an empty partition is watched for so long before the answer is an empty list.
        """
        ...

    async def commit(self, group: str, topic: str, partition: int, position: str) -> None:
        """Remember how far a group has processed the partition."""
        ...

    async def committed(self, group: str, topic: str, partition: int) -> str | None:
        """The group's last committed position; None when it never committed."""
        ...

    async def length(self, topic: str, partition: int) -> int:
        """Number of retained records, perhaps approximate."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
