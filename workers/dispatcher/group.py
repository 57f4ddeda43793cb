"""Dispatches one database's outbox: pages of all destinations and partitions by one query, each partition on its own.

Partitions of all destinations share the query and the pauses, nothing else: one that fails or is slow delays no other.
Deletes acknowledged rows only, after the acknowledgement: a crash between the two repeats events, never loses one. A
malformed row becomes a dead letter when the page around it was delivered. Adding it again makes no second letter, so a
crash between adding and deleting is harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
import structlog

from domain.topology import OUTBOX_PARTITIONS, POISON_OUTBOX
from runtime.dead_letters import DeadLetters, DeadLettersFull, DeadLettersUnavailable, NewLetter
from runtime.process import tasks
from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.process.supervision import Beat
from runtime.queue import FailureKind
from runtime.redis.leases import Lease
from workers.dispatcher import metrics
from workers.dispatcher.destinations import DeliveryFailed, Destination, Event, MalformedEvents
from workers.dispatcher.outbox import Outbox, OutboxRow, Place

PAGE_ROWS_MAX = 16  # of each partition; a row carries the events of a writer's batch
STRAGGLER_S = 0.25  # the next page does not wait longer for slow partitions, and not again for the same ones
IDLE_FIRST_S = 0.02
IDLE_LONGEST_S = 1.0
GATHER_S = 0.1  # between two rounds without a full page: fewer, larger deliveries
DRAIN_S = 5.0
MEASURE_S = 5.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Partition:
    """A destination's partition: its delivery under way and, after a failure, when it may be tried again.

    `buried` are rows of its page that are dead letters by now and not deleted yet.
    """

    place: Place
    destination: Destination
    labels: tuple[str, str]
    delivery: asyncio.Task[list[int]] | None = None
    resumes_at: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.1, longest_s=2.0))
    buried: set[int] = field(default_factory=set)


class DispatchGroup:
    """See the module. `lease` is held when `run` is called."""

    def __init__(
        self,
        *,
        database: str,
        outbox: Outbox,
        destinations: Sequence[Destination],
        letters: DeadLetters,
        lease: Lease,
        service: Service,
    ) -> None:
        """`database` names the database in metrics and dead letters; `letters` takes rows that cannot be delivered."""
        self._database = database
        self._outbox = outbox
        self._letters = letters
        self._lease = lease
        self._service = service
        self._destinations = [destination.name for destination in destinations]
        self._partitions = {
            (place := Place(destination.name, partition)): _Partition(place, destination, (database, destination.name))
            for destination in destinations
            for partition in range(OUTBOX_PARTITIONS)
        }
        self._has_more = False
        self._found_none = False  # by the last query for pages

    async def run(self) -> None:
        """Dispatch until the process is to stop (then deliveries under way are awaited) or the lease is lost."""
        try:
            with self._service.background.rounds(self._database) as beat:
                await self._dispatch(beat)
            if self._lease.held:
                await self._finish()
        finally:
            self._service.ready(self._database, ok=True, by=(self, "rounds"))  # the next owner's concern
            await tasks.cancel(*self._deliveries())
            # The next tenure begins with none: the result of a cancelled delivery would end it without a trace.
            for partition in self._partitions.values():
                partition.delivery = None

    async def _dispatch(self, beat: Beat) -> None:
        idle_s = IDLE_FIRST_S
        while self._lease.held and not self._service.stopping.is_set():
            beat()
            try:
                moved = await self._round()
                self._service.ready(self._database, ok=True, by=(self, "rounds"))
            except psycopg.Error as error:
                # A database that waits for a standby in COMMIT answers `measure` all the same.
                moved = False
                self._service.ready(self._database, ok=False, detail=_words(error), by=(self, "rounds"))
                log.warning("outbox not reachable", database=self._database, error=_words(error))
            if moved:
                idle_s = IDLE_FIRST_S
                if not self._has_more:
                    await self._service.pause(GATHER_S)
            else:
                await self._service.tick(idle_s)
                idle_s = min(IDLE_LONGEST_S, 2 * idle_s)

    async def measure(self) -> None:
        """Publish the lag and whether the database answers, with or without the lease, until the process is to stop."""
        while not self._service.stopping.is_set():
            try:
                for destination, lag in (await self._outbox.measure(self._destinations)).items():
                    metrics.LAG_ROWS.labels(self._database, destination).set(lag.rows)
                    metrics.LAG_SECONDS.labels(self._database, destination).set(max(0.0, lag.age_s))
                self._service.ready(self._database, ok=True, by=self)
            except psycopg.Error as error:
                self._service.ready(self._database, ok=False, detail=_words(error), by=self)
            await self._service.tick(MEASURE_S)

    async def _round(self) -> bool:
        """Start a delivery in each partition that may have one, delete acknowledged rows; whether there were any."""
        now = time.monotonic()
        free = [place for place, p in self._partitions.items() if p.delivery is None and now >= p.resumes_at]
        self._has_more = False
        started = []
        if free and not (self._found_none and await self._outbox.is_empty()):
            self._found_none = True
            for place, rows in (await self._outbox.next_rows(free, rows_max=PAGE_ROWS_MAX)).items():
                self._found_none = False
                self._has_more |= len(rows) == PAGE_ROWS_MAX
                partition = self._partitions[place]
                partition.delivery = asyncio.create_task(
                    self._deliver(partition, rows), name=f"deliver {self._database} {place}"
                )
                started.append(partition.delivery)
        return await self._settle(started or self._deliveries(), STRAGGLER_S)

    async def _settle(self, awaited: Sequence[asyncio.Task[list[int]]], wait_s: float) -> bool:
        """Wait for some deliveries, at most `wait_s`; delete the rows of all that ended; whether there were any."""
        if not awaited:
            return False
        await asyncio.wait(awaited, timeout=wait_s)
        deleted: list[int] = []
        counts: Counter[tuple[str, str]] = Counter()
        for partition in self._partitions.values():
            if partition.delivery is not None and partition.delivery.done():
                acknowledged = partition.delivery.result()
                partition.delivery = None
                deleted += acknowledged
                counts[partition.labels] += len(acknowledged)
        if deleted:
            await self._outbox.delete(deleted)
            for labels, count in counts.items():
                metrics.DELETED.labels(*labels).inc(count)
        return bool(deleted)

    async def _finish(self) -> None:
        try:
            await self._settle(self._deliveries(), DRAIN_S)
        except psycopg.Error as error:
            # The rows are still there and will be delivered again.
            log.warning("acknowledged rows not deleted", database=self._database, error=_words(error))

    def _deliveries(self) -> list[asyncio.Task[list[int]]]:
        return [partition.delivery for partition in self._partitions.values() if partition.delivery is not None]

    async def _deliver(self, partition: _Partition, rows: Sequence[OutboxRow]) -> list[int]:
        """Deliver a page as a whole, and return the ids to delete: none unless the destination acknowledged it all."""
        # Rows come oldest first, so buried rows that are not deleted yet are in this page.
        partition.buried &= {row.id for row in rows}
        events: list[Event] = []
        malformed: list[tuple[OutboxRow, str]] = []
        for row in rows:
            try:
                events += partition.destination.events_of(row.events)
            except MalformedEvents as error:
                malformed.append((row, str(error)))
        undone = {row.id for row in rows}
        try:
            if events:
                await partition.destination.deliver(partition.place.partition, events)
            metrics.DISPATCHED.labels(*partition.labels).inc(len(events))
            undone = {row.id for row, _ in malformed}
            for row, reason in malformed:
                if row.id not in partition.buried:
                    await self._bury(partition, row, reason)
                    partition.buried.add(row.id)
                undone.discard(row.id)
        except (DeliveryFailed, DeadLettersFull, DeadLettersUnavailable) as error:
            metrics.FAILURES.labels(*partition.labels).inc()
            destination = partition.place.destination
            log.warning("not delivered", database=self._database, destination=destination, error=str(error))
            partition.resumes_at = time.monotonic() + partition.backoff.next_s()
        else:
            partition.backoff.reset()
        # Without room for dead letters only malformed rows stay; the others must not be delivered again.
        return [row.id for row in rows if row.id not in undone]

    async def _bury(self, partition: _Partition, row: OutboxRow, reason: str) -> None:
        """A row that can never be delivered must not hold up those behind it: move it to the dead letters."""
        await self._letters.add(
            NewLetter(
                queue=POISON_OUTBOX,
                message_id=f"{self._database}:{row.id}",
                body=row.events.encode(),
                kind=FailureKind.MALFORMED,
                reason=f"outbox row: {reason}",
                headers={"destination": partition.place.destination, "partition": str(row.partition)},
                replayable=False,
            )
        )
        metrics.POISON.labels(*partition.labels).inc()
        log.error("poison outbox row", database=self._database, row=row.id, reason=reason)


def _words(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
