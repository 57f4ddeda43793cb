"""A subscription of a consumer on RabbitMQ, and how its deliveries are settled. `rabbitmq_consumer` makes it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from aiormq.abc import AbstractChannel

from runtime.queue.port import Delivery, Failure, QueueFull, QueueUnavailable
from runtime.queue.rabbitmq_control import Control, new_id
from runtime.queue.rabbitmq_link import FAILURES, as_unavailable
from runtime.queue.rabbitmq_topology import PRIVATE_PREFIX

CUTS_MAX = 16  # barriers whose markers a consumer remembers


class Retries(Protocol):
    """Publishes retries (the queue)."""

    async def publish_retry(self, delivery: Delivery, *, delay_ms: int, failure: Failure) -> None:
        """Return when it waits, durably. Raises QueueFull, QueueUnavailable."""
        ...

    async def publish_control(self, exchange: str, routing_key: str, control: Control) -> None:
        """Return when the broker has routed it. Raises the client's errors."""
        ...


@dataclass(slots=True, eq=False)
class Subscription:
    """A channel that consumes. `held` has the AMQP delivery tags of unsettled deliveries."""

    channel: AbstractChannel
    id: str = field(default_factory=new_id)
    held: set[int] = field(default_factory=set)
    moved: int = 0
    tag: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    cuts: OrderedDict[str, tuple[int, frozenset[int]]] = field(default_factory=OrderedDict)

    @property
    def private(self) -> str:
        """The queue of its control messages."""
        return f"{PRIVATE_PREFIX}{self.id}"

    def forget(self, delivery_tag: int) -> None:
        """A delivery was settled or given back."""
        self.held.discard(delivery_tag)
        self.settled.set()

    def cut(self, barrier: str) -> None:
        """A marker of the barrier came: note what was taken before it."""
        count, _ = self.cuts.get(barrier, (0, frozenset()))
        self.cuts[barrier] = count + 1, frozenset(self.held)
        while len(self.cuts) > CUTS_MAX:
            self.cuts.popitem(last=False)

    def is_alive(self) -> bool:
        """Whether messages can still come: the broker may have closed the channel or cancelled the consumer."""
        return not self.channel.is_closed and self.tag in self.channel.consumers  # type: ignore[attr-defined]


class SubscriptionSettlement:
    """Settles a delivery of one subscription."""

    __slots__ = ("_delivery_tag", "_is_given_back", "_is_left", "_retries", "_subscription")

    def __init__(
        self, is_left: Callable[[], bool], retries: Retries, subscription: Subscription, delivery_tag: int
    ) -> None:
        self._is_left = is_left
        self._retries = retries
        self._subscription = subscription
        self._delivery_tag = delivery_tag
        self._is_given_back = False

    async def ack(self, delivery: Delivery) -> None:
        """Return when it is written. AMQP confirms no acknowledgement: one that is lost brings the message again."""
        if self._is_over(delivery):
            return
        try:
            async with as_unavailable(delivery.queue):
                await self._subscription.channel.basic_ack(self._delivery_tag)
        finally:
            self._subscription.forget(self._delivery_tag)

    async def retry(self, delivery: Delivery, *, delay_ms: int, failure: Failure) -> None:
        """Publish to the delay queue, then acknowledge: a crash in between repeats, never loses."""
        if self._is_over(delivery):
            return
        self._subscription.moved += 1
        try:
            await self._retries.publish_retry(delivery, delay_ms=delay_ms, failure=failure)
            await self.ack(delivery)
        except QueueFull:
            raise
        except BaseException:
            # Confirmed or not: on an open channel the message would never come again by itself.
            self._give_back()
            raise
        finally:
            self._subscription.moved += 1

    def _give_back(self) -> None:
        subscription = self._subscription
        if self._delivery_tag not in subscription.held or subscription.channel.is_closed:
            subscription.forget(self._delivery_tag)
            return
        self._is_given_back = True
        # Not awaited: the caller may be about to be cancelled, and many retries that fail at once find no room in the
        # connection's buffer of a few frames. The task ends with its channel, which gives the message back as well.
        subscription.channel.create_task(self._nack())

    async def _nack(self) -> None:
        """The delivery counts as held until this is written: no barrier passes over it."""
        subscription = self._subscription
        try:
            with suppress(*FAILURES):
                await subscription.channel.basic_nack(self._delivery_tag, requeue=True, wait=False)
        finally:
            subscription.moved += 1
            subscription.forget(self._delivery_tag)

    def _is_over(self, delivery: Delivery) -> bool:
        """Whether the consumer was left or the delivery is settled. QueueUnavailable when the subscription was lost."""
        if self._is_left() or self._is_given_back or self._delivery_tag not in self._subscription.held:
            return True
        if self._subscription.channel.is_closed:
            self._subscription.forget(self._delivery_tag)
            raise QueueUnavailable(delivery.queue, "the subscription was lost; the message comes again")
        return False
