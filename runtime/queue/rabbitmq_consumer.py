"""A consumer of one queue on RabbitMQ: a subscription that is made again after each loss.

A subscription is a channel. When it ends, the broker gives all unsettled messages of it back; a delivery knows its
subscription, so that settling one of a lost subscription says so. Takes part in the barrier (`rabbitmq_barrier`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

import structlog
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from runtime.process import tasks
from runtime.process.backoff import Backoff
from runtime.queue.handing_out import HandingOut
from runtime.queue.rabbitmq_codec import delivery_of
from runtime.queue.rabbitmq_control import Control, Kind, is_marker, new_id
from runtime.queue.rabbitmq_link import ANSWER_S_MAX, CLOSE_S_MAX, FAILURES, Link, describe
from runtime.queue.rabbitmq_subscription import Retries, Subscription, SubscriptionSettlement
from runtime.queue.rabbitmq_topology import close_channel, control_exchange

BIND_S = 5.0  # a control exchange that was deleted and declared again has no bindings: no barrier reaches us
LOOK_S = 1.0  # whether the broker has cancelled the subscription; asks nothing of it

log = structlog.get_logger()


class RabbitConsumer(HandingOut):
    """See `runtime.queue.port.Consumer`. The broker keeps the prefetch."""

    def __init__(self, link: Link, retries: Retries, *, queue: str, prefetch: int) -> None:
        """`link` is the process's connection for consumers."""
        assert prefetch >= 1
        super().__init__()
        self._link = link
        self._retries = retries
        self._queue = queue
        self._prefetch = prefetch
        self._subscription: Subscription | None = None
        self._problem: str | None = None
        self.subscribed = asyncio.Event()

    @property
    def problem(self) -> str | None:
        """Why nothing can be delivered at present; None when all is well."""
        troubled = [f"{name}: {problem}" for name, problem in self._background.problems.items()]
        return "; ".join(filter(None, [self._problem, *troubled])) or None

    @property
    def held_count(self) -> int:
        """Unsettled deliveries, at most `prefetch`."""
        return len(self._subscription.held) if self._subscription is not None else 0

    async def __aenter__(self) -> Self:
        """Start to consume."""
        self._background.start(f"consume {self._queue}", self._forever)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the broker gives unsettled deliveries to other consumers at once."""
        self._closed = True
        try:
            if self._subscription is not None:  # orderly: a cancelled task may not wait for the broker's answer
                await self._end(self._subscription)
        finally:  # also when the caller is cancelled: a subscription without a reader would keep its messages
            await self._background.stop()
            self._ready.clear()
            self._changed.set()

    # The subscription

    async def _forever(self) -> None:
        backoff = Backoff(first_s=0.05, longest_s=1.0)
        while True:
            try:
                if self._closed:
                    await asyncio.Event().wait()
                await self._consume_until_lost(backoff)
            except ChannelNotFoundEntity:
                self._problem = f"{self._queue}: is missing"
                log.warning("queue is missing, it is declared again", queue=self._queue)
                with suppress(*FAILURES):
                    await self._link.declare_again()
            except FAILURES as error:
                self._problem = f"{self._queue}: {describe(error)}"
                log.warning("queue not readable", queue=self._queue, error=describe(error))
            await asyncio.sleep(backoff.next_s())

    async def _consume_until_lost(self, backoff: Backoff) -> None:
        channel = await (await self._link.connection()).channel(publisher_confirms=False)
        subscription = Subscription(channel)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._subscribe(subscription)
            self._subscription = subscription
            self._problem = None
            self.subscribed.set()
            backoff.reset()
            bound_at = time.monotonic()
            while subscription.is_alive():
                await asyncio.wait([channel.closing], timeout=LOOK_S)
                if time.monotonic() >= bound_at + BIND_S:
                    await self._bind(await self._link.channel(), subscription)
                    bound_at = time.monotonic()
            if not self._closed:
                self._problem = f"{self._queue}: the broker ended the subscription"
                log.warning("subscription lost", queue=self._queue, held=len(subscription.held))
        finally:
            # Deliveries that the caller has not taken yet come again, to any consumer.
            self._ready.clear()
            self.subscribed.clear()
            await self._end(subscription)

    async def _subscribe(self, subscription: Subscription) -> None:
        """The control queue first: from its first message on, this consumer answers."""
        channel = subscription.channel
        await channel.queue_declare(subscription.private, exclusive=True, auto_delete=True)
        # Before the binding, which may fail: a queue that never had a consumer stays until the connection ends.
        await channel.basic_consume(subscription.private, partial(self._on_control, subscription), no_ack=True)
        await self._bind(channel, subscription)
        joined = Control(Kind.JOINED, subscription.id)
        await self._retries.publish_control(control_exchange(self._queue), "", joined)
        await channel.basic_qos(prefetch_count=self._prefetch)
        subscription.tag = new_id()
        await channel.basic_consume(self._queue, partial(self._on_message, subscription), consumer_tag=subscription.tag)

    async def _bind(self, channel: AbstractChannel, subscription: Subscription) -> None:
        await channel.queue_bind(subscription.private, control_exchange(self._queue), timeout=ANSWER_S_MAX)

    async def _end(self, subscription: Subscription) -> None:
        with suppress(*FAILURES):
            async with asyncio.timeout(CLOSE_S_MAX):
                if subscription.is_alive():  # at once for the queue; the end of a channel reaches it later
                    await subscription.channel.basic_cancel(subscription.tag)
                await close_channel(subscription.channel)

    async def _on_message(self, subscription: Subscription, message: DeliveredMessage) -> None:
        """No `await` before the delivery is held: what came earlier is held when a later answer arrives."""
        delivery_tag: int = message.delivery.delivery_tag  # type: ignore[assignment, union-attr]
        if is_marker(message.header.properties.headers):
            await self._pass_marker(subscription, message, delivery_tag)
            return
        subscription.held.add(delivery_tag)
        settlement = SubscriptionSettlement(self._is_left, self._retries, subscription, delivery_tag)
        tag = f"{subscription.id}:{delivery_tag}"
        self._ready.append(delivery_of(message, queue=self._queue, tag=tag, settlement=settlement))
        self._changed.set()

    def _is_left(self) -> bool:
        """Whether the consumer was left: its deliveries were given back on purpose."""
        return self._closed

    # The barrier

    async def _pass_marker(self, subscription: Subscription, message: DeliveredMessage, delivery_tag: int) -> None:
        marker = Control.decode(bytes(message.body))
        with suppress(*FAILURES):
            if marker is not None:
                subscription.cut(marker.barrier)
            # First: the caller may leave as soon as it hears, and the marker would come again.
            await subscription.channel.basic_ack(delivery_tag)
            if marker is not None:
                await self._retries.publish_control("", marker.sender, marker)

    async def _on_control(self, subscription: Subscription, message: DeliveredMessage) -> None:
        control = Control.decode(bytes(message.body))
        if control is None or control.kind not in (Kind.ASK, Kind.SETTLE):
            return
        await self._answer(subscription, control)  # the client runs a task for each message

    async def _answer(self, subscription: Subscription, control: Control) -> None:
        with suppress(*FAILURES):
            settled = False
            if control.kind is Kind.SETTLE:
                settled = await self._settles(subscription, control)
            answer = Control(
                Kind.ANSWER,
                subscription.id,
                control.barrier,
                moved=subscription.moved,
                held=len(subscription.held),
                settled=settled,
            )
            await self._retries.publish_control("", control.sender, answer)

    async def _settles(self, subscription: Subscription, control: Control) -> bool:
        """Whether all deliveries from before the barrier's markers are settled in time."""
        count, taken = subscription.cuts.get(control.barrier, (0, frozenset()))
        if count < control.markers:
            # Another consumer got a marker. All that the broker had sent before is here after two answers: the first
            # may overtake a delivery inside of the broker's channel, the second does not.
            await subscription.channel.queue_declare(self._queue, passive=True, timeout=ANSWER_S_MAX)
            await subscription.channel.basic_qos(prefetch_count=self._prefetch, timeout=ANSWER_S_MAX)
            taken = frozenset(subscription.held)
        deadline = time.monotonic() + control.wait_ms / 1000
        while taken & subscription.held:
            subscription.settled.clear()
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not await tasks.wait_within(subscription.settled, left_s):
                return not taken & subscription.held
        return True
