"""Webhooks and their deliveries in the catalogue. Every method is one transaction and may be repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import orjson
from psycopg.rows import class_row
from psycopg.types.json import Json, Jsonb

from domain import ids
from domain.webhooks import DeliveryState, DisabledReason, matches
from runtime.audit import Action, object_name, record
from runtime.postgres.pool import single_statements
from runtime.postgres.sql import load_sql
from workers.shards import Pool
from workers.webhooks.receivers import AT_ONCE_MAX, Ending

SQL = load_sql(__package__, "webhooks.sql")
ACTOR: Final = "webhooks"
FAILURES_MIN: Final = 10  # in a row, before a webhook is disabled
HISTORY_MAX: Final = 20  # attempts that a delivery shows
PRUNE_ROWS: Final = 1000  # of a webhook, in one statement


@dataclass(frozen=True, slots=True)
class Subscription:
    """A webhook as the worker sees it. `since_ms`: events from then on are delivered."""

    id: UUID
    event_types: list[str]
    enabled: bool
    since_ms: int
    notice_id: UUID | None
    notify: UUID
    is_due: bool

    def wants(self, type_: str, at_ms: int) -> bool:
        """Whether an event that the log took at this time is delivered."""
        return self.enabled and at_ms >= self.since_ms and matches(self.event_types, type_)


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """An event for a webhook."""

    webhook_id: UUID
    event_id: str
    event_type: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery to send now. `previous_salt` is set while a replaced secret signs, too."""

    webhook_id: UUID
    url: str
    salt: bytes
    previous_salt: bytes | None
    id: UUID
    event_id: str
    body: bytes = field(repr=False)
    attempts: int


class WebhookStore:
    """Uses a pool without autocommit, owns nothing."""

    def __init__(self, pool: Pool, *, backlog_max: int, failing_s: float) -> None:
        """`backlog_max` waiting deliveries of a webhook; `failing_s` without success disable it."""
        self._pool = pool
        self._backlog_max = backlog_max
        self._failing_s = failing_s

    async def subscriptions(self) -> list[Subscription]:
        """All webhooks."""
        async with single_statements(self._pool) as connection:
            cursor = connection.cursor(row_factory=class_row(Subscription))
            return await (await cursor.execute(SQL["subscriptions"])).fetchall()

    async def add(self, deliveries: Sequence[NewDelivery]) -> tuple[int, int]:
        """Store deliveries up to each webhook's bound. How many were new, and how many events were skipped."""
        async with self._pool.connection() as connection:
            webhooks = sorted({delivery.webhook_id for delivery in deliveries})
            found = await (await connection.execute(SQL["backlogs"], {"webhooks": webhooks})).fetchall()
            room = dict.fromkeys(webhooks, self._backlog_max)
            room |= {webhook: max(0, self._backlog_max - waiting) for webhook, waiting in found}
            kept: list[NewDelivery] = []
            skipped: Counter[UUID] = Counter()
            for delivery in deliveries:
                if room[delivery.webhook_id] > 0:
                    room[delivery.webhook_id] -= 1
                    kept.append(delivery)
                else:
                    skipped[delivery.webhook_id] += 1
            added = 0
            if kept:
                row = {
                    "ids": [ids.new_uuid7() for _ in kept],
                    "webhooks": [delivery.webhook_id for delivery in kept],
                    "events": [delivery.event_id for delivery in kept],
                    "types": [delivery.event_type for delivery in kept],
                    "bodies": [delivery.body for delivery in kept],
                }
                added = (await connection.execute(SQL["add"], row)).rowcount
            for webhook, events in sorted(skipped.items()):
                await connection.execute(SQL["skip"], {"webhook": webhook, "events": events})
            return added, skipped.total()

    async def due(self, *, taken: Collection[UUID], busy: Mapping[UUID, int]) -> list[Due]:
        """Deliveries to send now, without those that are `taken`. `busy`: attempts under way, by webhook."""
        async with single_statements(self._pool) as connection:
            cursor = connection.cursor(row_factory=class_row(Due))
            counts = Jsonb({str(webhook): attempts for webhook, attempts in busy.items()})
            row = {"taken": list(taken), "busy": counts, "at_once": AT_ONCE_MAX}
            return await (await cursor.execute(SQL["due"], row)).fetchall()

    async def finish(self, due: Due, ending: Ending, *, retry_s: float | None) -> DisabledReason | None:
        """Note how an attempt ended; the reason if the webhook was disabled for it. `retry_s` None: no further one."""
        state = DeliveryState.FAILED if retry_s is None else DeliveryState.WAITING
        row = {
            "delivery": due.id,
            "attempts": due.attempts,
            "state": DeliveryState.DELIVERED if ending.ok else state,
            "status": ending.status,
            "retry_s": retry_s or 0,
        }
        async with self._pool.connection() as connection:
            locked = await (await connection.execute(SQL["lock"], {"webhook": due.webhook_id})).fetchone()
            known = await (await connection.execute(SQL["history"], row)).fetchone()
            if locked is None or known is None:
                return None  # deleted, or settled by a process that overlapped
            attempt = {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "status": ending.status,
                "answer": ending.text,
            }
            row["history"] = Json([*known[0], attempt][-HISTORY_MAX:], dumps=orjson.dumps)
            await connection.execute(SQL["finish"], row)
            if ending.ok:
                await connection.execute(SQL["succeeded"], {"webhook": due.webhook_id})
                return None
            failure = {
                "webhook": due.webhook_id,
                "pause_s": ending.retry_after_s,
                "failures_min": FAILURES_MIN,
                "failing_s": self._failing_s,
            }
            verdict = await (await connection.execute(SQL["failed"], failure)).fetchone()
            is_failing = verdict is not None and bool(verdict[0])
            if not ending.gone and not is_failing:
                return None
            reason = DisabledReason.GONE if ending.gone else DisabledReason.FAILING
            disabling = {"webhook": due.webhook_id, "reason": reason, "notice": ids.new_uuid7()}
            if await (await connection.execute(SQL["disable"], disabling)).fetchone() is None:
                return None
            after = {"enabled": False, "disabled_reason": reason.value}
            about = object_name("webhook", due.webhook_id)
            await record(connection, Action.WEBHOOK_DISABLE, about, before={"enabled": True}, after=after, actor=ACTOR)
            return reason

    async def noticed(self, subscription: Subscription) -> None:
        """The notice is in its queue."""
        row = {"webhook": subscription.id, "notice": subscription.notice_id}
        async with self._pool.connection() as connection:
            await connection.execute(SQL["noticed"], row)

    async def prune(self, *, before: UUID, rows_max: int) -> int:
        """Delete some old deliveries, and some finished ones above the bound. 0: none is left to delete."""
        deleted = 0
        for statement in ("prune_old", "prune_surplus"):
            row = {"before": before, "rows_max": rows_max, "limit": PRUNE_ROWS}
            async with self._pool.connection() as connection:
                deleted += (await connection.execute(SQL[statement], row)).rowcount
        return deleted
