"""The barrier on RabbitMQ: whether all that was published before the call is acknowledged.

RabbitMQ shows no messages in the hands of consumers at a moment, and none on their way back from a delay queue. So the
consumers are asked, all of them: a consumer is an adapter of this module, or the barrier does not pass.

    1  ask       every consumer answers with its count of moved messages (retried, given back)
    2  look      as many consumers as have answered; the caller sees each that joins later, and gives up then
    3  markers   one through each delay queue. It leaves behind all that waited there, and goes to the end of the work
                 queue: its arrival at a consumer says that all of that, and all that was ready, has been delivered
    4  settle    every consumer answers when it has settled all that it had taken before the markers, with its count

Passed: all settled, and no count has changed. For a message m that was published before step 1 and is not acknowledged
would be, at step 2, ready, in the hands of one of those consumers, waiting or on its way back. Since none of them moves
a message until step 4, m went only forward, was delivered before the last marker, and is in the hands of a consumer
that says it has settled m. A consumer that dies meanwhile gives no answer, and the barrier does not pass.

A return that the broker repeats after a fault of its own (no leader, queue deleted) may come later than a marker.
Without a consumer the caller becomes one for a moment, and gives back what it gets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from domain.topology import QueueSpec
from runtime.queue.rabbitmq_control import Control, Kind, marker_properties, new_id
from runtime.queue.rabbitmq_link import Link
from runtime.queue.rabbitmq_topology import PRIVATE_PREFIX, control_exchange, delay_queue, delay_steps

if TYPE_CHECKING:
    from runtime.queue.rabbitmq_consumer import RabbitConsumer

POLL_S = 0.05
ANSWER_S_MAX = 2.0  # of a consumer, and of a marker in a queue that shows no messages
COUNT_POLL_S = 0.01
COUNT_POLL_S_MAX = 0.2


class Barrier:
    """Barriers of one queue, one at a time. Its private queue lives as long as the connection."""

    def __init__(self, spec: QueueSpec, link: Link, open_consumer: Callable[[], RabbitConsumer]) -> None:
        """`link` is the process's connection for consumers."""
        self._spec = spec
        self._link = link
        self._open_consumer = open_consumer
        self._channel: AbstractChannel | None = None
        self._private = ""
        self._barrier = ""  # of the present round; between rounds nothing is kept
        self._heard: list[Control] = []
        self._news = asyncio.Event()

    async def passes(self, *, wait_s: float) -> bool:
        """See the module and the port. Raises the client's errors."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                if await self._try(deadline):
                    return True
            except ChannelNotFoundEntity:
                await self._link.declare_again()
                raise
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))

    async def _try(self, deadline: float) -> bool:
        await self._open()
        if (await self._look(self._spec.name))[1]:
            passed = await self._round(deadline)
            if passed is not None:
                return passed
        if await self._some_wait():
            return False
        async with self._open_consumer() as own:
            async with asyncio.timeout(ANSWER_S_MAX):
                await own.subscribed.wait()
                # What is ready may be markers of an earlier call that were left behind.
                while (await self._look(self._spec.name))[0] and not own.held_count:  # noqa: ASYNC110
                    await asyncio.sleep(COUNT_POLL_S)
            return not own.held_count and bool(await self._round(deadline))

    async def _round(self, deadline: float) -> bool | None:
        """The four steps. None: the last consumer has just left, and a marker would wait for another one."""
        self._barrier = new_id()
        self._heard.clear()
        try:
            return await self._steps(self._barrier, deadline)
        finally:
            self._barrier = ""
            self._heard.clear()

    async def _steps(self, barrier: str, deadline: float) -> bool | None:
        await self._tell(Control(Kind.ASK, self._private, barrier))
        before = await self._answers(barrier, Kind.ANSWER, limit=time.monotonic() + ANSWER_S_MAX)
        ready, consumers = await self._look(self._spec.name)
        some_wait = await self._some_wait()
        if not before and not consumers:
            return None
        patient = time.monotonic() < deadline
        if not before or consumers != len(before) or some_wait:
            return False
        if not patient and (ready or any(answer.held for answer in before.values())):
            return False
        markers = await self._send_markers(barrier)
        limit = max(deadline, time.monotonic() + ANSWER_S_MAX) if not ready else deadline
        if not await self._hears(lambda: self._arrived(barrier) >= markers, limit=limit):
            return False
        wait_s = max(0.0, deadline - time.monotonic())
        self._forget(Kind.ANSWER)
        await self._tell(
            Control(Kind.SETTLE, self._private, barrier, markers=markers, wait_ms=int(wait_s * 1000)),
        )
        after = await self._answers(barrier, Kind.ANSWER, limit=time.monotonic() + wait_s + ANSWER_S_MAX)
        return (
            after is not None
            and after.keys() == before.keys()
            and all(answer.settled for answer in after.values())
            and all(after[sender].moved == before[sender].moved for sender in before)
            and not any(control.kind is Kind.JOINED and control.sender not in before for control in self._heard)
        )

    async def _open(self) -> None:
        """The private queue, bound to the control exchange: the caller hears joining consumers as well."""
        if self._channel is not None and not self._channel.is_closed:
            return
        connection = await self._link.connection()
        channel = await connection.channel(publisher_confirms=True, on_return_raises=False)
        self._private = f"{PRIVATE_PREFIX}{new_id()}"
        await channel.queue_declare(self._private, exclusive=True, auto_delete=True)
        # Before the binding, which may fail: a queue that never had a consumer stays until the connection ends.
        await channel.basic_consume(self._private, self._hear, no_ack=True)
        await channel.queue_bind(self._private, control_exchange(self._spec.name))
        self._channel = channel

    async def _hear(self, message: DeliveredMessage) -> None:
        control = Control.decode(bytes(message.body))
        if control is None or not self._barrier:
            return
        if control.kind is Kind.JOINED or (
            control.barrier == self._barrier and control.kind in (Kind.ANSWER, Kind.ARRIVED)
        ):
            self._heard.append(control)
            self._news.set()

    async def _tell(self, control: Control) -> None:
        await self._open_channel.basic_publish(
            control.encode(), exchange=control_exchange(self._spec.name), timeout=ANSWER_S_MAX
        )

    async def _send_markers(self, barrier: str) -> int:
        """One through each delay queue; without any, one straight to the work queue. Their number."""
        places = [delay_queue(self._spec.name, delay_ms) for delay_ms in delay_steps(self._spec)]
        targets = places or [self._spec.name]
        for number, place in enumerate(targets):
            marker = Control(Kind.ARRIVED, self._private, barrier, number=number, markers=len(targets))
            await self._open_channel.basic_publish(
                marker.encode(),
                routing_key=place,
                properties=marker_properties(expires_at_once=bool(places)),
                mandatory=True,
                timeout=ANSWER_S_MAX,
            )
        return len(targets)

    async def _answers(self, barrier: str, kind: Kind, *, limit: float) -> dict[str, Control] | None:
        """The answers by consumer, as soon as every consumer has answered; None when one does not."""
        pause_s = COUNT_POLL_S
        while True:
            answers = {control.sender: control for control in self._of(barrier, kind)}
            _, consumers = await self._look(self._spec.name)
            if len(answers) >= consumers:
                return answers
            if time.monotonic() >= limit:
                return None
            # A consumer that has left is counted for a moment more.
            known = len(self._of(barrier, kind))
            await self._hears(
                partial(self._has_more, barrier, kind, known), limit=min(limit, time.monotonic() + pause_s)
            )
            pause_s = min(COUNT_POLL_S_MAX, 2 * pause_s)

    async def _hears(self, condition: Callable[[], bool], *, limit: float) -> bool:
        while not condition():
            self._news.clear()
            try:
                async with asyncio.timeout(max(0.0, limit - time.monotonic())):
                    await self._news.wait()
            except TimeoutError:
                return condition()
        return True

    def _has_more(self, barrier: str, kind: Kind, known: int) -> bool:
        return len(self._of(barrier, kind)) > known

    def _arrived(self, barrier: str) -> int:
        """Markers that came to a consumer; a broker may deliver one twice."""
        return len({control.number for control in self._of(barrier, Kind.ARRIVED)})

    def _of(self, barrier: str, kind: Kind) -> list[Control]:
        return [control for control in self._heard if control.barrier == barrier and control.kind is kind]

    def _forget(self, kind: Kind) -> None:
        self._heard = [control for control in self._heard if control.kind is not kind]

    async def _some_wait(self) -> bool:
        for delay_ms in delay_steps(self._spec):
            if (await self._look(delay_queue(self._spec.name, delay_ms)))[0]:
                return True
        return False

    async def _look(self, queue: str) -> tuple[int, int]:
        """Ready messages and consumers. Asks the queue's leader."""
        found = await self._open_channel.queue_declare(queue, passive=True, timeout=ANSWER_S_MAX)
        return found.message_count or 0, found.consumer_count or 0

    @property
    def _open_channel(self) -> AbstractChannel:
        assert self._channel is not None
        return self._channel
