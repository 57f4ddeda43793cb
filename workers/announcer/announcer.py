"""Reads the events of orders and payments for one channel, and publishes their notices.

A server that is away, or a queue without room, pauses the channel; nothing is skipped. Events that the log dropped
before they were read are counted and logged. A log that lost data is read from its oldest record on; the records of
sent notices drop the repetitions, so records older than those would be are not announced again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import orjson
import structlog

from domain.notices import Channel, Notice, notice_event, notice_of_order
from domain.topology import EMAIL_QUEUE, OUTBOX_PARTITIONS, POISON_EVENTS, PUSH_QUEUE, TOPIC_ORDERS, TOPIC_PAYMENTS
from runtime.dead_letters import DeadLetters, NewLetter
from runtime.event_log import EventLog, EventLogUnavailable, LogRecord, Overtaken, Reader, WentBack
from runtime.process.service import Service
from runtime.queue import FailureKind, Queue
from runtime.redis.leases import Lease
from workers.announcer import metrics
from workers.announcer.events import Draft, NotAnnounced, draft_of
from workers.announcer.recipients import Recipients
from workers.consuming import NO_ROOM, TRANSIENT, Patience, Stopping

RECORDS_MAX: Final = 500  # of a topic in one round
RECEIVE_S: Final = 3.0  # also between two looks at a topic without records
GATHER_S: Final = 0.15  # between two rounds that were not full: fewer, larger queries
PUBLISHING_MAX: Final = 32  # notices on their way to the queue
COMMIT_S: Final = 1.0  # at least between two commits, if no notice was published: each is a synced write
SKIP_S: Final = 4.0  # between two looks at the log while no account is reached
LOOK_S: Final = 30.0  # between two looks whether accounts are reached while some are
MEASURE_S: Final = 15.0
MALFORMED: Final = "malformed"
RECORD_AGE_S_MAX: Final = 20 * 3600  # 4 h below the life of the records of sent notices
QUEUES: Final = {Channel.EMAIL: EMAIL_QUEUE, Channel.PUSH: PUSH_QUEUE}
_TRANSIENT: tuple[type[Exception], ...] = (EventLogUnavailable, *TRANSIENT, *NO_ROOM)

log = structlog.get_logger()
T = TypeVar("T")


def group_of(channel: Channel) -> str:
    """The channel's group in the event log. Positions are kept under this name: never renamed."""
    return f"announcer.{channel}"


class Readers(NamedTuple):
    """The topics that are announced."""

    orders: Reader
    payments: Reader


class Announcer:
    """See the module. One process at a time announces on a channel: `run` is called while the lease is held."""

    def __init__(
        self,
        channel: Channel,
        *,
        event_log: EventLog,
        queue: Queue,
        recipients: Recipients,
        letters: DeadLetters,
        lease: Lease,
        service: Service,
        with_reserved: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Everything is passed in and owned elsewhere. `with_reserved`: reserved orders are announced, too."""
        self._channel = channel
        self._event_log = event_log
        self._queue = queue
        self._recipients = recipients
        self._letters = letters
        self._lease = lease
        self._service = service
        self._with_reserved = with_reserved
        self._now = now
        self._looks_at = self._committed_at = self._payments_at = 0.0
        self._patience = Patience(service, report=self._report, count_pause=self._count_pause)

    async def run(self) -> None:
        """Announce until the process is to stop or the lease is lost."""
        try:
            with self._service.background.rounds(f"announcer {self._channel}") as beat:
                readers = self._readers()
                for reader in readers:
                    await self._through("event log", reader.__aenter__)
                self._committed_at = time.monotonic()
                while self._lease.held and not self._service.stopping.is_set():
                    beat()
                    if not await self._skipped(readers):
                        await self._round(readers)
                if self._lease.held:
                    await self._commit(readers, at_once=True)
        except Stopping:
            log.info("stopped during a pause", channel=self._channel)

    async def measure(self) -> None:
        """Publish the lag, with or without the lease, until the process is to stop.

        A process that is ready has a position in the log: an event from then on is announced.
        """
        self._service.ready("event log", ok=False, detail="not reached yet", by=(self, "lag"))
        while not self._service.stopping.is_set():
            try:
                waiting = 0
                for reader in self._readers():
                    async with reader:
                        waiting += sum(lag.records for lag in (await reader.lag()).values())
                metrics.LAG_RECORDS.labels(self._channel).set(waiting)
                self._service.ready("event log", ok=True, by=(self, "lag"))
            except EventLogUnavailable as error:
                self._service.ready("event log", ok=False, detail=str(error), by=(self, "lag"))
            await self._service.pause(MEASURE_S)

    def _readers(self) -> Readers:
        """A new group begins at the end of the log: orders of before its first start are not announced."""
        group, partitions = group_of(self._channel), range(OUTBOX_PARTITIONS)
        return Readers(
            self._event_log.reader(group, TOPIC_ORDERS, partitions, begin_at_end=True),
            self._event_log.reader(group, TOPIC_PAYMENTS, partitions, begin_at_end=True),
        )

    async def _skipped(self, readers: Readers) -> bool:
        """Pass over all events while no account is reached on the channel.

        The end of the log is read before the accounts: an event behind it may be of an account that is reached by then.
        """
        if self._channel is not Channel.PUSH or self._looks_at > time.monotonic():
            return False
        found = [await self._through("event log", reader.lag) for reader in readers]
        if any(lag.end < lag.position for lags in found for lag in lags.values()):
            return False  # the log lost data, which reading on detects
        if waiting := sum(lag.records for lags in found for lag in lags.values()):
            if not await self._recipients.are_none_subscribed():
                self._looks_at = time.monotonic() + LOOK_S
                return False
            for reader, lags in zip(readers, found, strict=True):
                await reader.skip({partition: lag.end for partition, lag in lags.items()})
            self._count(Counter({"not wanted": waiting}))
            await self._commit(readers)
        await self._service.pause(SKIP_S)
        return True

    async def _commit(self, readers: Readers, *, at_once: bool = False) -> None:
        if at_once or self._committed_at + COMMIT_S <= time.monotonic():
            for reader in readers:
                await self._through("event log", reader.commit)
            self._committed_at = time.monotonic()

    async def _next_records(self, readers: Readers) -> list[tuple[str, LogRecord]]:
        """Records with their topics. Wait for orders, and look at payments between two waits.

        A letter about money may come a moment later.
        """
        payments: list[LogRecord] = []
        if self._payments_at <= time.monotonic():
            payments = await self._next_batch(readers.payments, wait_s=0)
            if not payments:
                self._payments_at = time.monotonic() + RECEIVE_S
        orders = await self._next_batch(readers.orders, wait_s=0 if payments else RECEIVE_S)
        return [(TOPIC_PAYMENTS, record) for record in payments] + [(TOPIC_ORDERS, record) for record in orders]

    async def _next_batch(self, reader: Reader, *, wait_s: float) -> list[LogRecord]:
        """The next records, none where the log lost some."""
        try:
            return await self._through("event log", lambda: reader.next_batch(count_max=RECORDS_MAX, wait_s=wait_s))
        except Overtaken as loss:
            metrics.LOST.labels(self._channel).inc(loss.last_lost - loss.first_lost + 1)
            log.error("events lost: the log dropped them before they were announced", detail=str(loss))
        except WentBack as loss:
            log.error("the event log lost data", detail=str(loss))
        return []

    async def _round(self, readers: Readers) -> None:
        records = await self._next_records(readers)
        results: Counter[str] = Counter()
        drafts, poison = self._drafts(records, results)
        for topic, record in poison:
            await self._bury(topic, record)
        wanted = await self._recipients.wanted(drafts) if drafts else []
        await self._publish(wanted)
        self._count(results + Counter({"not wanted": len(drafts) - len(wanted), "announced": len(wanted)}))
        await self._commit(readers, at_once=bool(wanted))
        if not records:
            return
        if len(records) < RECORDS_MAX:
            await self._service.pause(GATHER_S)

    def _drafts(
        self, records: Sequence[tuple[str, LogRecord]], results: Counter[str]
    ) -> tuple[list[Draft], list[tuple[str, LogRecord]]]:
        """One draft for each event, and the records that are no events. Counts the records without a draft.

        The dispatcher may have appended an event twice.
        """
        oldest_ms = (self._now() - RECORD_AGE_S_MAX) * 1000
        drafts: dict[str, Draft] = {}
        poison: list[tuple[str, LogRecord]] = []
        for topic, record in records:
            try:
                if record.problem is not None:
                    raise NotAnnounced(MALFORMED)
                draft = draft_of(record.headers, record.value, with_reserved=self._with_reserved)
                if record.at_ms < oldest_ms:
                    raise NotAnnounced("too old")
            except NotAnnounced as reason:
                results[reason.reason] += 1
                if reason.reason == MALFORMED:
                    poison.append((topic, record))
                continue
            drafts[draft.event_id] = draft
        return list(drafts.values()), poison

    async def _bury(self, topic: str, record: LogRecord) -> None:
        """Keep a record that no consumer understands, before the position moves past it. A second letter is none."""
        letter = NewLetter(
            queue=POISON_EVENTS,
            message_id=f"{topic}/{record.partition}:{record.offset}",
            body=record.value,
            kind=FailureKind.MALFORMED,
            reason=f"record of the event log: {record.problem or 'its attributes or its data are no event'}",
            headers={"topic": topic, "partition": str(record.partition), "offset": str(record.offset)},
            replayable=False,
        )
        await self._through("dead letters", lambda: self._letters.add(letter))
        log.error("poison event", topic=topic, partition=record.partition, offset=record.offset)

    async def _publish(self, drafts: Sequence[Draft]) -> None:
        for first in range(0, len(drafts), PUBLISHING_MAX):
            await asyncio.gather(*(self._put(self._notice(draft)) for draft in drafts[first : first + PUBLISHING_MAX]))

    def _notice(self, draft: Draft) -> Notice:
        return notice_of_order(draft.kind, draft.user_id, draft.order, event_id=draft.event_id, channel=self._channel)

    async def _put(self, notice: Notice) -> None:
        body, name = orjson.dumps(notice_event(notice)), QUEUES[self._channel]
        await self._through("queue", lambda: self._queue.publish(name, body, message_id=str(notice.id)))
        metrics.PUBLISHED.labels(self._channel, notice.kind).inc()
        metrics.AGE_SECONDS.labels(self._channel).observe(max(0.0, self._now() - notice.at_ms / 1000))

    def _count(self, results: Counter[str]) -> None:
        for result, events in results.items():
            metrics.EVENTS.labels(self._channel, result).inc(events)

    async def _through(self, waits_for: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._patience.through_faults(waits_for, operation, transient=_TRANSIENT)

    def _report(self, waits_for: str, problem: str | None) -> None:
        self._service.ready(waits_for, problem is None, problem or "", by=self)

    def _count_pause(self, waits_for: str) -> None:
        metrics.PAUSES.labels(self._channel, waits_for).inc()
