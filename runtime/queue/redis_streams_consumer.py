"""A consumer of one queue on Redis Streams. Does not settle: the queue does.

Reads ahead up to its prefetch, shows signs of life for the deliveries that it holds, claims those of dead consumers,
and moves due retries back into the stream.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from runtime.process import tasks
from runtime.process.backoff import Backoff
from runtime.queue.handing_out import HandingOut
from runtime.queue.port import Delivery
from runtime.redis.scripts import load_script, run

CLAIM_MS = 5_000
BLOCK_MS_MAX = 4_000  # below the client's time-out of 5 s
DUE_MOVED_MAX = 100
DELAY_MS_MAX = 600_000  # the longest delay of any retry policy
CLOCK_BACK_S_MIN = 1.0  # a step back, not the slow correction of a clock
REWOUND_AT_ONCE = 1000
CLAIM_LOOKS = 4  # signs of life, and looks for others', in one claim time
UPKEEP_MS = 1000  # a retry that another consumer made is noticed after this time
REST_AFTER_S = 5.0  # without a delivery: the upkeep of a queue without messages rests
REST_SHARE = 0.8  # of the claim time: so long one look shows that nothing is to be claimed
TIDY_S = 60.0
STALE_CONSUMER_MS = 600_000

log = structlog.get_logger()

_DUE = load_script("runtime.queue", "queue_due-4")
_REWIND = load_script("runtime.queue", "queue_rewind-1")
_TOUCH = load_script("runtime.queue", "queue_touch-1")
_LEAVE = load_script("runtime.queue", "queue_leave-1")


class DeliverySource(Protocol):
    """Makes deliveries out of stream entries (the queue)."""

    def delivery(
        self, queue: str, consumer: StreamConsumer, entry_id: bytes, fields: Mapping[bytes, bytes]
    ) -> Delivery:
        """A delivery; its settlement calls `consumer.forget`."""
        ...


class StreamConsumer(HandingOut):
    """See `runtime.queue.port.Consumer`. `prefetch` bounds the unsettled deliveries, both read ahead and handed out."""

    def __init__(
        self,
        redis: Redis,
        source: DeliverySource,
        *,
        queue: str,
        group: str,
        prefetch: int,
        claim_ms: int,
        stream: str,
        retries: str,
        waiting: str,
        returned: str,
    ) -> None:
        """`stream`, `retries`, `waiting`, `returned` are the queue's keys."""
        assert prefetch >= 1
        super().__init__()
        self._redis = redis
        self._source = source
        self._queue = queue
        self._group = group
        self._prefetch = prefetch
        self._claim_ms = claim_ms
        self._stream = stream
        self._retries = retries
        self._waiting = waiting
        self._returned = returned
        self._name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._held: set[str] = set()
        self._room = asyncio.Event()
        self._upkeep = asyncio.Event()
        self._problems: dict[str, str] = {}  # by task: one that works does not hide the other's trouble
        self._none_pending_at = -math.inf  # when no consumer held a delivery
        self._delivered_at = time.monotonic()
        self._resting = False
        self._clock_ahead_s: float | None = None  # of Redis, ahead of our own monotonic one
        self._claims_next_at = self._touches_next_at = self._tidies_next_at = 0.0

    @property
    def problem(self) -> str | None:
        """Why nothing can be read at present; None when all is well."""
        troubled = [f"{name}: {problem}" for name, problem in self._background.problems.items()]
        return "; ".join([*self._problems.values(), *troubled]) or None

    @property
    def held_count(self) -> int:
        """Unsettled deliveries, at most `prefetch`."""
        return len(self._held)

    async def __aenter__(self) -> Self:
        """Start to read."""
        for name, step in ((f"read {self._queue}", self._read), (f"keep {self._queue}", self._keep)):
            self._background.start(name, partial(self._forever, name, step))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; unsettled deliveries may go to other consumers at once."""
        self._closed = True
        await self._background.stop()
        self._ready.clear()
        self._changed.set()
        try:
            await run(self._redis, _LEAVE, (self._stream,), (self._group, self._name, *self._held))
        except (RedisError, OSError) as problem:
            # Others claim it after claim_ms all the same.
            log.warning("consumer could not give back", queue=self._queue, error=str(problem))
        self._held.clear()

    def forget(self, tag: str) -> None:
        """A delivery was settled, or is left for others to claim: no further sign of life for it, room for another."""
        self._held.discard(tag)
        self._room.set()

    def look_after_retries(self) -> None:
        """A retry was added that may be due before the next look."""
        self._upkeep.set()

    async def _forever(self, task: str, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat `step`; after an error with pauses, and with a problem of the task until its next step succeeds."""
        backoff = Backoff(first_s=0.05, longest_s=1.0)
        while True:
            try:
                await step()
                self._problems.pop(task, None)
                backoff.reset()
            except ResponseError as error:
                if str(error).startswith(("NOGROUP", "no such key")):  # a queue that had no message yet
                    await self._create_group(task)
                    continue
                await self._note(task, error, backoff)
            except (RedisError, OSError, TimeoutError) as error:
                await self._note(task, error, backoff)
            except Exception as error:
                # Without this the task would end, and the queue would stand still without a sign.
                log.exception("consumer task failed, it goes on", queue=self._queue)
                await self._note(task, error, backoff)

    async def _note(self, task: str, error: Exception, backoff: Backoff) -> None:
        self._problems[task] = f"{self._queue}: {error or type(error).__name__}"
        log.warning("queue not readable", queue=self._queue, error=str(error) or type(error).__name__)
        await asyncio.sleep(backoff.next_s())

    async def _create_group(self, task: str) -> None:
        """Create the group at the stream's beginning, so that earlier messages are delivered."""
        try:
            await self._redis.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another consumer was faster
                self._problems[task] = f"{self._queue}: {error}"
                await asyncio.sleep(1)
        except (RedisError, OSError) as error:
            self._problems[task] = f"{self._queue}: {error}"
            await asyncio.sleep(0.2)

    async def _read(self) -> None:
        """Claim if it is time to, then one blocking read.

        One task does both, so that the prefetch is never exceeded.
        """
        if not self._has_room():
            self._room.clear()
            await self._room.wait()
            return
        if time.monotonic() >= self._claims_next_at:
            if not self._is_nothing_to_claim():
                await self._claim()
            self._claims_next_at = time.monotonic() + self._claim_ms / CLAIM_LOOKS / 1000
        if self._has_room():
            count = self._prefetch - len(self._held)
            # So that each look at others' deliveries is followed by one read.
            block_ms = min(BLOCK_MS_MAX, self._claim_ms // CLAIM_LOOKS)
            reply: Any = await self._redis.xreadgroup(
                self._group, self._name, {self._stream: ">"}, count=count, block=block_ms
            )
            for _, entries in reply or []:
                self._take(entries)

    def _is_nothing_to_claim(self) -> bool:
        """Whether the upkeep saw no delivery that can have been idle for the claim time by now: in an idle queue."""
        return time.monotonic() < self._none_pending_at + self._claim_ms / 1000

    def _has_room(self) -> bool:
        return len(self._held) < self._prefetch

    def _take(self, entries: list[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        for entry_id, fields in entries:
            if fields:  # an entry that was deleted while pending has none
                # Made first: an entry that is held and not handed out would stay so for ever.
                delivery = self._source.delivery(self._queue, self, entry_id, fields)
                self._held.add(delivery.tag)
                self._ready.append(delivery)
        if self._ready:
            self._changed.set()
            self._delivered_at = time.monotonic()
            if self._resting:  # a delivery in hand needs signs of life
                self._upkeep.set()

    async def _claim(self) -> None:
        """Take over the deliveries of consumers that show no sign of life, as far as there is room.

        One call may find fewer than there are, so the scan goes on until its cursor is back at 0-0.
        """
        cursor = "0-0"
        while self._has_room():
            count = self._prefetch - len(self._held)
            reply: Any = await self._redis.xautoclaim(
                self._stream, self._group, self._name, self._claim_ms, start_id=cursor, count=count
            )
            # Our own deliveries are idle for so long only after a late sign of life: do not take them twice.
            self._take([(entry_id, fields) for entry_id, fields in reply[1] if entry_id.decode() not in self._held])
            cursor = reply[0].decode()
            if cursor == "0-0":
                return

    async def _follow_clock(self, now_s: float) -> None:
        """Notice a clock of Redis that went back, also before this consumer came: deliveries seem to be of later."""
        ahead_s = now_s - time.monotonic()
        if self._clock_ahead_s is None or ahead_s < self._clock_ahead_s - CLOCK_BACK_S_MIN:
            if self._clock_ahead_s is not None:
                log.warning(
                    "the clock of Redis went back", queue=self._queue, by_s=round(self._clock_ahead_s - ahead_s, 1)
                )
            start = "-"
            while start:
                found = await run(self._redis, _REWIND, (self._stream,), (self._group, start, REWOUND_AT_ONCE))
                start = "(" + found.decode() if found else ""
        self._clock_ahead_s = ahead_s

    async def _keep(self) -> None:
        """A round of upkeep: signs of life, due retries, and now and then the names of dead consumers."""
        now = time.monotonic()
        if self._held and now >= self._touches_next_at:
            self._touches_next_at = now + self._claim_ms / CLAIM_LOOKS / 1000
            for entry_id in await run(self._redis, _TOUCH, (self._stream,), (self._group, self._name, *self._held)):
                self.forget(entry_id.decode())
        if now >= self._tidies_next_at:
            await self._remove_stale_consumers()
            self._tidies_next_at = now + TIDY_S
        keys = (self._stream, self._retries, self._waiting, self._returned)
        asked_at = time.monotonic()
        self._upkeep.clear()  # before the look: a retry or a delivery of meanwhile ends the pause after it
        next_due_ms, now_us, pending = await run(self._redis, _DUE, keys, (DUE_MOVED_MAX, DELAY_MS_MAX, self._group))
        if not pending:
            self._none_pending_at = asked_at
        await self._follow_clock(now_us / 1e6)
        is_empty = next_due_ms < 0 and not pending and not self._held
        self._resting = is_empty and asked_at - self._delivered_at > REST_AFTER_S
        longest_ms = self._claim_ms * REST_SHARE if self._resting else min(UPKEEP_MS, self._claim_ms / CLAIM_LOOKS)
        longest_s = tasks.until_tick(longest_ms / 1000)
        pause_s = longest_s if next_due_ms < 0 else min(next_due_ms / 1000, longest_s)
        await tasks.wait_within(self._upkeep, pause_s)

    async def _remove_stale_consumers(self) -> None:
        """Forget consumers that died long ago and hold nothing."""
        for info in await self._redis.xinfo_consumers(self._stream, self._group):
            if info["pending"] == 0 and info["idle"] > STALE_CONSUMER_MS:
                await run(self._redis, _LEAVE, (self._stream,), (self._group, info["name"]))
