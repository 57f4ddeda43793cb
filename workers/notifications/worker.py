"""Takes notices off their queue and settles each by the result of sending its letter.

    taken by the server                         ack
    sent before, no account, superseded         ack
    switched off, too many in an hour           ack
    not taken yet (4xx, connection broken)      retry by the policy, at last the dead letters
    refused for good (5xx), or malformed        the dead letters
    the account's shard is away                 retry later, which spends no attempt and holds up no other notice

A server that all notices need (mail, Redis) pauses consumption with the notices unacknowledged and spends no attempt.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import MessageError
from typing import TypeVar

import structlog

from domain.notices import ORDER_KINDS, Channel, Notice, NoticeKind
from domain.topology import EMAIL_QUEUE, EMAIL_RETRY_DELAYS_MS
from notices.composing import STYLES
from notices.letters import Recipient, Writer
from runtime.dead_letters import DeadLetters
from runtime.process.service import Service
from runtime.queue import Consumer, Delivery, FailureKind, Queue, RetryPolicy
from workers.consuming import TRANSIENT, Stopping, failures_of_its_own
from workers.notifications import metrics
from workers.notifications.accounts import Accounts
from workers.notifications.mailed_secrets import MailedSecrets
from workers.notifications.records import Records
from workers.notifications.settlement import Settlement
from workers.notifications.smtp import MailServer, MailServerAway, Refused, SmtpSession, Taken

LETTERS_MAX = 16  # over one connection, and in one sender's hands
RECEIVE_S = 0.5
SHARD_AWAY_DELAY_MS = EMAIL_RETRY_DELAYS_MS[1]
POLICY = RetryPolicy(EMAIL_RETRY_DELAYS_MS)

log = structlog.get_logger()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PostOffice:
    """The parts that make and send letters, shared by all senders of a process."""

    accounts: Accounts
    records: Records
    secrets: MailedSecrets
    writer: Writer
    server: MailServer


class Sender:
    """Sends one letter after the other; several may run, in one process or in many."""

    def __init__(
        self, *, queue: Queue, letters: DeadLetters, office: PostOffice, service: Service, policy: RetryPolicy = POLICY
    ) -> None:
        """Everything is passed in and owned elsewhere."""
        self._queue = queue
        self._office = office
        self._service = service
        self._policy = policy
        self._settlement = Settlement(service, letters, called="notice", shard_away_delay_ms=SHARD_AWAY_DELAY_MS)

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
        self._service.ready("mail server", ok=False, detail="not reached yet", by=self._settlement)
        async with SmtpSession(self._office.server) as session:
            try:
                await self._through("mail server", session.open)
            except Stopping:
                return

    async def _take(self, consumer: Consumer) -> None:
        received = await consumer.next_batch(count_max=LETTERS_MAX, wait_s=RECEIVE_S)
        self._service.ready("queue", consumer.problem is None, consumer.problem or "", by=(self, "consumer"))
        deliveries = await self._settlement.readable(received)
        if not deliveries:
            return
        async with SmtpSession(self._office.server) as session:
            for delivery in deliveries:
                # The rest are given back when the consumer is left.
                if self._service.stopping.is_set():
                    return
                await self._settle(delivery, session)

    async def _settle(self, delivery: Delivery, session: SmtpSession) -> None:
        notice = await self._settlement.parsed(delivery)
        if notice is None:
            return
        async with (
            self._office.records.turn(notice.id),
            self._settlement.at_shards(delivery, lambda: self._office.accounts.problem),
        ):
            await self._settle_notice(delivery, notice, session)

    async def _settle_notice(self, delivery: Delivery, notice: Notice, session: SmtpSession) -> None:
        records = self._office.records
        if await self._through("cache", lambda: records.is_sent(notice.id)):
            await self._settlement.drop(delivery, "sent before")
            return
        secret = self._office.secrets.of(notice.id)
        recipient, reason = await self._address(notice, secret)
        if recipient is None:
            await self._settlement.drop(delivery, reason)
            return
        if delivery.attempt == 1 and not await self._through("cache", lambda: records.count(notice, Channel.EMAIL)):
            await self._settlement.drop(delivery, "too many")
            return
        outcome = await self._send(notice, recipient, secret, session)
        if isinstance(outcome, Taken):
            # Before the acknowledgement: a crash between them finds the record, and the mail is not sent again.
            await self._through("cache", lambda: records.sent(notice.id))
            metrics.SENT.labels(notice.kind).inc()
            metrics.AGE_SECONDS.observe(max(0.0, time.time() - notice.at_ms / 1000))
            await self._settlement.ack(delivery)
            return
        kind = FailureKind.REJECTED_BY_RECEIVER if outcome.for_good else FailureKind.DEFERRED_BY_RECEIVER
        decision = self._policy.decide(failures_of_its_own(delivery) + 1)
        if outcome.for_good or decision.retry_in_ms is None:
            await self._settlement.dead_letter(delivery, kind, outcome.reason)
            return
        metrics.RETRIED.labels(notice.kind).inc()
        log.warning("letter not taken", kind=notice.kind, notice=str(notice.id), attempt=delivery.attempt)
        await self._settlement.retry(delivery, decision.retry_in_ms, kind, outcome.reason)

    async def _address(self, notice: Notice, secret: bytes) -> tuple[Recipient | None, str]:
        """The letter's recipient, its token valid from now on; or None and the reason."""
        accounts = self._office.accounts
        recipient = await accounts.recipient(notice)
        if recipient is None:
            return None, "no account"
        if recipient.muted and notice.kind in ORDER_KINDS:
            return None, "switched off"
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
            return await self._through(
                "mail server", lambda: session.send(letter, sender=writer.sender, recipient=recipient.email)
            )
        except (ValueError, MessageError) as error:
            # One account's odd address must not end the process, and each process that is started after it.
            return Refused(for_good=True, reason=f"cannot be addressed: {error}")

    async def _through(self, waits_for: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await self._settlement.through_faults(waits_for, operation, transient=(MailServerAway, *TRANSIENT))
