"""The queue port on Redis Streams: the embedded stack's queue, and the reference for its contract suite.

A queue is four keys with one hash tag (Redis Cluster): `queue:{name}:stream` (one consumer group), `:retry` (sorted set
by due time), `:waiting` (hash: the messages of the sorted set), `:dead` (stream of dead letters); `queue:dead` is the
set of queues that ever had a dead letter. Every change of place is one script, so a crash leaves a message in exactly
one place. Durable as far as Redis's own AOF is.
"""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from runtime.queue.port import (
    DEAD_LETTERS_PAGE_MAX,
    HISTORY_LENGTH_MAX,
    REASON_LENGTH_MAX,
    DeadLetter,
    DeadLetters,
    Delivery,
    Failure,
    NotReplayable,
    QueueDepth,
    QueueFull,
    QueueUnavailable,
)
from runtime.queue.redis_streams_consumer import CLAIM_MS, StreamConsumer
from runtime.redis import client as clients
from runtime.redis.scripts import Argument, Script, load_script, run

GROUP = "workers"
DEAD_QUEUES_KEY = "queue:dead"

_PUBLISH = load_script("runtime.queue", "queue_publish-2")
_ACK = load_script("runtime.queue", "queue_ack-1")
_RETRY = load_script("runtime.queue", "queue_retry-3")
_DEAD = load_script("runtime.queue", "queue_dead-2")
_BURY = load_script("runtime.queue", "queue_bury-1")
_REPLAY = load_script("runtime.queue", "queue_replay-2")


def stream_key(queue: str) -> str:
    """Stream of a queue's messages."""
    return f"queue:{{{queue}}}:stream"


def retry_key(queue: str) -> str:
    """Sorted set of waiting retries, score: due time in ms."""
    return f"queue:{{{queue}}}:retry"


def waiting_key(queue: str) -> str:
    """Hash of the waiting retries' messages."""
    return f"queue:{{{queue}}}:waiting"


def dead_key(queue: str) -> str:
    """Stream of a queue's dead letters."""
    return f"queue:{{{queue}}}:dead"


def _milliseconds(entry_id: str) -> int:
    """The time part of a stream id that Redis made."""
    return int(entry_id.partition("-")[0])


def _headers(raw: bytes) -> dict[str, str]:
    headers: dict[str, str] = orjson.loads(raw)
    return headers


def _history(raw: bytes) -> tuple[Failure, ...]:
    return tuple(Failure(at_ms, reason) for at_ms, reason in orjson.loads(raw))


class RedisStreamsQueue:
    """See `runtime.queue.port.Queue`."""

    def __init__(
        self, url: str, *, length_max: int, dead_letters_max: int, connections_max: int = 64, claim_ms: int = CLAIM_MS
    ) -> None:
        """`claim_ms`: what a consumer that shows no sign of life held is delivered to another after this time."""
        self._redis = clients.redis_client(url, connections_max=connections_max)
        self._length_max = length_max
        self._claim_ms = claim_ms
        self._dead_letters_max = dead_letters_max
        self._dead_letters = RedisDeadLetters(self._redis, length_max=dead_letters_max)

    @property
    def dead_letters(self) -> DeadLetters:
        """What was given up."""
        return self._dead_letters

    async def publish(
        self, queue: str, body: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Append and return when Redis has answered, with `appendfsync always` after its fsync."""
        keys = (stream_key(queue), retry_key(queue))
        args = (self._length_max, message_id, orjson.dumps(headers or {}), body)
        if await _run(self._redis, queue, _PUBLISH, keys, args) == 0:
            raise QueueFull(queue)

    def consume(self, queue: str, *, prefetch: int) -> StreamConsumer:
        """A consumer that holds at most `prefetch` unsettled deliveries."""
        return StreamConsumer(
            self._redis,
            self,
            queue=queue,
            group=GROUP,
            prefetch=prefetch,
            claim_ms=self._claim_ms,
            stream=stream_key(queue),
            retries=retry_key(queue),
            waiting=waiting_key(queue),
        )

    async def depth(self, queue: str) -> QueueDepth:
        """How much is there."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xlen(stream_key(queue))
        pipeline.zcard(retry_key(queue))
        pipeline.xlen(dead_key(queue))
        messages, retrying, dead = await _answer(queue, pipeline.execute())
        return QueueDepth(messages, retrying, dead)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def delivery(
        self, queue: str, consumer: StreamConsumer, entry_id: bytes, fields: Mapping[bytes, bytes]
    ) -> Delivery:
        """A stream entry as it is handed to a consumer's caller."""
        return Delivery(
            queue=queue,
            message_id=fields[b"m"].decode(),
            body=fields[b"b"],
            headers=_headers(fields[b"h"]),
            attempt=int(fields[b"a"]),
            first_seen_ms=int(fields[b"f"]),
            history=_history(fields[b"r"]),
            tag=entry_id.decode(),
            settlement=_ConsumerSettlement(self, consumer),
        )

    async def ack(self, delivery: Delivery) -> None:
        """Acknowledge and remove."""
        await _run(self._redis, delivery.queue, _ACK, (stream_key(delivery.queue),), (GROUP, delivery.tag))

    async def retry(self, delivery: Delivery, *, delay_ms: int, reason: str) -> None:
        """Move to the waiting retries."""
        queue = delivery.queue
        history = await self._history_with(delivery, reason)
        args = (GROUP, delivery.tag, delay_ms, delivery.attempt + 1, history)
        await _run(self._redis, queue, _RETRY, (stream_key(queue), retry_key(queue), waiting_key(queue)), args)

    async def dead_letter(self, delivery: Delivery, *, reason: str) -> None:
        """Move to the dead letters."""
        queue = delivery.queue
        history = await self._history_with(delivery, reason)
        # First the name: a dead letter in a queue that nobody lists would be lost to people.
        await _answer(queue, self._redis.sadd(DEAD_QUEUES_KEY, queue))
        args = (GROUP, delivery.tag, self._dead_letters_max, reason[:REASON_LENGTH_MAX], history)
        if await _run(self._redis, queue, _DEAD, (stream_key(queue), dead_key(queue)), args) == -1:
            raise QueueFull(f"{queue} (dead letters)")

    async def _history_with(self, delivery: Delivery, reason: str) -> bytes:
        """The history with one more failure, by Redis's clock; the oldest failures are dropped at the bound."""
        seconds, microseconds = await _answer(delivery.queue, self._redis.time())
        now = Failure(seconds * 1000 + microseconds // 1000, reason[:REASON_LENGTH_MAX])
        kept = (*delivery.history, now)[-HISTORY_LENGTH_MAX:]
        return orjson.dumps([[failure.at_ms, failure.reason] for failure in kept])


class _ConsumerSettlement:
    """Settles through the queue and makes room in the consumer, also after an error: then the message comes again."""

    __slots__ = ("_consumer", "_queue")

    def __init__(self, queue: RedisStreamsQueue, consumer: StreamConsumer) -> None:
        self._queue = queue
        self._consumer = consumer

    async def ack(self, delivery: Delivery) -> None:
        await self._settle(delivery, self._queue.ack(delivery))

    async def retry(self, delivery: Delivery, *, delay_ms: int, reason: str) -> None:
        await self._settle(delivery, self._queue.retry(delivery, delay_ms=delay_ms, reason=reason))
        self._consumer.look_after_retries()

    async def dead_letter(self, delivery: Delivery, *, reason: str) -> None:
        await self._settle(delivery, self._queue.dead_letter(delivery, reason=reason))

    async def _settle(self, delivery: Delivery, operation: Awaitable[None]) -> None:
        try:
            await operation
        finally:
            self._consumer.forget(delivery.tag)


class RedisDeadLetters:
    """See `runtime.queue.port.DeadLetters`. An id is `<queue>~<stream id>`; a cursor is the id of the last one seen."""

    def __init__(self, redis: Redis, *, length_max: int) -> None:
        """`length_max` bounds each queue's dead letters."""
        self._redis = redis
        self._length_max = length_max

    async def add(
        self, queue: str, body: bytes, *, message_id: str, reason: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Put a dead letter there; QueueFull at the bound."""
        await _answer(queue, self._redis.sadd(DEAD_QUEUES_KEY, queue))
        args = (self._length_max, message_id, orjson.dumps(headers or {}), body, reason[:REASON_LENGTH_MAX])
        if await _run(self._redis, queue, _BURY, (dead_key(queue),), args) == -1:
            raise QueueFull(f"{queue} (dead letters)")

    async def list(
        self, queue: str | None, *, cursor: str | None = None, limit: int = 50
    ) -> tuple[builtins.list[DeadLetter], str | None]:
        """A page and the cursor of the next one."""
        assert 1 <= limit <= DEAD_LETTERS_PAGE_MAX
        after_queue, after_id = _parse_id(cursor) if cursor is not None else ("", "")
        if queue is None:
            names = await _answer(DEAD_QUEUES_KEY, self._redis.smembers(DEAD_QUEUES_KEY))
            queues = sorted(name.decode() for name in names)
        else:
            queues = [queue]
        letters: list[DeadLetter] = []
        for name in queues:
            if name < after_queue:
                continue
            start = f"({after_id}" if name == after_queue else "-"
            # One more than asked for tells whether there is a next page.
            entries = await _answer(name, self._redis.xrange(dead_key(name), start, "+", limit + 1 - len(letters)))
            letters += [_dead_letter(name, entry_id, fields) for entry_id, fields in entries]
            if len(letters) > limit:
                return letters[:limit], letters[limit - 1].id
        return letters, None

    async def get(self, letter_id: str) -> DeadLetter | None:
        """One dead letter, or None."""
        place = _place(letter_id)
        if place is None:
            return None
        queue, entry_id = place
        entries = await _answer(queue, self._redis.xrange(dead_key(queue), entry_id, entry_id))
        return _dead_letter(queue, *entries[0]) if entries else None

    async def replay(self, letter_id: str) -> bool:
        """Put it back into its queue; one script, so it is never in both places."""
        place = _place(letter_id)
        if place is None:
            return False
        queue, entry_id = place
        answer = await _run(self._redis, queue, _REPLAY, (stream_key(queue), dead_key(queue)), (entry_id,))
        if answer == -1:
            raise NotReplayable(letter_id)
        return bool(answer)

    async def delete(self, letter_id: str) -> bool:
        """Remove for good."""
        place = _place(letter_id)
        if place is None:
            return False
        queue, entry_id = place
        return bool(await _answer(queue, self._redis.xdel(dead_key(queue), entry_id)))


def _parse_id(letter_id: str) -> tuple[str, str]:
    """Queue and stream id; ValueError for what is no id of ours (it may come from a URL)."""
    queue, separator, entry_id = letter_id.rpartition("~")
    ms, dash, number = entry_id.partition("-")
    numbers = (ms, number)
    if not (queue and separator and dash) or not all(n.isascii() and n.isdigit() and len(n) <= 19 for n in numbers):
        raise ValueError("not the id of a dead letter")
    return queue, entry_id


def _place(letter_id: str) -> tuple[str, str] | None:
    """`_parse_id`, with None for an id that cannot exist."""
    try:
        return _parse_id(letter_id)
    except ValueError:
        return None


def _dead_letter(queue: str, entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    number = entry_id.decode()
    return DeadLetter(
        id=f"{queue}~{number}",
        queue=queue,
        message_id=fields[b"m"].decode(),
        body=fields[b"b"],
        headers=_headers(fields[b"h"]),
        reason=fields[b"w"].decode("utf-8", "replace"),
        attempt=int(fields[b"a"]),
        first_seen_ms=int(fields[b"f"]),
        died_ms=_milliseconds(number),
        history=_history(fields[b"r"]),
    )


async def _answer(queue: str, operation: Awaitable[Any]) -> Any:
    """The client's errors in the port's words. Memory at its bound is the broker's way to be full."""
    try:
        return await operation
    except OutOfMemoryError as error:
        raise QueueFull(queue) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise QueueUnavailable(queue, str(error) or type(error).__name__) from error


async def _run(redis: Redis, queue: str, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
    return await _answer(queue, run(redis, script, keys, args))
