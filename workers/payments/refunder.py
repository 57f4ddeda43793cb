"""Takes refunds off their queue and settles each by the provider's answer.

the money went back, now or before          row done, ack
the provider is away, or fails (5xx, 429)   retry later, which spends no attempt and holds up no other refund
refused for good, or malformed              row refused, the dead letters; a replay tries again
its shard is away                           pause with the message unacknowledged
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from domain.payments import RefundState
from domain.topology import REFUND_RETRY_DELAYS_MS, REFUNDS_QUEUE
from payments.providers.port import PaymentProvider, ProviderAway, ProviderRefused
from payments.refunds import Refund, Refunds
from payments.rows import MalformedRefund, parse_refund
from runtime.dead_letters import DeadLetters
from runtime.process.service import Service
from runtime.queue import Consumer, Delivery, FailureKind, Queue
from workers.consuming import REFUSED, Consuming, Stopping, reason_of
from workers.payments import metrics

REFUNDS_MAX: Final = 16  # in one refunder's hands
RECEIVE_S: Final = 0.5
CALL_S_MAX: Final = 15.0

log = structlog.get_logger()
T = TypeVar("T")


class Refunder:
    """Makes one refund after the other; several may run, in one process or in many."""

    def __init__(
        self,
        *,
        queue: Queue,
        letters: DeadLetters,
        refunds: Refunds,
        provider: PaymentProvider,
        service: Service,
        delays_ms: tuple[int, ...] = REFUND_RETRY_DELAYS_MS,
    ) -> None:
        """Everything is passed in and owned elsewhere."""
        self._queue = queue
        self._refunds = refunds
        self._provider = provider
        self._service = service
        self._delays_ms = delays_ms
        self._consuming = Consuming(service, letters, report=self._report, count_pause=self._count_pause)

    async def run(self) -> None:
        """Consume until the service stops; the refund in hand is finished unless a server is away."""
        async with self._queue.consume(REFUNDS_QUEUE, prefetch=REFUNDS_MAX) as consumer:
            try:
                while not self._service.stopping.is_set():
                    await self._take(consumer)
            except Stopping:
                log.info("stopped during a pause")

    async def _take(self, consumer: Consumer) -> None:
        received = await consumer.next_batch(count_max=REFUNDS_MAX, wait_s=RECEIVE_S)
        self._service.ready("queue", consumer.problem is None, consumer.problem or "", by=(self, "consumer"))
        for delivery in await self._consuming.readable(received):
            if self._service.stopping.is_set():
                return  # the rest are given back when the consumer is left
            await self._settle(delivery)

    async def _settle(self, delivery: Delivery) -> None:
        try:
            refund_id, order_id = parse_refund(delivery.body)
        except MalformedRefund as error:
            await self._give_up(delivery, FailureKind.MALFORMED, f"malformed refund: {error}")
            return
        refund = await self._through("shards", lambda: self._refunds.read(refund_id, order_id))
        if refund is None:
            await self._give_up(delivery, FailureKind.UNROUTABLE, "no such refund in the shard of its order")
            return
        if refund.state is RefundState.DONE:
            await self._consuming.ack(delivery)
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(CALL_S_MAX):
                provider_id = await self._provider.refund(refund.request)
        except (ProviderAway, TimeoutError) as error:
            await self._later(delivery, refund, str(error) or type(error).__name__)
            return
        except ProviderRefused as error:
            await self._through("shards", lambda: self._refunds.refuse(refund))
            await self._give_up(delivery, FailureKind.REJECTED_BY_RECEIVER, str(error))
            return
        self._service.ready("payment provider", ok=True)
        metrics.CALL_SECONDS.observe(time.monotonic() - began)
        try:
            await self._through("shards", lambda: self._refunds.finish(refund, provider_id=provider_id))
        except REFUSED as error:
            await self._give_up(delivery, FailureKind.REFUSED_BY_DATABASE, reason_of(error))
            return
        metrics.REFUNDED.labels(refund.reason).inc()
        await self._consuming.ack(delivery)

    async def _later(self, delivery: Delivery, refund: Refund, reason: str) -> None:
        """The provider may have given the money back all the same: the repeated call has the same idempotency key."""
        failures = delivery.failures.get(FailureKind.PROVIDER_AWAY, 0)
        delay_ms = self._delays_ms[min(failures, len(self._delays_ms) - 1)]
        self._service.ready("payment provider", ok=False, detail=reason)  # of all refunders: it is one provider
        metrics.RETRIED.labels(FailureKind.PROVIDER_AWAY).inc()
        await self._through("shards", lambda: self._refunds.tried(refund))
        log.warning("refund not made", refund=str(refund.id), attempt=delivery.attempt, reason=reason)
        await self._consuming.retry(delivery, delay_ms, FailureKind.PROVIDER_AWAY, reason)

    async def _give_up(self, delivery: Delivery, kind: FailureKind, reason: str) -> None:
        metrics.DEAD_LETTERED.inc()
        log.error("refund dead-lettered", message=delivery.message_id, kind=kind, reason=reason)
        await self._consuming.give_up(delivery, kind, reason)

    async def _through(self, waits_for: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._consuming.through_faults(waits_for, operation)

    def _report(self, waits_for: str, problem: str | None) -> None:
        self._service.ready(waits_for, problem is None, problem or "", by=self)

    @staticmethod
    def _count_pause(waits_for: str) -> None:
        metrics.PAUSES.labels(waits_for).inc()
