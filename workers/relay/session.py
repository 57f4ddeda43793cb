"""One tenure of a lane: from the stream's head on, read, publish with confirms, trim the confirmed prefix.

A session ends with its lease, with the process, or with any failure of the lane's Redis; the next one begins at the
head again. A crash between any two steps only repeats them: an entry is trimmed after its confirm. While a destination
takes nothing, the stream keeps all entries behind its first one; the others' progress is noted in Redis, so that the
next session does not publish theirs again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis

from domain.messages import encode_orders
from domain.topology import POISON_ENTRIES, Topology, lane_relayed_key, lane_stream_key, order_queue
from reservation.lane import Lanes
from runtime.dead_letters import DeadLetters, DeadLettersFull, DeadLettersUnavailable, NewLetter
from runtime.process import tasks
from runtime.process.backoff import Backoff
from runtime.process.supervision import Beat, no_beat
from runtime.queue import FailureKind, Queue, QueueFull, QueueUnavailable
from runtime.redis.leases import Lease
from workers.relay import metrics
from workers.relay.backlog import Backlog, Entry
from workers.relay.entries import RawEntry, seq_of, shard_table, sort_page

PAGE_ENTRIES = 1_000
BACKLOG_ENTRIES_MAX = 5_000
PUBLISHES_IN_FLIGHT = 2  # for each shard of a lane
LINGER_S = 0.05  # between two pages that were not full: fewer, larger messages
WAKE_BLOCK_MS = 4000  # below the client's time-out of 5 s
ROOM_WAIT_S = 0.25  # longest time that a shard delays the others before its entries are left out
TRIM_PAUSE_S = 0.02
NOTE_S = 1.0  # between notes of progress: a crash repeats what was published since the last one
DRAIN_S = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Destination:
    """A shard's queue, or the dead letters for entries that belong to no shard."""

    name: str
    backlog: Backlog
    batch_max: int
    publish: Callable[[Sequence[Entry]], Awaitable[None]]


class LaneSession:
    """See the module. `lease` is held when `run` is called."""

    def __init__(
        self,
        lane: int,
        *,
        redis: Redis,
        queue: Queue,
        letters: DeadLetters,
        lease: Lease,
        topology: Topology,
        batch_max: int,
    ) -> None:
        """`batch_max`: entries in one message."""
        self._lane = lane
        self._redis = redis
        self._lanes = Lanes(redis)
        self._queue = queue
        self._letters = letters
        self._lease = lease
        self._stream = lane_stream_key(lane)
        self._buckets = topology.buckets
        self._map_version = topology.buckets.version
        self._shard_by_bucket = shard_table(topology)
        self._destinations = [
            Destination(str(shard), Backlog(BACKLOG_ENTRIES_MAX), batch_max, self._publisher_to(shard))
            for shard in range(topology.shards)
        ]
        # Last, behind the shards: entries that belong to none of them.
        self._destinations.append(Destination("poison", Backlog(BACKLOG_ENTRIES_MAX), 1, self._bury))
        self._cursor: bytes | None = None  # id of the last entry that was offered to its destination
        self._trimmed_seq = -1
        self._relayed_key = lane_relayed_key(lane)
        self._relayed = [0] * len(self._destinations)  # noted: confirmed up to here, inclusive
        self._note_at = 0.0
        self._some_ahead = False  # a destination of the trimmed prefix: its note may be due without further progress
        self._progress = asyncio.Event()
        self._outdated = asyncio.Event()  # the map of buckets has changed
        self._draining = False

    async def run(self, stopping: asyncio.Event, beat: Beat = no_beat) -> None:
        """Relay until the process is to stop, the lease is lost, or buckets move: the next session has the new map.

        Publishes in flight are awaited while the lease is held. Calls `beat` before each page.

        Raises RedisError or OSError when the lane's Redis fails, LeaseLost when the trim script refuses.
        """
        await self._read_relayed()
        publishers = [
            asyncio.create_task(self._publish(destination), name=f"publish {self._stream} {destination.name}")
            for destination in self._destinations
            for _ in range(PUBLISHES_IN_FLIGHT)
        ]
        work = [asyncio.create_task(self._read(beat)), asyncio.create_task(self._trim()), *publishers]
        ends = [asyncio.create_task(end) for end in (stopping.wait(), self._lease.lost.wait(), self._outdated.wait())]
        try:
            done, _ = await asyncio.wait([*work, *ends], return_when=asyncio.FIRST_COMPLETED)
            for task in done.intersection(work):
                task.result()  # raises: work ends by itself only with an exception
            if self._lease.held:
                await self._drain(work[0], publishers)
        finally:
            await tasks.cancel(*work, *ends)

    async def _drain(self, reader: asyncio.Task[None], publishers: Sequence[asyncio.Task[None]]) -> None:
        """Stop reading; wait for the confirms of publishes in flight, then trim the confirmed prefix."""
        await tasks.cancel(reader)
        self._draining = True
        for destination in self._destinations:
            destination.backlog.work.set()
        await asyncio.wait(publishers, timeout=DRAIN_S)
        self._note_at = 0.0
        await self._trim_confirmed()

    # Reading

    async def _read(self, beat: Beat) -> None:
        while True:
            beat()
            if self._buckets.version != self._map_version:
                self._outdated.set()
            progressed = await self._read_page()
            for number, destination in enumerate(self._destinations):
                progressed |= await self._read_again(number, destination.backlog)
            if progressed:
                continue
            if any(destination.backlog.left_out_from is not None for destination in self._destinations):
                await asyncio.sleep(LINGER_S)
            else:
                await self._wait_for_entries(beat)

    async def _read_page(self) -> bool:
        """Offer the next page to its destinations; False when there was none."""
        if all(destination.backlog.left_out_from is not None for destination in self._destinations[:-1]):
            # No shard takes anything: reading on would only mean to read it all again.
            return False
        page = await self._page("-" if self._cursor is None else f"({self._cursor.decode()}", "+")
        for seq, number, entry, headers in self._sorted(page):
            if seq <= self._relayed[number]:
                continue
            backlog = self._destinations[number].backlog
            if not backlog.has_room and backlog.left_out_from is None:
                await tasks.wait_within(backlog.room, ROOM_WAIT_S)
            if not backlog.offer(seq, entry, headers) and backlog.left_out_from == seq:
                name = self._destinations[number].name
                metrics.LEFT_OUT.labels(self._lane, name).inc()
                log.warning("destination left out", lane=self._lane, destination=name, lane_seq=seq)
        if page:
            self._cursor = page[-1][0]
            self._progress.set()
        if 0 < len(page) < PAGE_ENTRIES:
            await asyncio.sleep(LINGER_S)
        return bool(page)

    async def _read_again(self, number: int, backlog: Backlog) -> bool:
        """Read a page of entries that were left out for a destination, once it has room again; whether any was read."""
        if backlog.left_out_from is None or not backlog.is_half_empty or self._cursor is None:
            return False
        page = await self._page(f"{backlog.left_out_from}-0", self._cursor.decode())
        for seq, owner, entry, headers in self._sorted(page):
            if owner == number and not backlog.offer_again(seq, entry, headers):
                return True
        # All entries up to the page's last one were offered; behind the cursor the ordinary reading goes on.
        read_seq, cursor_seq = seq_of(page[-1][0] if page else self._cursor), seq_of(self._cursor)
        backlog.left_out_from = read_seq + 1 if read_seq < cursor_seq else None
        if backlog.left_out_from is None:
            log.info("destination takes part again", lane=self._lane, destination=self._destinations[number].name)
        self._progress.set()
        return True

    def _sorted(self, page: Sequence[RawEntry]) -> list[tuple[int, int, bytes, bytes]]:
        poison = len(self._destinations) - 1
        return sort_page(page, lane=self._lane, shard_by_bucket=self._shard_by_bucket, poison=poison)

    async def _page(self, start: str, end: str) -> list[RawEntry]:
        page: Any = await self._redis.xrange(self._stream, start, end, count=PAGE_ENTRIES)
        return list(page)

    async def _wait_for_entries(self, beat: Beat) -> None:
        """Return as soon as there is an entry behind the cursor."""
        after = self._cursor.decode() if self._cursor is not None else "0-0"
        while not await self._redis.xread({self._stream: after}, count=1, block=WAKE_BLOCK_MS):
            beat()

    # Publishing

    async def _publish(self, destination: Destination) -> None:
        """One publish at a time, each repeated until it is confirmed. Ends when draining."""
        backoff = Backoff(first_s=0.02, longest_s=0.5)
        batch: list[Entry] = []
        while not self._draining:
            batch = batch or destination.backlog.take(destination.batch_max)
            if not batch:
                await destination.backlog.work.wait()
            elif await self._publish_once(destination, batch):
                destination.backlog.confirm(batch[0][0])
                self._progress.set()
                backoff.reset()
                batch = []
            else:
                await asyncio.sleep(backoff.next_s())

    async def _publish_once(self, destination: Destination, batch: Sequence[Entry]) -> bool:
        try:
            await destination.publish(batch)
        except (QueueFull, DeadLettersFull):
            metrics.FAILURES.labels(destination.name, "full").inc()
            return False
        except (QueueUnavailable, DeadLettersUnavailable) as error:
            metrics.FAILURES.labels(destination.name, "unavailable").inc()
            log.warning("publish not confirmed", lane=self._lane, destination=destination.name, error=error.detail)
            return False
        return True

    def _publisher_to(self, shard: int) -> Callable[[Sequence[Entry]], Awaitable[None]]:
        name = order_queue(shard)
        published = metrics.PUBLISHED.labels(self._lane, shard)
        messages = metrics.MESSAGES.labels(self._lane, shard)

        async def publish(batch: Sequence[Entry]) -> None:
            message_id = f"{self._lane}:{batch[0][0]}-{batch[-1][0]}"
            entries = [(seq, entry) for seq, entry, _ in batch]
            body = encode_orders(self._lane, entries, [headers for _, _, headers in batch])
            await self._queue.publish(name, body, message_id=message_id)
            published.inc(len(batch))
            messages.inc()

        return publish

    async def _bury(self, batch: Sequence[Entry]) -> None:
        [(seq, body, _)] = batch
        await self._letters.add(
            NewLetter(
                queue=POISON_ENTRIES,
                message_id=f"{self._lane}:{seq}",
                body=body,
                kind=FailureKind.UNROUTABLE,
                reason="entry of the lane's stream belongs to no shard: malformed",
                headers={"lane": str(self._lane), "lane_seq": str(seq)},
                replayable=False,
            )
        )
        metrics.POISON.labels(self._lane).inc()
        log.error("poison entry", lane=self._lane, lane_seq=seq)

    # Trimming

    async def _trim(self) -> None:
        while True:
            if self._some_ahead:
                await tasks.wait_within(self._progress, NOTE_S)
            else:
                await self._progress.wait()
            self._progress.clear()
            await self._trim_confirmed()
            await asyncio.sleep(TRIM_PAUSE_S)

    async def _trim_confirmed(self) -> None:
        """Trim up to the last entry before which nothing is unconfirmed. The script checks the lease, not our clock."""
        if self._cursor is None:
            return
        read = seq_of(self._cursor)
        oldest = [destination.backlog.oldest_unconfirmed for destination in self._destinations]
        confirmed = [read if seq is None else min(seq - 1, read) for seq in oldest]
        upto = min(confirmed)
        if upto > self._trimmed_seq:
            trimmed = await self._lanes.trim(self._lane, token=self._lease.token, upto=upto)
            self._trimmed_seq = upto
            metrics.TRIMMED.labels(self._lane).inc(trimmed)
        await self._note_relayed(confirmed, upto)

    # Progress of each destination

    @property
    def _fields(self) -> list[str]:
        """The fields of the hash: with another number of shards or another map, entries have other destinations."""
        shards = len(self._destinations) - 1
        version = f".{self._map_version}" if self._map_version else ""
        return [f"{destination.name}/{shards}{version}" for destination in self._destinations]

    async def _read_relayed(self) -> None:
        values: Any = await self._redis.hmget(self._relayed_key, self._fields)
        self._relayed = [int(value) if value is not None and value.isdigit() else 0 for value in values]
        if self._map_version:
            noted: Any = await self._redis.hkeys(self._relayed_key)
            if old := [field for field in noted if field.decode() not in self._fields]:
                await self._redis.hdel(self._relayed_key, *old)

    async def _note_relayed(self, confirmed: Sequence[int], trimmed: int) -> None:
        """Note the destinations that are ahead of the trimmed prefix.

        A note is true whenever it is written, also by a session that has lost its lease: an older one costs repeats.
        """
        self._some_ahead = max(confirmed) > trimmed
        if not self._some_ahead or time.monotonic() < self._note_at:
            return
        self._note_at = time.monotonic() + NOTE_S
        notes = {
            field: seq
            for field, seq, noted in zip(self._fields, confirmed, self._relayed, strict=True)
            if seq > max(noted, trimmed)
        }
        if notes:
            await self._redis.hset(self._relayed_key, mapping=notes)  # type: ignore[arg-type]  # Mapping is invariant
