"""Takes notices off their queue and settles each by what became of its letter.

    taken by the server                         ack
    sent before, nobody there, superseded       ack
    not taken, perhaps later (4xx, broken off)  retry by the policy, at last the dead letters
    never (5xx), or no notice at all            the dead letters

A server that is away (mail, Redis, a shard) pauses consumption with the notices unacknowledged and spends no attempt.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from typing import TypeVar

import psycopg
import structlog
from redis.exceptions import RedisError

from domain.notices import MalformedNotice, Notice, NoticeKind, parse_notice
from domain.topology import EMAIL_QUEUE
from runtime.process.backoff import Backoff
from runtime.process.service import Service
from runtime.queue import Consumer, Delivery, Queue, QueueFull, QueueUnavailable, RetryPolicy
from workers.notifications import metrics
from workers.notifications.accounts import Accounts, Recipient
from workers.notifications.letters import STYLES, Writer
from workers.notifications.records import Records
from workers.notifications.smtp import MailServer, MailServerAway, Refused, SmtpSession, Taken

LETTERS_MAX = 16  # over one connection, and in one sender's hands
RECEIVE_S = 0.5
PAUSE_S_MAX = 5.0
# Servers that greylist take a letter after some minutes; a token of half an hour is of no use much later.
POLICY = RetryPolicy((1_000, 5_000, 30_000, 120_000, 300_000, 600_000))
_WEATHER = (MailServerAway, RedisError, psycopg.Error, OSError, TimeoutError)

log = structlog.get_logger()
T = TypeVar("T")


class Stopping(Exception):
    """The process is to stop while a notice is in hand: it stays unacknowledged and comes again."""


@dataclass(frozen=True, slots=True)
class PostOffice:
    """What letters are made with, shared by all senders of a process."""

    accounts: Accounts
    records: Records
    writer: Writer
    server: MailServer


class Sender:
    """Sends one letter after the other; several may run, in one process or in many."""

    def __init__(self, *, queue: Queue, office: PostOffice, service: Service, policy: RetryPolicy = POLICY) -> None:
        """Everything is passed in and owned elsewhere."""
        self._queue = queue
        self._office = office
        self._service = service
        self._policy = policy

    async def run(self) -> None:
        """Consume until the service stops; the letter in hand is finished unless a server is away."""
        async with self._queue.consume(EMAIL_QUEUE, prefetch=LETTERS_MAX) as consumer:
            try:
                while not self._service.stopping.is_set():
                    await self._take(consumer)
            except Stopping:
                log.info("stopped during a pause")

    async def prove(self) -> None:
        """Ready when the mail server has been reached once: a wrong address shows before the first letter does."""
        self._service.ready("mail server", ok=False, detail="not reached yet")
        async with SmtpSession(self._office.server) as session:
            try:
                await self._through_weather("mail server", session.open)
            except Stopping:
                return

    async def _take(self, consumer: Consumer) -> None:
        deliveries = await consumer.next_batch(count_max=LETTERS_MAX, wait_s=RECEIVE_S)
        self._service.ready("queue", consumer.problem is None, consumer.problem or "")
        if not deliveries:
            return
        async with SmtpSession(self._office.server) as session:
            for delivery in deliveries:
                # Those that are left are given back when the consumer is.
                if self._service.stopping.is_set():
                    return
                await self._settle(delivery, session)

    async def _settle(self, delivery: Delivery, session: SmtpSession) -> None:
        try:
            notice = parse_notice(delivery.body)
        except MalformedNotice as error:
            await self._give_up(delivery, f"malformed notice: {error}")
            return
        records = self._office.records
        secret = await self._through_weather("cache", lambda: records.claim(notice.id))
        if secret is None:
            await self._drop(delivery, "sent before")
            return
        recipient, reason = await self._through_weather("shards", lambda: self._address(notice, secret))
        if recipient is None:
            await self._through_weather("cache", lambda: records.forget(notice.id))
            await self._drop(delivery, reason)
            return
        outcome = await self._send(notice, recipient, secret, session)
        if isinstance(outcome, Taken):
            # Before the acknowledgement: a crash between them finds the record, and the mail is not sent again.
            await self._through_weather("cache", lambda: records.sent(notice.id))
            metrics.SENT.labels(notice.kind).inc()
            metrics.AGE_SECONDS.observe(max(0.0, time.time() - (notice.id.int >> 80) / 1000))
            await self._settled(delivery.ack)
            return
        decision = self._policy.decide(delivery.attempt)
        if outcome.for_good or decision.retry_in_ms is None:
            await self._through_weather("cache", lambda: records.forget(notice.id))
            await self._give_up(delivery, outcome.reason)
            return
        delay_ms = decision.retry_in_ms
        metrics.RETRIED.labels(notice.kind).inc()
        log.warning("letter not taken", kind=notice.kind, notice=str(notice.id), attempt=delivery.attempt)
        await self._settled(lambda: delivery.retry(delay_ms, outcome.reason))

    async def _address(self, notice: Notice, secret: bytes) -> tuple[Recipient | None, str]:
        """Who gets the letter, the token good from now on; or nobody, and why."""
        accounts = self._office.accounts
        recipient = await accounts.recipient(notice)
        if recipient is None:
            return None, "nobody there"
        if notice.kind is NoticeKind.VERIFY_EMAIL and recipient.verified:
            return None, "verified already"
        life = STYLES[notice.kind].life
        if life is not None and not await accounts.issue_token(notice, recipient, secret=secret, life=life):
            return None, "superseded"
        return recipient, ""

    async def _send(self, notice: Notice, recipient: Recipient, secret: bytes, session: SmtpSession) -> Taken | Refused:
        writer = self._office.writer
        try:
            letter = writer.write(notice, recipient, secret=secret, now=datetime.now(UTC))
            return await self._through_weather(
                "mail server", lambda: session.send(letter, sender=writer.sender, recipient=recipient.email)
            )
        except (ValueError, MessageError) as error:
            # One account's odd address: it must not end the process, and then the next one, again and again.
            return Refused(for_good=True, reason=f"cannot be addressed: {error}")

    async def _drop(self, delivery: Delivery, reason: str) -> None:
        metrics.DROPPED.labels(reason).inc()
        await self._settled(delivery.ack)

    async def _give_up(self, delivery: Delivery, reason: str) -> None:
        metrics.DEAD_LETTERED.inc()
        # Not the reason: servers like to repeat the address in it.
        log.error("notice dead-lettered", message=delivery.message_id, attempt=delivery.attempt)
        await self._settled(lambda: delivery.dead_letter(reason))

    async def _settled(self, operation: Callable[[], Awaitable[None]]) -> None:
        """Settle; an unconfirmed settlement brings the notice again, full dead letters are waited for."""
        try:
            await self._through_weather("queue", operation, passing=(QueueFull,))
        except QueueUnavailable as error:
            log.warning("notice not settled, it comes again", error=error.detail)

    async def _through_weather(
        self,
        what: str,
        operation: Callable[[], Awaitable[T]],
        *,
        passing: tuple[type[Exception], ...] = _WEATHER,
    ) -> T:
        """Repeat until it succeeds, with growing, jittered pauses; Stopping when the process is to end meanwhile."""
        backoff = Backoff(longest_s=PAUSE_S_MAX)
        while True:
            try:
                answer = await operation()
            except passing as error:
                metrics.PAUSES.labels(what).inc()
                self._service.ready(what, ok=False, detail=type(error).__name__)
                words = f"{type(error).__name__}: {error}".strip()
                log.warning("paused", waits_for=what, error=words)
                if await self._service.pause(backoff.next_s()):
                    raise Stopping from error
                continue
            self._service.ready(what, ok=True)
            return answer
