"""Reads the money of one sale: payments and refunds in shards, the provider's own ledger, events. Judges nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow
from redis.asyncio import Redis

from domain import topology
from domain.events import Event
from domain.payments import UNKNOWN_ID
from ops.stack_file import Stack
from payments.providers.port import ProviderEntry
from payments.providers.simulated import SimulatedProvider

EVENT_PREFIX: Final = "payment."
READ_AT_ONCE: Final = 1000

_PAYMENTS = """
    SELECT event_id, order_id, amount_minor, currency, state, settles, due_minor, refunded_minor
    FROM payments WHERE sale_id = %s OR (sale_id = %s AND received_at >= %s)
"""
_REFUNDS = """
    SELECT r.id, r.event_id, r.order_id, r.amount_minor, r.currency, r.state
    FROM refunds r JOIN payments p ON p.event_id = r.event_id
    WHERE p.sale_id = %s OR (p.sale_id = %s AND p.received_at >= %s)
"""
# Money on its way, of all sales. The sweep settles a captured payment again whose order is not stored as paid.
_MOVING = """
    SELECT
        (SELECT count(*) FROM payments p LEFT JOIN orders o ON o.id = p.order_id
         WHERE p.state = 'received' OR (p.state = 'captured' AND NOT p.confirmed AND o.status IS DISTINCT FROM 1)),
        (SELECT count(*) FROM refunds WHERE state = 'due')
"""
_KNOWN = """
    SELECT event_id FROM payments WHERE event_id = ANY(%(event_ids)s::text[])
"""


@dataclass(frozen=True, slots=True)
class StoredPayment:
    """A row of `payments`."""

    shard: int
    event_id: str
    order_id: UUID
    amount_minor: int
    currency: str
    state: str
    settles: bool
    due_minor: int
    refunded_minor: int

    @property
    def kept_minor(self) -> int:
        """The amount that does not go back."""
        return self.amount_minor - self.due_minor - self.refunded_minor


@dataclass(frozen=True, slots=True)
class StoredRefund:
    """A row of `refunds`."""

    shard: int
    refund_id: UUID
    event_id: str
    order_id: UUID
    amount_minor: int
    currency: str
    state: str


@dataclass(frozen=True, slots=True)
class MoneyEvent:
    """A record `payment.*` of the event log. `digest`: hash of its content; `about`: id of the event or refund."""

    id: str
    kind: str
    about: str
    order_id: UUID
    amount_minor: int
    currency: str
    digest: str


@dataclass(slots=True)
class Money:
    """All money of one sale. `captured`, `returned`: the provider's ledger. `marked`: orders with a mark in Redis."""

    payments: list[StoredPayment] = field(default_factory=list)
    refunds: list[StoredRefund] = field(default_factory=list)
    captured: list[ProviderEntry] = field(default_factory=list)
    returned: list[ProviderEntry] = field(default_factory=list)
    events: list[MoneyEvent] = field(default_factory=list)
    marked: set[UUID] = field(default_factory=set)


async def read_rows(dsn: str, shard: int, money: Money, sale_id: UUID, since: datetime) -> None:
    """Add the payments and refunds of a shard. Those of lost orders name no sale: all of them that came `since`."""
    of_drill = (sale_id, UNKNOWN_ID, since)
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
        payments = await (await connection.execute(_PAYMENTS, of_drill)).fetchall()
        refunds = await (await connection.execute(_REFUNDS, of_drill)).fetchall()
    money.payments += [StoredPayment(shard, *row) for row in payments]
    money.refunds += [StoredRefund(shard, *row) for row in refunds]


async def read_provider(stack: Stack, money: Money, since: datetime) -> None:
    """Add the provider's ledger since a time."""
    for entry in await provider_entries(stack, since):
        (money.returned if entry.is_refund else money.captured).append(entry)


async def read_marks(redis: Redis, money: Money) -> None:
    """Add the marks of the orders with payments."""
    wanted = sorted({payment.order_id for payment in money.payments})
    for start in range(0, len(wanted), READ_AT_ONCE):
        part = wanted[start : start + READ_AT_ONCE]
        values = cast(list[bytes | None], await redis.mget([topology.payment_mark_key(order_id) for order_id in part]))
        money.marked.update(order_id for order_id, value in zip(part, values, strict=True) if value is not None)


def money_event(event: Event, digest: str) -> MoneyEvent:
    """An event of the log."""
    data = event.data
    return MoneyEvent(
        event.id, event.type.removeprefix(EVENT_PREFIX), data.get("refund_id") or data["event_id"],
        UUID(data["order_id"]), data["amount_minor"], data["currency"], digest,
    )  # fmt: skip


async def provider_entries(stack: Stack, since: datetime) -> list[ProviderEntry]:
    """The provider's ledger since a time; empty for a stack without a simulated provider. Raises ProviderAway."""
    if stack.payment_url is None or stack.payment_api_key is None:
        return []
    provider = SimulatedProvider(url=stack.payment_url, api_key=stack.payment_api_key, webhook_secrets=())
    try:
        return [entry async for entry in provider.entries(since)]
    finally:
        await provider.close()


async def moving(stack: Stack, since: datetime) -> dict[str, int]:
    """Money that is not where it belongs yet: events of the provider without a row, unsettled payments, due refunds."""
    entries = [entry for entry in await provider_entries(stack, since) if not entry.is_refund]
    counts: dict[str, int] = {}
    known: set[str] = set()
    for shard, dsn in enumerate(stack.shard_dsns):
        async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
            unsettled, due = await _one(connection, _MOVING)
            counts |= {f"unsettled payments {shard}": unsettled, f"due refunds {shard}": due}
            cursor = await connection.execute(_KNOWN, {"event_ids": [entry.id for entry in entries]})
            known.update(event_id for (event_id,) in await cursor.fetchall())
    counts["events of the provider"] = sum(entry.id not in known for entry in entries)
    return counts


async def _one(connection: psycopg.AsyncConnection[TupleRow], query: str) -> TupleRow:
    row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None, "an aggregate has one row"
    return row
