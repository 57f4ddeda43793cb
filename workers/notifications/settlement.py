"""The settlement of a notice, the same for each channel: counted, logged, and with the readiness of its servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from domain.notices import MalformedNotice, Notice, parse_notice
from runtime.dead_letters import DeadLetters
from runtime.process.service import Service
from runtime.queue import Delivery, FailureKind
from workers.consuming import REFUSED, Consuming, reason_of
from workers.notifications import metrics
from workers.shards import ShardAway

log = structlog.get_logger()


class Settlement(Consuming):
    """Settles the notices of one sender. `called` names them in log lines."""

    def __init__(self, service: Service, letters: DeadLetters, *, called: str, shard_away_delay_ms: int) -> None:
        """Everything is passed in and owned elsewhere."""
        super().__init__(service, letters, report=self._report, count_pause=self._count_pause)
        self._dead_lettered = f"{called} dead-lettered"
        self._shard_away_delay_ms = shard_away_delay_ms

    async def parsed(self, delivery: Delivery) -> Notice | None:
        """The notice of a message; None for a malformed one, which is given up."""
        try:
            return parse_notice(delivery.body)
        except MalformedNotice as error:
            await self.dead_letter(delivery, FailureKind.MALFORMED, f"malformed notice: {error}")
            return None

    @asynccontextmanager
    async def at_shards(self, delivery: Delivery, problem: Callable[[], str | None]) -> AsyncIterator[None]:
        """While the block asks shards: one that is away settles the message as a retry, a refusal as a dead letter.

        `problem` names the shards that did not answer at the last request.
        """
        try:
            yield
        except ShardAway as away:
            self._count_pause("shards")
            await self.retry(delivery, self._shard_away_delay_ms, FailureKind.SHARD_AWAY, str(away))
        except REFUSED as error:
            await self.dead_letter(delivery, FailureKind.REFUSED_BY_DATABASE, reason_of(error))
        finally:
            self._service.ready("shards", problem() is None, problem() or "")

    async def drop(self, delivery: Delivery, reason: str) -> None:
        """Acknowledge a notice that is not sent; `reason` is a label of a metric."""
        metrics.DROPPED.labels(reason).inc()
        await self.ack(delivery)

    async def dead_letter(self, delivery: Delivery, kind: FailureKind, reason: str) -> None:
        """Give a notice up."""
        metrics.DEAD_LETTERED.inc()
        # Without the reason: servers often repeat the address in it.
        log.error(self._dead_lettered, message=delivery.message_id, kind=kind, attempt=delivery.attempt)
        await self.give_up(delivery, kind, reason)

    def _report(self, waits_for: str, problem: str | None) -> None:
        self._service.ready(waits_for, problem is None, problem or "", by=self)

    @staticmethod
    def _count_pause(waits_for: str) -> None:
        metrics.PAUSES.labels(waits_for).inc()
