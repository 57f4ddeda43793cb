"""Reads one topic of the event log and stores a delivery for each webhook that wants an event.

A topic that no enabled webhook wants costs next to nothing: its position follows the end of the log every few minutes.
Positions never pass an event that a webhook may want: subscriptions are read after the records, and an event is
delivered if the log took it when the webhook was enabled already.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final, TypeVar

import structlog

from domain.events import Event, EventMalformed, event_type, family_of, read_event
from domain.topology import OUTBOX_PARTITIONS
from domain.webhooks import families, message_body, message_id
from runtime.event_log import EventLog, EventLogUnavailable, LogRecord, Overtaken, Reader, WentBack
from runtime.process.service import Service
from runtime.process.tasks import wait_within
from runtime.redis.leases import Lease
from workers.consuming import TRANSIENT, Patience, Stopping
from workers.webhooks import metrics
from workers.webhooks.store import NewDelivery, Subscription, WebhookStore

GROUP: Final = "webhooks"  # positions are kept under this name: never renamed
RECORDS_MAX: Final = 500  # in one round
RECEIVE_S: Final = 4.0
COMMIT_S: Final = 1.0  # at least between two commits, if nothing was stored: each is a synced write
REST_S: Final = 120.0  # between two looks at the end of a topic that no webhook wants
LOOK_S: Final = 2.0
_TYPE: Final = re.compile(r"[a-z]+\.[a-z_]{1,40}")
SKEW_MS: Final = 1000  # clocks of the log and of the catalogue may differ by as much
_TRANSIENT: tuple[type[Exception], ...] = (EventLogUnavailable, *TRANSIENT)

log = structlog.get_logger()
T = TypeVar("T")


class Wanted:
    """The families of events that enabled webhooks want, as the sender last saw them."""

    def __init__(self) -> None:
        """Nothing is wanted before the first look."""
        self.families: frozenset[str] = frozenset()
        self._changed = asyncio.Event()

    def see(self, subscriptions: Sequence[Subscription]) -> None:
        """Take over, and wake topics that rest."""
        seen = frozenset().union(*(families(each.event_types) for each in subscriptions if each.enabled))
        if seen != self.families:
            self.families = seen
            self._changed.set()
            self._changed = asyncio.Event()

    async def change(self, *, within_s: float) -> None:
        """Return at the next change, or after this time."""
        await wait_within(self._changed, within_s)


class Intake:
    """See the module. `run` is called while the lease is held."""

    def __init__(
        self,
        topic: str,
        family: str,
        *,
        event_log: EventLog,
        store: WebhookStore,
        wanted: Wanted,
        stored: Callable[[], None],
        lease: Lease,
        service: Service,
    ) -> None:
        """`stored` wakes the sender. Everything is passed in and owned elsewhere."""
        self._topic = topic
        self._family = family
        self._event_log = event_log
        self._store = store
        self._wanted = wanted
        self._stored = stored
        self._lease = lease
        self._service = service
        self._committed_at = self._rested_at = -math.inf
        self._patience = Patience(
            service, report=self._report, count_pause=lambda what: metrics.PAUSES.labels(what).inc()
        )

    async def run(self) -> None:
        """Read until the process is to stop or the lease is lost."""
        try:
            async with AsyncExitStack() as stack:
                beat = stack.enter_context(self._service.background.rounds(f"webhooks {self._topic}"))
                # A new group begins at the end of the log.
                reader = self._event_log.reader(GROUP, self._topic, range(OUTBOX_PARTITIONS), begin_at_end=True)
                await self._through("event log", reader.__aenter__)
                stack.push_async_exit(reader)
                while self._lease.held and not self._service.stopping.is_set():
                    beat()
                    if self._family in self._wanted.families:
                        await self._round(reader)
                    else:
                        await self._rest(reader)
                if self._lease.held:
                    await self._commit(reader, at_once=True)
        except Stopping:
            log.info("stopped during a pause", topic=self._topic)

    async def _rest(self, reader: Reader) -> None:
        """Follow the end of the topic. It is read before the subscriptions: events behind it are read later."""
        if time.monotonic() >= self._rested_at + REST_S:
            lags = await self._through("event log", reader.lag)
            subscriptions = await self._through("catalogue", self._store.subscriptions)
            self._wanted.see(subscriptions)
            went_back = any(lag.end < lag.position for lag in lags.values())
            if self._family in self._wanted.families:
                return
            if not went_back and any(lag.records for lag in lags.values()):
                await reader.skip({partition: lag.end for partition, lag in lags.items()})
                await self._commit(reader, at_once=True)
            metrics.LAG_RECORDS.labels(self._topic).set(0)
            self._rested_at = time.monotonic()
        await self._wanted.change(within_s=LOOK_S)

    async def _round(self, reader: Reader) -> None:
        self._rested_at = -math.inf
        try:
            records = await self._through(
                "event log", lambda: reader.next_batch(count_max=RECORDS_MAX, wait_s=RECEIVE_S)
            )
        except Overtaken as loss:
            metrics.LOST.labels(self._topic).inc(loss.last_lost - loss.first_lost + 1)
            log.error("events lost: the log dropped them before webhooks got them", detail=str(loss))
            return
        except WentBack as loss:
            log.error("the event log lost data", detail=str(loss))
            return
        if not records:
            await self._commit(reader)
            return
        subscriptions = await self._through("catalogue", self._store.subscriptions)
        deliveries = self._deliveries(records, subscriptions)
        if deliveries:
            added, skipped = await self._through("catalogue", lambda: self._store.add(deliveries))
            metrics.STORED.inc(added)
            metrics.SKIPPED.inc(skipped)
            if skipped:
                log.error("events skipped: the backlog of a webhook is at its bound", topic=self._topic, events=skipped)
            if added:
                self._stored()
        await self._commit(reader, at_once=bool(deliveries))

    def _deliveries(self, records: Sequence[LogRecord], subscriptions: Sequence[Subscription]) -> list[NewDelivery]:
        """One for each webhook and event: the dispatcher may have appended an event twice."""
        found: dict[tuple[object, str], NewDelivery] = {}
        results: Counter[str] = Counter()
        for record in records:
            type_ = event_type(record.headers)
            takers = [each for each in subscriptions if each.wants(type_, record.at_ms + SKEW_MS)]
            if record.problem is not None or family_of(type_) != self._family or not _TYPE.fullmatch(type_):
                results["malformed"] += 1
                continue
            if not takers:
                results["not wanted"] += 1
                continue
            try:
                event = read_event(record.headers, record.value)
            except EventMalformed as error:
                results["malformed"] += 1
                log.error("event skipped: malformed", topic=self._topic, offset=record.offset, error=str(error))
                continue
            results["wanted"] += 1
            for delivery in _for_each(takers, event):
                found.setdefault((delivery.webhook_id, delivery.event_id), delivery)
        for result, events in results.items():
            metrics.EVENTS.labels(self._topic, result).inc(events)
        return list(found.values())

    async def _commit(self, reader: Reader, *, at_once: bool = False) -> None:
        if at_once or self._committed_at + COMMIT_S <= time.monotonic():
            await self._through("event log", reader.commit)
            self._committed_at = time.monotonic()

    async def _through(self, waits_for: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._patience.through_faults(waits_for, operation, transient=_TRANSIENT)

    def _report(self, waits_for: str, problem: str | None) -> None:
        self._service.ready(waits_for, problem is None, problem or "", by=self)


def _for_each(takers: Sequence[Subscription], event: Event) -> list[NewDelivery]:
    body, about = message_body(event.type, event.time_ms, event.data), message_id(event)
    return [NewDelivery(taker.id, about, event.type, body) for taker in takers]
