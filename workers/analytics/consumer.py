"""Reads one topic and counts its events, batch by batch; each batch is one transaction with its positions.

A server that is away pauses the topic; nothing is skipped. Records that retention removed before they were counted are
a metric and an error in the log. A log that lost data is read from its oldest record on; events that are counted
already change nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog
from psycopg_pool import PoolTimeout, TooManyRequests

from domain.topology import TopicSpec
from runtime.event_log import EventLog, EventLogUnavailable, LogRecord, Overtaken, Reader, WentBack
from runtime.process.service import Service
from runtime.redis.leases import Lease
from workers.analytics import metrics
from workers.analytics.changes import Counted, NotCounted, change_of
from workers.analytics.store import DAY_MS, Batch, Figures, PositionsMoved, Progress
from workers.consuming import TRANSIENT, Patience, Stopping

RECORDS_MAX: Final = 2_000  # in one transaction
RECEIVE_S: Final = 4.0  # an idle topic costs a read in this time
GATHER_S: Final = 0.2  # between two rounds that were not full: fewer, larger transactions
LAG_S: Final = 1.0  # between two looks at the lag while there is one
AHEAD_MS_MAX: Final = 2 * DAY_MS  # an event with a time further ahead is not counted: its clock is wrong
_TRANSIENT: Final = (EventLogUnavailable, PoolTimeout, TooManyRequests, *TRANSIENT)

log = structlog.get_logger()
T = TypeVar("T")


class Consumer:
    """See the module. `run` is called while the lease is held; two at once lose and repeat nothing either."""

    def __init__(
        self,
        topic: TopicSpec,
        *,
        event_log: EventLog,
        figures: Figures,
        lease: Lease,
        service: Service,
        days: int,
        changed: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Everything is passed in and owned elsewhere. Events older than `days` are not counted.

        `changed` is called after figures have changed.
        """
        self._topic = topic
        self._event_log = event_log
        self._figures = figures
        self._lease = lease
        self._service = service
        self._days = days
        self._changed = changed
        self._now = now
        self._looked_at = 0.0
        self._taken_at: dict[int, int] = {}  # partition -> time at which the log took the last record that was read
        self._patience = Patience(service, report=self._report, count_pause=self._count_pause)

    async def run(self) -> None:
        """Count until the process is to stop or the lease is lost."""
        try:
            with self._service.background.rounds(f"analytics {self._topic.name}") as beat:
                while self._goes_on:
                    beat()
                    await self._read(beat)
        except Stopping:
            log.info("stopped during a pause", topic=self._topic.name)

    @property
    def _goes_on(self) -> bool:
        return self._lease.held and not self._service.stopping.is_set()

    async def _read(self, beat: Callable[[], None]) -> None:
        """Read on from the positions in the database, until another process has moved them."""
        name, partitions = self._topic.name, self._topic.partitions
        known = await self._database(lambda: self._figures.positions(name, partitions))
        reader = self._event_log.reader(None, name, range(partitions))
        await self._through_log(reader.__aenter__)
        try:
            await reader.skip({partition: offset for partition, offset in known.items() if offset >= 0})
            while self._goes_on:
                beat()
                await self._round(reader, known)
        except PositionsMoved:
            log.info("positions moved, reading on from there", topic=name)
        finally:
            await reader.__aexit__(None, None, None)

    async def _round(self, reader: Reader, known: dict[int, int]) -> None:
        """`known` are the positions in the database; they are moved."""
        asked_ms = int(self._now() * 1000)
        try:
            records = await self._through_log(lambda: reader.next_batch(count_max=RECORDS_MAX, wait_s=RECEIVE_S))
        except Overtaken as loss:
            metrics.LOST.labels(self._topic.name).inc(loss.last_lost - loss.first_lost + 1)
            log.error("events lost: the log dropped them before they were counted", detail=str(loss))
            return
        except WentBack as loss:
            log.error("the event log lost data", detail=str(loss))
            return
        if not records:
            await self._show(Progress(int(self._now() * 1000), 0))
            return
        is_full = len(records) == RECORDS_MAX
        progress = await self._behind(reader, records) if is_full else Progress(asked_ms, 0)
        changes, results = countable(records, now_ms=int(self._now() * 1000), days=self._days)
        await self._database(lambda: self._figures.make_days({counted.at_ms // DAY_MS for counted in changes}))
        read = {record.partition: record.offset for record in records}
        batch = Batch(changes, {partition: known[partition] for partition in read}, read)
        new = await self._database(lambda: self._figures.apply(self._topic.name, batch, progress))
        known.update(read)
        self._count(results + Counter({"counted": new, "known": len(changes) - new}))
        self._publish(progress)
        if new:
            self._changed()
        if not is_full:
            await self._service.pause(GATHER_S)

    async def _behind(self, reader: Reader, records: Sequence[LogRecord]) -> Progress | None:
        """How far a consumer is that has more to read; None between two looks."""
        self._taken_at.update((record.partition, record.at_ms) for record in records)
        if time.monotonic() < self._looked_at + LAG_S:
            return None
        self._looked_at = time.monotonic()
        lags = await self._through_log(reader.lag)
        waiting = {partition for partition, lag in lags.items() if lag.records}
        now_ms = int(self._now() * 1000)
        as_of_ms = min((self._taken_at.get(partition, 0) for partition in waiting), default=now_ms)
        return Progress(as_of_ms, sum(lag.records for lag in lags.values()))

    async def _show(self, progress: Progress) -> None:
        await self._database(lambda: self._figures.show(self._topic.name, progress))
        self._publish(progress)

    def _publish(self, progress: Progress | None) -> None:
        if progress is not None:
            metrics.LAG_RECORDS.labels(self._topic.name).set(progress.lag_records)
            metrics.AS_OF.labels(self._topic.name).set(progress.as_of_ms / 1000)

    def _count(self, results: Counter[str]) -> None:
        for result, events in results.items():
            metrics.EVENTS.labels(self._topic.name, result).inc(events)

    async def _database(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._patience.through_faults("analytics database", operation, transient=_TRANSIENT)

    async def _through_log(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._patience.through_faults("event log", operation, transient=_TRANSIENT)

    def _report(self, waits_for: str, problem: str | None) -> None:
        self._service.ready(waits_for, problem is None, problem or "", by=self)

    def _count_pause(self, waits_for: str) -> None:
        metrics.PAUSES.labels(waits_for).inc()


def oldest_ms(now_ms: int, days: int) -> int:
    """The start of the oldest day that is kept, today included."""
    return (now_ms // DAY_MS - days + 1) * DAY_MS


def countable(records: Sequence[LogRecord], *, now_ms: int, days: int) -> tuple[list[Counted], Counter[str]]:
    """The changes of records, and the number of records without one by reason."""
    results: Counter[str] = Counter()
    changes = []
    first_ms, last_ms = oldest_ms(now_ms, days), now_ms + AHEAD_MS_MAX
    for record in records:
        try:
            if record.problem is not None:
                raise NotCounted("malformed")
            counted = change_of(record.headers, record.value)
            if counted.at_ms < first_ms:
                raise NotCounted("too old")
            if counted.at_ms > last_ms:
                raise NotCounted("in the future")
        except NotCounted as reason:
            results[reason.reason] += 1
            continue
        changes.append(counted)
    return changes, results
