"""The queue port on RabbitMQ 3.10 to 4.x: quorum queues, confirms, delay queues with at-least-once dead-lettering.

Speaks AMQP 0-9-1 through aiormq, the client under aio-pika. Parts: names and declaration (`rabbitmq_topology`),
connections (`rabbitmq_link`), messages (`rabbitmq_codec`), the bound (`rabbitmq_room`), consumers, the barrier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.commands import Basic

from domain.topology import QueueSpec
from runtime.queue.port import Delivery, Failure, QueueDepth, QueueFull, QueueUnavailable, UnknownQueue, check_body
from runtime.queue.rabbitmq_barrier import Barrier
from runtime.queue.rabbitmq_codec import properties_of, properties_of_retry
from runtime.queue.rabbitmq_consumer import RabbitConsumer
from runtime.queue.rabbitmq_control import Control
from runtime.queue.rabbitmq_link import ANSWER_S_MAX, Link, as_unavailable, describe
from runtime.queue.rabbitmq_room import Room
from runtime.queue.rabbitmq_topology import (
    RETRYING_LENGTH_MAX,
    declare,
    delay_queue,
    delay_steps,
    place_of_retry,
)

PUBLISH_S_MAX = 10.0  # until the confirm; an alarm of the broker (memory, disk) delays it without bound
DECLARE_S_MAX = 10.0


class RabbitQueue:
    """See `runtime.queue.port.Queue`."""

    def __init__(
        self,
        url: str,
        specs: Iterable[QueueSpec],
        *,
        length_max: int,
        retrying_length_max: int = RETRYING_LENGTH_MAX,
        publish_s_max: float = PUBLISH_S_MAX,
    ) -> None:
        """`length_max` bounds the ready messages of a queue, `retrying_length_max` those of each delay queue."""
        self._specs = {spec.name: spec for spec in specs}
        self._retrying_length_max = retrying_length_max
        self._publish_s_max = publish_s_max
        self._publishing = Link(url, "flashsale-publish", self._declare)
        self._consuming = Link(url, "flashsale-consume", self._declare)
        self._rooms = {
            spec.name: Room(spec.length_max or length_max, partial(self._ready, spec.name))
            for spec in self._specs.values()
        }
        self._barriers: dict[str, list[Barrier]] = {}  # without a call at present

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
        """Publish and return at the confirm: a majority of the queue's nodes has written the message to its disk."""
        room = self._room(queue)
        check_body(body)
        async with as_unavailable(queue):
            if not await room.take():
                raise QueueFull(queue)
        try:
            properties = properties_of(
                message_id=message_id, headers=headers or {}, first_seen_ms=first_seen_ms, history=tuple(history)
            )
            # A work queue has no bound of the broker's: a refusal means that no leader was there to take the message.
            await self._publish(
                queue, queue, body, properties, refusal=QueueUnavailable(queue, "refused by the broker")
            )
        finally:
            room.settle()

    def consume(self, queue: str, *, prefetch: int) -> RabbitConsumer:
        """A consumer that holds at most `prefetch` unsettled deliveries."""
        self._room(queue)
        return RabbitConsumer(self._consuming, self, queue=queue, prefetch=prefetch)

    async def depth(self, queue: str) -> QueueDepth:
        """Ready messages: those in the hands of consumers, and those on their way back from a delay, are left out."""
        self._room(queue)
        async with as_unavailable(queue):
            waiting = [await self._ready(delay_queue(queue, delay_ms)) for delay_ms in delay_steps(self._specs[queue])]
            return QueueDepth(await self._ready(queue), sum(waiting))

    async def barrier(self, queue: str, *, wait_s: float) -> bool:
        """Ask every consumer; see `rabbitmq_barrier`. Takes a few round trips also with `wait_s` of 0."""
        self._room(queue)
        free = self._barriers.setdefault(queue, [])
        barrier = (
            free.pop()
            if free
            else Barrier(self._specs[queue], self._consuming, partial(self.consume, queue, prefetch=1))
        )
        try:
            async with as_unavailable(queue):
                return await barrier.passes(wait_s=wait_s)
        finally:
            free.append(barrier)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    async def publish_retry(self, delivery: Delivery, *, delay_ms: int, failure: Failure) -> None:
        """Publish the next attempt to its delay queue. Raises QueueFull at its bound."""
        place = place_of_retry(self._specs[delivery.queue], delay_ms)
        properties = properties_of_retry(delivery, failure)
        await self._publish(delivery.queue, place, delivery.body, properties, refusal=QueueFull(delivery.queue))

    async def publish_control(self, exchange: str, routing_key: str, control: Control) -> None:
        """Publish a message of the barrier; its receiver may have gone."""
        channel = await self._consuming.channel()
        await channel.basic_publish(control.encode(), exchange=exchange, routing_key=routing_key, timeout=ANSWER_S_MAX)

    async def _publish(
        self, queue: str, place: str, body: bytes, properties: Basic.Properties, *, refusal: Exception
    ) -> None:
        async with as_unavailable(queue):
            try:
                async with asyncio.timeout(self._publish_s_max):
                    channel = await self._publishing.channel()
                    await channel.basic_publish(body, routing_key=place, properties=properties, mandatory=True)
            except PublishError as error:  # returned: nothing is bound there
                await self._publishing.declare_again()  # the caller's next try finds it
                raise QueueUnavailable(queue, f"{place} is missing: {describe(error)}") from error
            except DeliveryError as error:
                raise refusal from error
            except TimeoutError as error:
                raise QueueUnavailable(queue, f"no confirm within {self._publish_s_max:.0f} s") from error

    async def _ready(self, queue: str) -> int:
        channel = await self._consuming.channel()
        try:
            found = await channel.queue_declare(queue, passive=True, timeout=ANSWER_S_MAX)
        except ChannelNotFoundEntity:
            await self._consuming.declare_again()
            raise
        return found.message_count or 0

    async def _declare(self, connection: AbstractConnection) -> None:
        async with asyncio.timeout(DECLARE_S_MAX):
            await declare(connection, self._specs.values(), retrying_length_max=self._retrying_length_max)

    def _room(self, queue: str) -> Room:
        try:
            return self._rooms[queue]
        except KeyError:
            raise UnknownQueue(queue) from None
