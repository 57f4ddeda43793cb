"""Webhooks and their deliveries in the catalogue. Changes are recorded in the audit log, in their transaction."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from backoffice.stores import Stores
from backoffice.web.idempotency import KeyReused
from domain import ids
from domain.webhooks import OVERLAP, PING_TYPE, SALT_BYTES, WEBHOOKS_MAX, DisabledReason, message_body
from runtime.audit import Action, object_name, record
from runtime.postgres.sql import load_sql

SQL = load_sql(__package__, "webhooks.sql")


class TooManyWebhooks(Exception):
    """There are `WEBHOOKS_MAX` webhooks."""


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook to create; `idempotency_key` and `fingerprint` are both set or both None."""

    url: str
    description: str
    event_types: list[str]
    created_by: UUID
    idempotency_key: str | None
    fingerprint: bytes | None


@dataclass(frozen=True, slots=True)
class Webhook:
    """A row of `webhooks`. `previous_until` is None when no replaced secret signs."""

    id: UUID
    url: str
    description: str
    event_types: list[str]
    enabled: bool
    disabled_reason: DisabledReason | None
    failures: int
    failing_since: datetime | None
    paused_until: datetime | None
    skipped: int
    created_at: datetime
    previous_until: datetime | None
    waiting: int
    salt: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of `webhook_deliveries`."""

    id: UUID
    event_id: str
    event_type: str
    state: str
    attempts: int
    status: int | None
    next_at: datetime | None
    attempted_at: datetime | None
    created_at: datetime
    history: list[dict[str, Any]]
    body: bytes = field(repr=False)


class WebhookStore:
    """Reads and changes webhooks; reads deliveries and puts them back."""

    def __init__(self, stores: Stores) -> None:
        """Uses the stores' pools, owns nothing."""
        self._catalogue = stores.catalogue

    async def create(self, new: NewWebhook) -> tuple[Webhook, bool]:
        """The webhook, and whether this key had created it before. TooManyWebhooks, KeyReused."""
        async with self._catalogue.connection() as connection:
            await connection.execute(SQL["lock_all"])
            webhook_id = ids.new_uuid7()
            row = {
                "id": webhook_id,
                "url": new.url,
                "description": new.description,
                "event_types": new.event_types,
                "salt": secrets.token_bytes(SALT_BYTES),
                "created_by": new.created_by,
                "idempotency_key": new.idempotency_key,
                "fingerprint": new.fingerprint,
            }
            if new.idempotency_key is not None:
                found = await (await connection.execute(SQL["find_key"], row)).fetchone()
                if found is not None:
                    if bytes(found[1]) != new.fingerprint:
                        raise KeyReused
                    return await _required(connection, found[0]), True
            count = await (await connection.execute(SQL["count"])).fetchone()
            assert count is not None
            if count[0] >= WEBHOOKS_MAX:
                raise TooManyWebhooks
            await connection.execute(SQL["insert"], row)
            webhook = await _required(connection, webhook_id)
            facts = {"url": new.url, "event_types": new.event_types, "description": new.description}
            await record(connection, Action.WEBHOOK_CREATE, _name(webhook.id), after=facts)
            return webhook, False

    async def page(self, *, before: UUID | None, limit: int) -> list[Webhook]:
        """Webhooks, newest first."""
        async with self._catalogue.connection() as connection:
            return await _read(connection, before=before, limit=limit)

    async def get(self, webhook_id: UUID) -> Webhook | None:
        """The webhook; None if it does not exist."""
        async with self._catalogue.connection() as connection:
            return next(iter(await _read(connection, webhook_id)), None)

    async def switch(self, webhook_id: UUID, *, enabled: bool, by: UUID) -> Webhook | None:
        """Enable or disable it. Repeating it changes nothing; None if it does not exist."""
        async with self._catalogue.connection() as connection:
            known = await (await connection.execute(SQL["lock"], {"id": webhook_id})).fetchone()
            if known is None:
                return None
            if known[0] != enabled:
                statement = "enable" if enabled else "disable"
                await connection.execute(SQL[statement], {"id": webhook_id, "by": by})
                before = {"enabled": known[0], "disabled_reason": known[1]}
                after = {"enabled": enabled, "disabled_reason": None if enabled else DisabledReason.STAFF.value}
                action = Action.WEBHOOK_ENABLE if enabled else Action.WEBHOOK_DISABLE
                await record(connection, action, _name(webhook_id), before=before, after=after)
            return await _required(connection, webhook_id)

    async def rotate(self, webhook_id: UUID) -> tuple[bytes, datetime] | None:
        """The salt of a new secret, and the end of the old one; None if the webhook does not exist."""
        salt = secrets.token_bytes(SALT_BYTES)
        async with self._catalogue.connection() as connection:
            row = {"id": webhook_id, "salt": salt, "overlap": OVERLAP}
            rotated = await (await connection.execute(SQL["rotate"], row)).fetchone()
            if rotated is None:
                return None
            after = {"previous_secret_until": rotated[0]}
            await record(connection, Action.WEBHOOK_ROTATE, _name(webhook_id), after=after)
            return salt, rotated[0]

    async def delete(self, webhook_id: UUID) -> bool:
        """Whether it was deleted, its deliveries with it; False if it does not exist."""
        async with self._catalogue.connection() as connection:
            found = await (await connection.execute(SQL["delete"], {"id": webhook_id})).fetchone()
            if found is None:
                return False
            facts = {"url": found[0], "event_types": found[1]}
            await record(connection, Action.WEBHOOK_DELETE, _name(webhook_id), before=facts)
            return True

    async def ping(self, webhook_id: UUID, *, now_ms: int) -> Delivery | None:
        """A delivery of a test event; None if the webhook does not exist."""
        delivery_id = ids.new_uuid7()
        row = {
            "id": webhook_id,
            "delivery_id": delivery_id,
            "event_id": f"ping:{delivery_id}",
            "event_type": PING_TYPE,
            "body": message_body(PING_TYPE, now_ms, {"webhook_id": str(webhook_id)}),
        }
        async with self._catalogue.connection() as connection:
            if await (await connection.execute(SQL["lock"], row)).fetchone() is None:
                return None
            await connection.execute(SQL["ping"], row)
            await record(connection, Action.WEBHOOK_PING, _name(webhook_id), after={"delivery": str(delivery_id)})
            return (await _deliveries(connection, webhook_id, delivery_id=delivery_id))[0]

    async def deliveries(
        self, webhook_id: UUID, *, state: str | None, before: UUID | None, limit: int
    ) -> list[Delivery] | None:
        """Deliveries, newest first; None if the webhook does not exist."""
        async with self._catalogue.connection() as connection:
            if not await _read(connection, webhook_id):
                return None
            return await _deliveries(connection, webhook_id, state=state, before=before, limit=limit)

    async def replay(self, webhook_id: UUID, delivery_id: UUID) -> Delivery | None:
        """Make the delivery due again, as a first attempt if it had ended; None if it does not exist."""
        row = {"id": webhook_id, "delivery_id": delivery_id}
        async with self._catalogue.connection() as connection:
            await connection.execute(SQL["lock"], row)
            if await (await connection.execute(SQL["replay"], row)).fetchone() is None:
                return None
            await record(connection, Action.WEBHOOK_REPLAY, _name(webhook_id), after={"delivery": str(delivery_id)})
            return (await _deliveries(connection, webhook_id, delivery_id=delivery_id))[0]


async def _read(
    connection: AsyncConnection[TupleRow], webhook_id: UUID | None = None, *, before: UUID | None = None, limit: int = 1
) -> list[Webhook]:
    cursor = connection.cursor(row_factory=class_row(Webhook))
    return await (await cursor.execute(SQL["page"], {"id": webhook_id, "before": before, "limit": limit})).fetchall()


async def _required(connection: AsyncConnection[TupleRow], webhook_id: UUID) -> Webhook:
    """A webhook that this transaction has read or written."""
    return (await _read(connection, webhook_id))[0]


async def _deliveries(
    connection: AsyncConnection[TupleRow],
    webhook_id: UUID,
    *,
    delivery_id: UUID | None = None,
    state: str | None = None,
    before: UUID | None = None,
    limit: int = 1,
) -> list[Delivery]:
    cursor = connection.cursor(row_factory=class_row(Delivery))
    row = {"id": webhook_id, "delivery_id": delivery_id, "state": state, "before": before, "limit": limit}
    return await (await cursor.execute(SQL["deliveries"], row)).fetchall()


def _name(webhook_id: UUID) -> str:
    return object_name("webhook", webhook_id)
