"""The event log port on Kafka. Topics are created by `flashsale migrate` (`runtime.event_log.kafka_topics`).

Clients are bound to an event loop, so they are created when they are first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from domain.topology import TopicSpec
from runtime.event_log.kafka_access import KafkaAccess
from runtime.event_log.kafka_client import KafkaClient
from runtime.event_log.kafka_producer import KafkaProducer
from runtime.event_log.kafka_reader import KafkaReader
from runtime.event_log.port import NewRecord, check_append, declared


class KafkaEventLog:
    """See `runtime.event_log.port.EventLog`."""

    def __init__(self, url: str, specs: Iterable[TopicSpec], access: KafkaAccess) -> None:
        """Connects when it is first used. Raises KafkaAccessError."""
        self._arguments = access.arguments(url)
        self._specs = {spec.name: spec for spec in specs}
        self._producer = KafkaProducer(self._arguments)
        self._client = KafkaClient(self._arguments)

    async def append(self, topic: str, partition: int, records: Sequence[NewRecord]) -> None:
        """One batch, or several one after the other, each acknowledged by all replicas in sync."""
        declared(self._specs, topic, (partition,))
        check_append(topic, partition, records)
        await self._producer.append(topic, partition, records)

    def reader(
        self, group: str | None, topic: str, partitions: Iterable[int], *, begin_at_end: bool = False
    ) -> KafkaReader:
        """A reader of these partitions, with a connection of its own for its fetches."""
        listed = tuple(partitions)
        declared(self._specs, topic, listed)
        return KafkaReader(
            self._client,
            KafkaClient(self._arguments),
            group=group,
            topic=topic,
            partitions=listed,
            begin_at_end=begin_at_end,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._producer.close()
        await self._client.close()
