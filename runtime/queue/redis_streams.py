"""The queue port on Redis Streams: the embedded stack's queue, and the reference for its contract suite.

A queue is four keys with one hash tag (Redis Cluster): `queue:{name}:stream` (one consumer group), `:retry` (sorted
set by due time), `:waiting` (hash: the messages of the sorted set), `:returned` (entry id of the last retry that was
moved back). Every change of place is one script, so a crash leaves a message in exactly one place. Durable as far as
Redis's own AOF is. Needs no declaration in Redis: the specs give the names and the bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from domain.topology import QueueSpec
from runtime.queue.encoding import (
    COUNT_MAX,
    TIME_MS_MAX,
    decode_failures,
    decode_headers,
    decode_history,
    encode_failures,
    encode_history,
    within,
)
from runtime.queue.port import Delivery, Failure, QueueDepth, QueueFull, QueueUnavailable, UnknownQueue, check_body
from runtime.queue.redis_streams_consumer import CLAIM_MS, StreamConsumer
from runtime.redis import client as clients
from runtime.redis.scripts import Argument, Script, load_script, run

GROUP = "workers"
BARRIER_POLL_S = 0.05

_PUBLISH = load_script("runtime.queue", "queue_publish-2")
_ACK = load_script("runtime.queue", "queue_ack-1")
_RETRY = load_script("runtime.queue", "queue_retry-3")
_BARRIER = load_script("runtime.queue", "queue_barrier-3")


def stream_key(queue: str) -> str:
    """Stream of a queue's messages."""
    return f"queue:{{{queue}}}:stream"


def retry_key(queue: str) -> str:
    """Sorted set of waiting retries, score: due time in ms."""
    return f"queue:{{{queue}}}:retry"


def waiting_key(queue: str) -> str:
    """Hash of the waiting retries' messages."""
    return f"queue:{{{queue}}}:waiting"


def returned_key(queue: str) -> str:
    """String: entry id of the last retry that was moved back into the stream."""
    return f"queue:{{{queue}}}:returned"


class RedisStreamsQueue:
    """See `runtime.queue.port.Queue`."""

    def __init__(
        self,
        url: str,
        specs: Iterable[QueueSpec],
        *,
        length_max: int,
        connections_max: int = 64,
        claim_ms: int = CLAIM_MS,
    ) -> None:
        """`claim_ms`: deliveries of a consumer that shows no sign of life go to another one after this time."""
        self._redis = clients.redis_client(url, connections_max=connections_max)
        self._length_max = {spec.name: spec.length_max or length_max for spec in specs}
        self._claim_ms = claim_ms

    async def publish(
        self,
        queue: str,
        body: bytes,
        *,
        message_id: str,
        headers: Mapping[str, str] | None = None,
        first_seen_ms: int | None = None,
        history: Sequence[Failure] = (),
    ) -> None:
        """Append and return when Redis has answered, with `appendfsync always` after its fsync."""
        length_max = self._bound(queue)
        check_body(body)
        keys = (stream_key(queue), retry_key(queue))
        encoded = orjson.dumps(dict(headers)) if headers else b"{}"
        args = (length_max, message_id, encoded, body, first_seen_ms or 0, encode_history(history))
        if await _run(self._redis, queue, _PUBLISH, keys, args) == 0:
            raise QueueFull(queue)

    def consume(self, queue: str, *, prefetch: int) -> StreamConsumer:
        """A consumer that holds at most `prefetch` unsettled deliveries."""
        self._bound(queue)
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
            returned=returned_key(queue),
        )

    async def depth(self, queue: str) -> QueueDepth:
        """The lengths of both places. Entries in the hands of consumers are in the stream and count."""
        self._bound(queue)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xlen(stream_key(queue))
        pipeline.zcard(retry_key(queue))
        messages, retrying = await _answer(queue, pipeline.execute())
        return QueueDepth(messages, retrying)

    async def barrier(self, queue: str, *, wait_s: float) -> bool:
        """Poll until no entry up to the stream's newest of now is left, and no retry waits."""
        self._bound(queue)
        keys = (stream_key(queue), retry_key(queue), returned_key(queue))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        barrier: Argument = ""
        while True:
            settled, barrier = await _run(self._redis, queue, _BARRIER, keys, (barrier,))
            if settled:
                return True
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(BARRIER_POLL_S)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def delivery(
        self, queue: str, consumer: StreamConsumer, entry_id: bytes, fields: Mapping[bytes, bytes]
    ) -> Delivery:
        """A stream entry as it is handed to a consumer's caller; one without our fields has a `problem`."""
        try:
            return self._decoded(queue, consumer, entry_id, fields)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            return Delivery(
                queue=queue,
                message_id=f"entry {entry_id.decode()}",
                body=orjson.dumps({name.hex(): value.hex() for name, value in fields.items()}),
                headers={},
                attempt=1,
                first_seen_ms=min(int(entry_id.partition(b"-")[0]), TIME_MS_MAX),
                failures={},
                history=(),
                tag=entry_id.decode(),
                settlement=_ConsumerSettlement(self, consumer),
                problem=f"undecodable entry of the queue's stream: {type(error).__name__}: {error}",
            )

    def _decoded(
        self, queue: str, consumer: StreamConsumer, entry_id: bytes, fields: Mapping[bytes, bytes]
    ) -> Delivery:
        return Delivery(
            queue=queue,
            message_id=fields[b"m"].decode(),
            body=fields[b"b"],
            headers=decode_headers(fields[b"h"]),
            attempt=within(int(fields[b"a"]), 1, COUNT_MAX),
            first_seen_ms=within(int(fields[b"f"]), 0, TIME_MS_MAX),
            failures=decode_failures(fields[b"k"]),
            history=decode_history(fields[b"r"]),
            tag=entry_id.decode(),
            settlement=_ConsumerSettlement(self, consumer),
        )

    async def ack(self, delivery: Delivery) -> None:
        """Acknowledge and remove."""
        await _run(self._redis, delivery.queue, _ACK, (stream_key(delivery.queue),), (GROUP, delivery.tag))

    async def retry(self, delivery: Delivery, *, delay_ms: int, failure: Failure) -> None:
        """Move to the waiting retries. Never raises QueueFull: a waiting message keeps its place under the bound."""
        queue = delivery.queue
        history = encode_history(delivery.history_with(failure))
        failures = encode_failures(delivery.failures_with(failure))
        args = (GROUP, delivery.tag, delay_ms, delivery.attempt + 1, history, failures)
        await _run(self._redis, queue, _RETRY, (stream_key(queue), retry_key(queue), waiting_key(queue)), args)

    def _bound(self, queue: str) -> int:
        try:
            return self._length_max[queue]
        except KeyError:
            raise UnknownQueue(queue) from None


class _ConsumerSettlement:
    """Settles through the queue and makes room in the consumer, also after an error: then the message comes again.

    But for QueueFull: the message stays with the consumer, which goes on to show signs of life for it.
    """

    __slots__ = ("_consumer", "_queue")

    def __init__(self, queue: RedisStreamsQueue, consumer: StreamConsumer) -> None:
        self._queue = queue
        self._consumer = consumer

    async def ack(self, delivery: Delivery) -> None:
        await self._settle(delivery, self._queue.ack(delivery))

    async def retry(self, delivery: Delivery, *, delay_ms: int, failure: Failure) -> None:
        await self._settle(delivery, self._queue.retry(delivery, delay_ms=delay_ms, failure=failure))
        self._consumer.look_after_retries()

    async def _settle(self, delivery: Delivery, operation: Awaitable[None]) -> None:
        try:
            await operation
        except QueueFull:
            raise
        except BaseException:
            self._consumer.forget(delivery.tag)
            raise
        self._consumer.forget(delivery.tag)


async def _answer(queue: str, operation: Awaitable[Any]) -> Any:
    """The client's errors as the port's. Redis at its memory bound is a full queue."""
    try:
        return await operation
    except OutOfMemoryError as error:
        raise QueueFull(queue) from error
    except (RedisError, OSError, TimeoutError) as error:
        raise QueueUnavailable(queue, str(error) or type(error).__name__) from error


async def _run(redis: Redis, queue: str, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
    return await _answer(queue, run(redis, script, keys, args))
