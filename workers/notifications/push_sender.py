"""Takes notices off the queue of pushes and settles each by the answers of its browsers' push services.

    taken by every service                      ack
    no browser, switched off, too many          ack
    404, 410, or no public address              the subscription is deleted
    429, 5xx, no answer                         retry by the policy, not before Retry-After; at last the dead letters
    any other answer                            the dead letters
    the account's shard is away                 retry later, which spends no attempt

Each push has a record of its own: a retry pushes only to browsers whose service did not take it.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

import orjson
import structlog

from domain import ids
from domain.notices import ORDER_KINDS, Channel, Notice, NoticeKind
from domain.topology import PUSH_QUEUE, PUSH_RETRY_DELAYS_MS
from notices.composing import Composer
from notices.language import language_or
from runtime.dead_letters import DeadLetters
from runtime.process.service import Service
from runtime.queue import Consumer, Delivery, FailureKind, Queue, RetryPolicy
from workers.consuming import Stopping, failures_of_its_own
from workers.notifications import metrics
from workers.notifications.push_services import Gone, Later, NotTaken, Pushed, PushServices, Subscription
from workers.notifications.records import Records
from workers.notifications.settlement import Settlement
from workers.notifications.subscriptions import Browsers, Subscriptions

PUSHES_MAX: Final = 16  # notices in the sender's hands, all at once
RECEIVE_S: Final = 1.0
TTL_S: Final = 4 * 3600  # of a push for a browser that is not connected
SHARD_AWAY_DELAY_MS: Final = PUSH_RETRY_DELAYS_MS[1]
POLICY: Final = RetryPolicy(PUSH_RETRY_DELAYS_MS)

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PushOffice:
    """The parts that make and send pushes, shared by all senders of a process."""

    subscriptions: Subscriptions
    records: Records
    composer: Composer
    services: PushServices
    default_language: str


class PushSender:
    """Sends some notices at once, each to all browsers of its account; several processes may."""

    def __init__(
        self,
        *,
        queue: Queue,
        letters: DeadLetters,
        office: PushOffice,
        service: Service,
        policy: RetryPolicy = POLICY,
    ) -> None:
        """Everything is passed in and owned elsewhere."""
        self._queue = queue
        self._office = office
        self._service = service
        self._policy = policy
        self._settlement = Settlement(service, letters, called="push", shard_away_delay_ms=SHARD_AWAY_DELAY_MS)

    async def run(self) -> None:
        """Consume until the service stops; notices in hand are finished unless a server is away."""
        receiving = asyncio.Lock()
        async with self._queue.consume(PUSH_QUEUE, prefetch=PUSHES_MAX) as consumer, asyncio.TaskGroup() as group:
            for _ in range(PUSHES_MAX):
                group.create_task(self._send(consumer, receiving))

    async def _send(self, consumer: Consumer, receiving: asyncio.Lock) -> None:
        """Take one notice after the other: a push takes as long as a round trip over the internet, or much longer."""
        try:
            while not self._service.stopping.is_set():
                async with receiving:
                    if self._service.stopping.is_set():
                        return
                    received = await consumer.next_batch(count_max=1, wait_s=RECEIVE_S)
                    problem = consumer.problem
                self._service.ready("queue", problem is None, problem or "", by=(self, "consumer"))
                for delivery in await self._settlement.readable(received):
                    await self._settle(delivery)
        except Stopping:
            log.info("stopped during a pause")

    async def _settle(self, delivery: Delivery) -> None:
        notice = await self._settlement.parsed(delivery)
        if notice is None:
            return
        if notice.kind not in ORDER_KINDS or notice.user_id is None:
            await self._settlement.dead_letter(delivery, FailureKind.MALFORMED, "a notice that is never pushed")
            return
        async with (
            self._office.records.turn(notice.id),
            self._settlement.at_shards(delivery, lambda: self._office.subscriptions.problem),
        ):
            await self._settle_notice(delivery, notice, notice.user_id)

    async def _settle_notice(self, delivery: Delivery, notice: Notice, user_id: UUID) -> None:
        records = self._office.records
        browsers = await self._office.subscriptions.of(user_id, notice)
        if not browsers.subscriptions or browsers.muted:
            await self._settlement.drop(delivery, "switched off" if browsers.muted else "no browser")
            return
        if delivery.attempt == 1 and not await self._through("cache", lambda: records.count(notice, Channel.PUSH)):
            await self._settlement.drop(delivery, "too many")
            return
        outcomes = [await self._push(each, browsers, notice, user_id) for each in browsers.subscriptions]
        if later := [outcome for outcome in outcomes if isinstance(outcome, Later)]:
            await self._later(delivery, max(later, key=lambda outcome: outcome.after_s))
        elif refused := [outcome for outcome in outcomes if isinstance(outcome, NotTaken)]:
            await self._settlement.dead_letter(delivery, FailureKind.REJECTED_BY_RECEIVER, refused[0].reason)
        else:
            await self._settlement.ack(delivery)

    async def _push(
        self, subscription: Subscription, browsers: Browsers, notice: Notice, user_id: UUID
    ) -> Pushed | Gone | Later | NotTaken:
        """Push to one browser, unless its service has the push."""
        records = self._office.records
        push_id = ids.id_of_name(f"push\0{notice.id}\0{subscription.id}")
        if await self._through("cache", lambda: records.is_sent(push_id)):
            return Pushed()
        outcome = await self._office.services.push(
            subscription, self._content(notice, browsers), ttl_s=TTL_S, topic=_topic(notice)
        )
        if isinstance(outcome, Pushed):
            await self._through("cache", lambda: records.sent(push_id))
            metrics.PUSHED.labels(notice.kind).inc()
            metrics.PUSH_AGE_SECONDS.observe(max(0.0, time.time() - notice.at_ms / 1000))
        elif isinstance(outcome, Gone):
            await self._office.subscriptions.delete(user_id, subscription)
            metrics.UNSUBSCRIBED.inc()
            log.info("subscription deleted", subscription=str(subscription.id), reason=outcome.reason)
        return outcome

    def _content(self, notice: Notice, browsers: Browsers) -> bytes:
        language = language_or(browsers.language, self._office.default_language)
        words = self._office.composer.push(notice, language)
        return orjson.dumps(
            {
                "title": words.title,
                "body": words.body,
                "url": words.url,
                "tag": _topic(notice),
                "lang": language.code,
            }
        )

    async def _later(self, delivery: Delivery, outcome: Later) -> None:
        decision = self._policy.decide(failures_of_its_own(delivery) + 1)
        if decision.retry_in_ms is None:
            await self._settlement.dead_letter(delivery, FailureKind.DEFERRED_BY_RECEIVER, outcome.reason)
            return
        # A delay of the queue's ladder: the first that respects the service's wish, or the longest.
        wanted_ms = max(decision.retry_in_ms, outcome.after_s * 1000)
        delays = self._policy.delays_ms
        delay_ms = next((delay for delay in delays if delay >= wanted_ms), delays[-1])
        metrics.PUSHES_RETRIED.inc()
        log.warning("push not taken", message=delivery.message_id, attempt=delivery.attempt, reason=outcome.reason)
        await self._settlement.retry(delivery, delay_ms, FailureKind.DEFERRED_BY_RECEIVER, outcome.reason)

    async def _through(self, waits_for: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._settlement.through_faults(waits_for, operation)


def _topic(notice: Notice) -> str:
    """One for the state of an order, one for its refunds: at most 32 characters of base64url (RFC 8030)."""
    assert notice.order is not None
    order = base64.urlsafe_b64encode(notice.order.order_id.bytes).rstrip(b"=").decode("ascii")
    return f"{order}-refund" if notice.kind is NoticeKind.ORDER_REFUNDED else order
