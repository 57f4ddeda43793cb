"""Sends the deliveries that are due, some of each webhook at once, and settles each by the receiver's answer.

    2xx                          delivered
    410                          the webhook is disabled at once
    429, 503 with Retry-After    the webhook pauses for that time, then retried
    any other answer, or none    retried by the ladder; at last failed, until staff replay it
    no success for a day         the webhook is disabled, with a notice and an entry in the audit log

One webhook has at most `AT_ONCE_MAX` attempts under way, one while it fails. So a slow receiver holds up no other.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar
from uuid import UUID

import orjson
import structlog

from domain.notices import Notice, NoticeKind, notice_event
from domain.topology import EMAIL_QUEUE
from domain.webhooks import retry_delay_s, secret_of
from runtime.process.service import Service
from runtime.process.tasks import wait_within
from runtime.queue import Queue
from runtime.redis.leases import Lease
from workers.consuming import NO_ROOM, TRANSIENT, Patience, Stopping
from workers.webhooks import metrics
from workers.webhooks.intake import LOOK_S, Wanted
from workers.webhooks.receivers import Ending, Message, Receivers
from workers.webhooks.store import Due, Subscription, WebhookStore

PRUNE_S: Final = 600.0
DAY_S: Final = 86_400

log = structlog.get_logger()
T = TypeVar("T")


class Sender:
    """See the module. `run` is called while the lease is held."""

    def __init__(
        self,
        *,
        key: bytes,
        store: WebhookStore,
        receivers: Receivers,
        queue: Queue,
        wanted: Wanted,
        lease: Lease,
        service: Service,
    ) -> None:
        """`key` is the installation's. Everything is passed in and owned elsewhere."""
        self._key = key
        self._store = store
        self._receivers = receivers
        self._queue = queue
        self._wanted = wanted
        self._lease = lease
        self._service = service
        self._woken = asyncio.Event()
        self._taken: set[UUID] = set()
        self._telling: set[UUID] = set()  # ids of notices
        self._busy: Counter[UUID] = Counter()
        self._pruned_at = 0.0
        self._patience = Patience(
            service, report=self._report, count_pause=lambda what: metrics.PAUSES.labels(what).inc()
        )

    def wake(self) -> None:
        """Look at once: something became due, or an attempt ended."""
        self._woken.set()

    async def run(self) -> None:
        """Send until the process is to stop or the lease is lost; attempts under way are finished."""
        try:
            with self._service.background.rounds("webhooks sender") as beat:
                async with asyncio.TaskGroup() as group:
                    while self._lease.held and not self._service.stopping.is_set():
                        beat()
                        await self._round(group)
        except* Stopping:
            log.info("stopped during a pause")

    async def _round(self, group: asyncio.TaskGroup) -> None:
        self._woken.clear()
        subscriptions = await self._through("catalogue", self._store.subscriptions)
        self._wanted.see(subscriptions)
        metrics.ENABLED.set(sum(each.enabled for each in subscriptions))
        for subscription in subscriptions:
            if subscription.notice_id is not None and subscription.notice_id not in self._telling:
                self._telling.add(subscription.notice_id)
                group.create_task(self._tell(subscription, subscription.notice_id))
        if any(each.is_due for each in subscriptions):
            for due in await self._due():
                self._taken.add(due.id)
                self._busy[due.webhook_id] += 1
                group.create_task(self._attempt(due))
        await self._prune(subscriptions)
        await wait_within(self._woken, LOOK_S)

    async def _due(self) -> Sequence[Due]:
        busy = {webhook: attempts for webhook, attempts in self._busy.items() if attempts}
        return await self._through("catalogue", lambda: self._store.due(taken=self._taken, busy=busy))

    async def _attempt(self, due: Due) -> None:
        began = time.monotonic()
        with metrics.SENDING.track_inprogress():
            try:
                salts = [due.salt] if due.previous_salt is None else [due.salt, due.previous_salt]
                secrets = [secret_of(self._key, due.webhook_id, bytes(salt)) for salt in salts]
                ending = await self._send(Message(due.url, due.event_id, bytes(due.body), secrets))
                metrics.ATTEMPT_SECONDS.observe(time.monotonic() - began)
                metrics.ATTEMPTS.labels("ok" if ending.ok else str(ending.status or "no answer")).inc()
                delay_s = retry_delay_s(
                    due.attempts + 1,
                    self._service.settings.webhook_retry_delays_s,
                    retry_after_s=ending.retry_after_s,
                    random=random.random(),  # noqa: S311 - spreads retries
                )
                reason = await self._through("catalogue", lambda: self._store.finish(due, ending, retry_s=delay_s))
                if reason is not None:
                    metrics.DISABLED.labels(reason).inc()
                    log.warning("webhook disabled", webhook=str(due.webhook_id), reason=reason)
            except Stopping:
                log.info("stopped before an attempt was noted: it is repeated", delivery=str(due.id))
            finally:
                self._taken.discard(due.id)
                self._busy[due.webhook_id] -= 1
                self.wake()

    async def _send(self, message: Message) -> Ending:
        """One attempt. A fault of ours with one delivery must not end those of all other webhooks: it counts as one."""
        try:
            return await self._receivers.send(message)
        except Exception as error:
            log.exception("attempt failed unexpectedly", event_id=message.event_id)
            return Ending(ok=False, status=None, text=f"not sent: {type(error).__name__}")

    async def _tell(self, subscription: Subscription, notice_id: UUID) -> None:
        """The notice of a disabled webhook: published, then noted. Its id is stable, so a repetition is dropped.

        A task of its own: deliveries do not wait for the queue.
        """
        try:
            notice = Notice(notice_id, NoticeKind.WEBHOOK_DISABLED, user_id=subscription.notify)
            body = orjson.dumps(notice_event(notice))
            await self._through("queue", lambda: self._queue.publish(EMAIL_QUEUE, body, message_id=str(notice.id)))
            await self._through("catalogue", lambda: self._store.noticed(subscription))
        except Stopping:
            log.info("stopped before a notice was noted: it is repeated", webhook=str(subscription.id))
        finally:
            self._telling.discard(notice_id)

    async def _prune(self, subscriptions: Sequence[Subscription]) -> None:
        if not subscriptions or time.monotonic() < self._pruned_at + PRUNE_S:
            return
        settings = self._service.settings
        oldest_ms = int((time.time() - settings.webhook_log_days * DAY_S) * 1000)
        before = UUID(int=oldest_ms << 80)  # below every UUIDv7 of that time and later
        rows_max = settings.webhook_log_rows_max
        deleted = await self._through("catalogue", lambda: self._store.prune(before=before, rows_max=rows_max))
        metrics.PRUNED.inc(deleted)
        if not deleted:
            self._pruned_at = time.monotonic()

    async def _through(self, waits_for: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._patience.through_faults(waits_for, operation, transient=(*TRANSIENT, *NO_ROOM))

    def _report(self, waits_for: str, problem: str | None) -> None:
        self._service.ready(waits_for, problem is None, problem or "", by=self)
