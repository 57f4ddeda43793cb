"""Appends records to Kafka by an idempotent producer: acks=all, one batch for each append.

aiokafka's producer repeats a request until the broker answers, without an end. Here an append ends after
`APPEND_S_MAX`. The producer is then replaced: it would send its old batches after newer ones, once a broker answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, errors

from runtime.event_log.kafka_client import partitions_of, words
from runtime.event_log.port import EventLogUnavailable, NewRecord
from runtime.process.backoff import Backoff

APPEND_S_MAX = 5.0
BATCH_BYTES_MAX = 900_000  # below the broker's limit for a batch, message.max.bytes = 1,048,588
STOP_S_MAX = 1.0


class KafkaProducer:
    """See the module. Connects when it is first used."""

    def __init__(self, arguments: Mapping[str, Any], *, append_s_max: float = APPEND_S_MAX) -> None:
        """`arguments` are those of `KafkaAccess.arguments`."""
        self._arguments = dict(arguments)
        self._append_s_max = append_s_max
        self._producer: AIOKafkaProducer | None = None
        self._opening = asyncio.Lock()
        self._backoff = Backoff(first_s=0.05, longest_s=1.0)
        self._opens_at = 0.0

    async def append(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """Return when all records are acknowledged. Raises EventLogUnavailable."""
        used: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(self._append_s_max):
                used = await self._opened()
                await partitions_of(used.client, topic, (partition,))
                done = 0
                while done < len(records):
                    batch = used.create_batch()
                    done += _fill(batch, records[done:])
                    batch.close()
                    # The next batch waits: after a failure, the log must not hold later records without earlier ones.
                    await (await used.send_batch(batch, topic, partition=partition))
        except errors.UnknownTopicOrPartitionError as error:
            raise EventLogUnavailable(topic, partition, words(error)) from error
        except (errors.KafkaError, OSError, TimeoutError) as error:
            await self._discard(used)
            raise EventLogUnavailable(topic, partition, words(error)) from error
        except asyncio.CancelledError:
            await self._discard(used)
            raise
        self._backoff.reset()

    async def close(self) -> None:
        """Close the connections."""
        await self._discard(self._producer)

    async def _opened(self) -> AIOKafkaProducer:
        async with self._opening:
            if self._producer is None:
                await asyncio.sleep(max(0.0, self._opens_at - time.monotonic()))
                producer = AIOKafkaProducer(
                    **self._arguments,
                    client_id="flashsale",
                    enable_idempotence=True,
                    acks="all",
                    max_batch_size=BATCH_BYTES_MAX,
                    request_timeout_ms=int(self._append_s_max * 1000),
                    retry_backoff_ms=50,
                )
                try:
                    await producer.start()
                except BaseException:
                    self._opens_at = time.monotonic() + self._backoff.next_s()
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def _discard(self, used: AIOKafkaProducer | None) -> None:
        """Replace a producer that failed; its batches that are still waiting fail as well."""
        if used is None or used is not self._producer:
            return
        self._producer = None
        self._opens_at = time.monotonic() + self._backoff.next_s()
        await _end(used)


async def _end(producer: AIOKafkaProducer) -> None:
    """Close a producer without delivering its batches."""
    _fail_waiting(producer)
    # A broker that does not answer: the time-out cancels the requests under way.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(STOP_S_MAX):
            await producer.stop()
    await producer.client.close()


def _fail_waiting(producer: AIOKafkaProducer) -> None:
    """End the waits for batches that this producer will not deliver; `stop` would wait for them."""
    accumulator = producer._message_accumulator
    waiting = [batch for batches in accumulator._batches.values() for batch in batches]
    for batch in (*waiting, *accumulator._pending_batches):
        if not batch.future.done():
            batch.future.set_exception(errors.KafkaConnectionError("the producer was replaced"))
            batch.future.exception()  # its waiter may have given up: no warning that nothing took it


def _fill(batch: Any, records: Sequence[NewRecord]) -> int:
    """Add records until the batch is full; their number. One record of RECORD_BYTES_MAX always fits."""
    for number, record in enumerate(records):
        headers = [(name, value.encode()) for name, value in record.headers.items()]
        if batch.append(key=record.key.encode(), value=record.value, timestamp=None, headers=headers) is None:
            assert number > 0, "the record is larger than RECORD_BYTES_MAX"
            return number
    return len(records)
