"""A rebuild: look at the log, copy the days that are kept, count the others, compare, switch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any, Final

import psycopg
from psycopg_pool import PoolTimeout

from domain.topology import TopicSpec
from runtime.event_log import EventLog, Overtaken, Reader, WentBack
from workers.analytics.consumer import RECORDS_MAX, countable, oldest_ms
from workers.analytics.rebuild.errors import RebuildError
from workers.analytics.rebuild.generations import Generations
from workers.analytics.rebuild.retained import WAIT_S, Retained, first_day, retained
from workers.analytics.store import DAY_MS, Batch, Figures, PositionsMoved, date_of
from workers.analytics.topics import COUNTED_TOPICS

TRIES_MAX: Final = 100  # to overtake the worker that counts the served generation
SAY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """The result. Days before `first_day` are kept; None: the log has no records."""

    done: bool
    topics: list[Retained]
    first_day: date | None
    kept_days: int
    counted: int = 0
    missing: int = 0

    def as_document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Rebuild:
    """One run. The caller holds the lock (`Generations.lock`)."""

    def __init__(
        self,
        *,
        event_log: EventLog,
        generations: Generations,
        figures: Figures,
        days: int,
        say: Callable[[str], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`figures` are those of the next generation; `say` takes lines of progress."""
        self._event_log = event_log
        self._generations = generations
        self._figures = figures
        self._days = days
        self._say = say
        self._now = now
        self._known: dict[str, dict[int, int]] = {}
        self._readers: dict[str, Reader] = {}
        self._counted = 0

    async def look(self) -> Report:
        """What a run would do. Changes nothing."""
        now_ms = int(self._now() * 1000)
        topics = await retained(self._event_log, now_ms=now_ms)
        oldest = oldest_ms(now_ms, self._days) // DAY_MS
        day = first_day(topics, oldest_counted_day=oldest)
        if day is None:
            return Report(done=False, topics=topics, first_day=None, kept_days=0)
        return Report(
            done=False, topics=topics, first_day=date_of(day), kept_days=await self._generations.kept_days(day)
        )

    async def run(self, *, force: bool = False) -> Report:
        """Rebuild. `force`: switch even if the log lacks events that are counted. Raises RebuildError."""
        plan = await self.look()
        if plan.first_day is None:
            raise RebuildError("the event log has no records: there is nothing to count the figures from")
        for kept in plan.topics:
            if kept.removed:
                self._say(f"{kept.topic}: retention has removed {kept.removed} records")
        day = (plan.first_day - date_of(0)).days
        self._say(f"the figures of days before {plan.first_day} are kept: {plan.kept_days} days")
        await self._generations.begin(day)
        async with AsyncExitStack() as stack:
            for topic in COUNTED_TOPICS:
                self._known[topic.name] = await self._figures.positions(topic.name, topic.partitions)
                reader = self._event_log.reader(None, topic.name, range(topic.partitions))
                self._readers[topic.name] = await stack.enter_async_context(reader)
            await self._find_beyond()
            missing = await self._compare(day, force=force)
            for _ in range(TRIES_MAX):
                await self._catch_up()
                if await self._generations.switch():
                    break
            else:
                raise RebuildError("the worker counts faster than the rebuild: the figures are as before; run it later")
        self._say("the new figures are served")
        try:
            await self._generations.remove_old()
        except (psycopg.Error, PoolTimeout) as error:
            self._say(f"the old figures were not removed ({error}): the next rebuild removes them")
        return replace(plan, done=True, counted=self._counted, missing=missing)

    async def _find_beyond(self) -> None:
        """Positions that a log which lost data does not reach."""
        positions = await self._generations.positions()  # before the ends, which only grow
        ends = {
            (topic, partition): lag.end
            for topic, reader in self._readers.items()
            for partition, lag in (await reader.lag()).items()
        }
        self._generations.ignore({place: offset for place, offset in positions.items() if offset > ends.get(place, 0)})

    async def _compare(self, day: int, *, force: bool) -> int:
        """Count until no change is missing that the served generation has; the number of those that stay missing."""
        for _ in range(TRIES_MAX):
            await self._catch_up()
            missing = await self._generations.missing(day)
            if missing is None:
                continue
            lost = sum(count for _, count in missing)
            if lost and not force:
                days = ", ".join(f"{count} of {at}" for at, count in missing)
                raise RebuildError(
                    f"the event log lacks events that are counted ({days}): the figures are as before. "
                    "--force counts without them"
                )
            return lost
        raise RebuildError("the worker counts faster than the rebuild: the figures are as before; run it later")

    async def _catch_up(self) -> None:
        for topic in COUNTED_TOPICS:
            try:
                await self._read(topic, self._readers[topic.name])
            except PositionsMoved as moved:
                raise RebuildError(
                    "another rebuild of the figures has begun, because this one lost its lock: wait for its end"
                ) from moved
            except (Overtaken, WentBack) as loss:
                raise RebuildError(
                    f"the event log lost records during the rebuild: {loss}. The figures are as before; run it again"
                ) from loss

    async def _read(self, topic: TopicSpec, reader: Reader) -> None:
        """Count the records that the topic has now."""
        known, said_at = self._known[topic.name], time.monotonic()
        ends = {partition: lag.end for partition, lag in (await reader.lag()).items()}
        while any(known[partition] < end for partition, end in ends.items() if end):
            records = await reader.next_batch(count_max=RECORDS_MAX, wait_s=WAIT_S)
            if not records:
                await self._pass_removed(topic, reader)
                return
            changes, _ = countable(records, now_ms=int(self._now() * 1000), days=self._days)
            await self._figures.make_days({counted.at_ms // DAY_MS for counted in changes})
            read = {record.partition: record.offset for record in records}
            batch = Batch(changes, {partition: known[partition] for partition in read}, read)
            self._counted += await self._figures.apply(topic.name, batch, None)
            known.update(read)
            if time.monotonic() >= said_at + SAY_S:
                said_at = time.monotonic()
                left = sum(lag.records for lag in (await reader.lag()).values())
                self._say(f"{topic.name}: {self._counted} events are counted, {left} records are left")

    async def _pass_removed(self, topic: TopicSpec, reader: Reader) -> None:
        """Move the positions of partitions that retention emptied: there is nothing to count."""
        known = self._known[topic.name]
        passed = {p: lag.position for p, lag in (await reader.lag()).items() if lag.position > max(0, known[p])}
        if passed:
            await self._figures.apply(topic.name, Batch([], {p: known[p] for p in passed}, passed), None)
            known.update(passed)
