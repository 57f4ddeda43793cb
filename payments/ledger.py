"""The rows of payments and refunds in the shards. Asks neither Redis nor a provider.

Payments arrive in batches of one shard: a commit each would cost more than everything else. The usual payment, which
is new and pays its order, takes two statements of its batch. Pools that commit by themselves make each of them a
single round trip.
Transient faults are raised as psycopg raises them; repeating a call is harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import orjson
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from domain import ids
from domain.orders import OrderStatus
from domain.payments import UNKNOWN_ID, PaymentState, RefundReason, shown_state
from domain.topology import DESTINATION_PAYMENT_EVENTS, DESTINATION_REFUNDS, Topology, outbox_partition
from payments.rows import Arrival, Payment, payment_event, refund_message
from runtime.postgres import columns
from runtime.postgres.pool import single_statements
from runtime.postgres.sql import load_sql

# Payments of a shard that wait for orders that are not known. Beyond these, events are answered and not stored: the
# provider repeats them. Requests at the same time may exceed it by their number.
UNKNOWN_MAX: Final = 1000

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

_SQL = load_sql("payments", "ledger.sql")


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """An order in its shard, as far as a payment asks for it."""

    order_id: UUID
    user_id: UUID
    sale_id: UUID
    total_minor: int
    currency: str
    status: OrderStatus


@dataclass(frozen=True, slots=True)
class Shown:
    """The payments of an order for its buyer: `payment` is a state or `none`, the amounts are sums."""

    payment: str
    due_minor: int = 0
    refunded_minor: int = 0


@dataclass(frozen=True, slots=True)
class OpenWork:
    """Payments and refunds of a shard that are not finished. `refunds` that are not done, the `refused` among them."""

    received: bool
    unconfirmed: bool
    refunds: int
    oldest_refund_s: float
    refused: int


class PaymentLedger:
    """The payments of all shards. The methods with a `shard` take orders of that shard only."""

    def __init__(self, pools: Sequence[Pool], cluster: Topology, *, provider: str) -> None:
        """`pools` are in shard order and opened elsewhere; `provider` is the name that new rows get."""
        self._pools = pools
        self._cluster = cluster
        self._provider = provider

    def shard_of(self, order_id: UUID) -> int:
        """The shard of an order and its payments."""
        return self._cluster.shard_of_order(order_id)

    async def orders(self, shard: int, order_ids: Iterable[UUID]) -> dict[UUID, StoredOrder]:
        """The stored ones of these orders."""
        async with self._pools[shard].connection() as connection:
            cursor = await connection.execute(_SQL["read_orders"], {"order_ids": list(order_ids)})
            return {
                row[0]: StoredOrder(row[0], row[1], row[2], row[3], row[4], OrderStatus(row[5]))
                for row in await cursor.fetchall()
            }

    async def claim(self, shard: int, arrivals: Sequence[Arrival]) -> dict[str, Payment]:
        """Store payments that can pay their orders: the first one of each order becomes `received`.

        Those rows, by event id; nothing is stored of the other payments.
        """
        async with self._pools[shard].connection() as connection:
            cursor = await connection.execute(_SQL["claim"], _columns(arrivals) | {"provider": self._provider})
            claimed = {event_id for (event_id,) in await cursor.fetchall()}
        return {arrival.event_id: _received(arrival) for arrival in arrivals if arrival.event_id in claimed}

    async def receive(self, shard: int, arrivals: Sequence[Arrival]) -> dict[str, Payment]:
        """Store payments that were not claimed: `refund_due` at once, each with its refund and its event.

        The rows of all these events, by event id, also of those that were stored before.
        """
        async with self._pools[shard].connection() as connection, connection.transaction():
            cursor = await connection.execute(_SQL["receive_due"], _columns(arrivals) | {"provider": self._provider})
            due_now = {event_id for (event_id,) in await cursor.fetchall()}
            cursor = await connection.execute(_SQL["read_payments"], {"event_ids": [a.event_id for a in arrivals]})
            payments = {row[0]: _payment(row) for row in await cursor.fetchall()}
            reasons = {a.event_id: a.reason or RefundReason.SECOND for a in arrivals if a.event_id in due_now}
            await _tell_due(connection, [(payments[event_id], reason) for event_id, reason in reasons.items()])
        return payments

    async def known(self, shard: int, event_ids: Sequence[str]) -> dict[str, Payment]:
        """The rows of these events that were stored before."""
        async with self._pools[shard].connection() as connection:
            cursor = await connection.execute(_SQL["read_payments"], {"event_ids": list(event_ids)})
            return {row[0]: _payment(row) for row in await cursor.fetchall()}

    async def conclude(
        self, shard: int, *, captured: Sequence[Payment], due: Sequence[tuple[Payment, RefundReason]]
    ) -> None:
        """Received payments become `captured` or `refund_due`, with their events and refunds.

        A shard that crashes may take the last captures back: such payments are `received` again, and settled again.
        """
        async with self._pools[shard].connection() as connection:
            if captured:
                # A refund that was taken back could be at the provider already: both together are durable.
                values = _captured_columns(captured) | {"durable": "on" if due else "off"}
                await connection.execute(_SQL["capture"], values)
            if due:
                async with connection.transaction():
                    event_ids = [payment.event_id for payment, _ in due]
                    cursor = await connection.execute(_SQL["give_back"], {"event_ids": event_ids})
                    due_now = {event_id for (event_id,) in await cursor.fetchall()}
                    await _tell_due(connection, [(p, reason) for p, reason in due if p.event_id in due_now])

    async def has_room_for_unknown(self, shard: int) -> bool:
        """Whether fewer than `UNKNOWN_MAX` payments wait for orders that are not known."""
        async with self._pools[shard].connection() as connection:
            counted = await connection.execute(_SQL["count_unknown"], {"unknown": UNKNOWN_ID, "limit": UNKNOWN_MAX})
            row = await counted.fetchone()
        assert row is not None, "an aggregate has one row"
        return bool(row[0] < UNKNOWN_MAX)

    async def adopt(self, shard: int, arrivals: Sequence[Arrival]) -> dict[str, Payment]:
        """Give payments that waited for their orders their users and sales; the rows of these events.

        Those with another amount or currency than their order's become `refund_due`.
        """
        values = {
            "event_id": [arrival.event_id for arrival in arrivals],
            "user_id": [arrival.user_id for arrival in arrivals],
            "sale_id": [arrival.sale_id for arrival in arrivals],
            "fits": [arrival.reason is None for arrival in arrivals],
            "unknown": UNKNOWN_ID,
        }
        async with self._pools[shard].connection() as connection, connection.transaction():
            changed = {event_id for (event_id,) in await (await connection.execute(_SQL["adopt"], values)).fetchall()}
            cursor = await connection.execute(_SQL["read_payments"], {"event_ids": values["event_id"]})
            payments = {row[0]: _payment(row) for row in await cursor.fetchall()}
            due = [(payments[a.event_id], a.reason) for a in arrivals if a.event_id in changed and a.reason is not None]
            await _tell_due(connection, due)
        return payments

    async def give_back_unknown(self, shard: int, payments: Sequence[Payment]) -> None:
        """Payments that waited for their orders become `refund_due`: the orders are lost."""
        async with self._pools[shard].connection() as connection, connection.transaction():
            names = {"event_ids": [payment.event_id for payment in payments], "unknown": UNKNOWN_ID}
            cursor = await connection.execute(_SQL["give_back_unknown"], names)
            due_now = {event_id for (event_id,) in await cursor.fetchall()}
            await _tell_due(connection, [(p, RefundReason.LOST) for p in payments if p.event_id in due_now])

    async def received_before(
        self, shard: int, *, age: timedelta, limit: int, but: Iterable[str] = ()
    ) -> list[Payment]:
        """Payments that are `received` for longer than `age`, but these: their settling was interrupted."""
        return await self._older("received_before", shard, age, limit, but)

    async def unconfirmed_before(
        self, shard: int, *, age: timedelta, limit: int, but: Iterable[str] = ()
    ) -> list[Payment]:
        """Captured payments of orders that are not stored as paid after `age`. Without the events `but`."""
        return await self._older("unconfirmed_before", shard, age, limit, but)

    async def open_work(self, shard: int) -> OpenWork:
        """Everything of a shard that is not finished."""
        async with single_statements(self._pools[shard]) as connection:
            row = await (await connection.execute(_SQL["open_work"])).fetchone()
        assert row is not None, "an aggregate has one row"
        return OpenWork(*row)

    async def confirm(self, shard: int, *, limit: int) -> int:
        """Note captured payments of orders that are stored as paid, among the `limit` oldest; their number."""
        async with self._pools[shard].connection() as connection:
            return (await connection.execute(_SQL["confirm"], {"limit": limit})).rowcount

    async def _older(self, name: str, shard: int, age: timedelta, limit: int, but: Iterable[str]) -> list[Payment]:
        async with self._pools[shard].connection() as connection:
            cursor = await connection.execute(_SQL[name], {"age": age, "limit": limit, "but": list(but)})
            return [_payment(row) for row in await cursor.fetchall()]


async def read_shown(connection: AsyncConnection[TupleRow], order_ids: Iterable[UUID]) -> dict[UUID, Shown]:
    """What buyers see of the payments of these orders, all of one shard; orders without a payment are left out."""
    cursor = await connection.execute(_SQL["payments_of_orders"], {"order_ids": list(order_ids)})
    states: dict[UUID, list[PaymentState]] = {}
    due: dict[UUID, int] = {}
    refunded: dict[UUID, int] = {}
    for order_id, state, due_minor, refunded_minor in await cursor.fetchall():
        states.setdefault(order_id, []).append(PaymentState(state))
        due[order_id] = due.get(order_id, 0) + due_minor
        refunded[order_id] = refunded.get(order_id, 0) + refunded_minor
    return {
        order_id: Shown(shown_state(found), due[order_id], refunded[order_id]) for order_id, found in states.items()
    }


def _columns(arrivals: Sequence[Arrival]) -> dict[str, Any]:
    return {
        "event_id": columns.texts([arrival.event_id for arrival in arrivals]),
        "order_id": columns.uuids([arrival.order_id for arrival in arrivals]),
        "user_id": columns.uuids([arrival.user_id for arrival in arrivals]),
        "sale_id": columns.uuids([arrival.sale_id for arrival in arrivals]),
        "reference": columns.texts([arrival.reference for arrival in arrivals]),
        "amount_minor": columns.bigints([arrival.amount_minor for arrival in arrivals]),
        "currency": columns.texts([arrival.currency for arrival in arrivals]),
    }


def _captured_columns(payments: Sequence[Payment]) -> dict[str, Any]:
    events = [payment_event(payment, PaymentState.CAPTURED) for payment in payments]
    return {
        "destination": DESTINATION_PAYMENT_EVENTS,
        "event_id": columns.texts([payment.event_id for payment in payments]),
        "partition": columns.smallints([outbox_partition(event["key"]) for event in events]),
        "event": columns.jsonbs([orjson.dumps(event) for event in events]),
    }


def _received(arrival: Arrival) -> Payment:
    return Payment(
        arrival.event_id, arrival.order_id, arrival.user_id, arrival.sale_id, arrival.reference, arrival.amount_minor,
        arrival.currency, PaymentState.RECEIVED, settles=True,
    )  # fmt: skip


def _payment(row: Sequence[Any]) -> Payment:
    event_id, order_id, user_id, sale_id, reference, amount_minor, currency, state, settles, due, refunded = row
    return Payment(
        event_id, order_id, user_id, sale_id, reference, amount_minor, currency, PaymentState(state), settles, due,
        refunded,
    )  # fmt: skip


async def _tell_due(connection: AsyncConnection[TupleRow], due: Sequence[tuple[Payment, RefundReason]]) -> None:
    """Add the refunds of payments that have just become due, with their messages and events."""
    if not due:
        return
    refund_ids = [ids.new_uuid7() for _ in due]
    await connection.execute(
        _SQL["add_refunds"],
        {
            "id": refund_ids,
            "event_id": [payment.event_id for payment, _ in due],
            "order_id": [payment.order_id for payment, _ in due],
            "amount_minor": [payment.amount_minor for payment, _ in due],
            "currency": [payment.currency for payment, _ in due],
            "reason": [reason.value for _, reason in due],
        },
    )
    events = [payment_event(payment, PaymentState.REFUND_DUE, reason) for payment, reason in due]
    messages = [refund_message(i, payment.order_id) for i, (payment, _) in zip(refund_ids, due, strict=True)]
    await tell(connection, {DESTINATION_PAYMENT_EVENTS: events, DESTINATION_REFUNDS: messages})


async def tell(
    connection: AsyncConnection[TupleRow], by_destination: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Put events into the outbox, in the caller's transaction: a row for each destination and partition."""
    rows: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for destination, events in by_destination.items():
        for event in events:
            rows.setdefault((destination, outbox_partition(event["key"])), []).append(event)
    if rows:
        await connection.execute(
            _SQL["store_outbox"],
            {
                "destination": [destination for destination, _ in rows],
                "partition": [partition for _, partition in rows],
                "events": [orjson.dumps(events).decode() for events in rows.values()],
            },
        )
