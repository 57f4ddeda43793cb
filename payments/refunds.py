"""Refunds in their shards, from `due` to `done` or `refused`. Asks no provider: `workers.payments` does.

The result of a crash after each step of a refund:

    the provider has given the money back, not stored    the message comes again, and the provider answers the repeated
                                                         call with the same refund: its idempotency key is the refund's
                                                         id
    stored as done, not acknowledged                     the message comes again and finds the refund done
    the queue lost the message                           a refund that is due and was not tried for long is told again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from domain.payments import PaymentState, RefundReason, RefundState
from domain.topology import DESTINATION_PAYMENT_EVENTS, DESTINATION_REFUNDS, Topology
from payments.ledger import Pool, tell
from payments.providers.port import RefundRequest
from payments.rows import refund_event, refund_message
from runtime.postgres.sql import load_sql

_SQL = load_sql("payments", "refunds.sql")


@dataclass(frozen=True, slots=True)
class Refund:
    """A row of `refunds` with what the provider needs of its payment."""

    id: UUID
    event_id: str
    order_id: UUID
    amount_minor: int
    currency: str
    reason: RefundReason
    state: RefundState
    reference: str
    user_id: UUID
    sale_id: UUID

    @property
    def request(self) -> RefundRequest:
        """The call of the provider."""
        return RefundRequest(
            self.id, self.order_id, self.event_id, self.reference, self.amount_minor, self.currency
        )  # fmt: skip


class Refunds:
    """The refunds of all shards. Raises psycopg errors as they come; repeating a call is harmless."""

    def __init__(self, pools: Sequence[Pool], cluster: Topology) -> None:
        """`pools` are in shard order and opened elsewhere."""
        self._pools = pools
        self._cluster = cluster

    async def read(self, refund_id: UUID, order_id: UUID) -> Refund | None:
        """The refund of an order, None if its shard does not have it."""
        async with self._pool(order_id).connection() as connection:
            row = await (await connection.execute(_SQL["read_refund"], {"refund_id": refund_id})).fetchone()
        if row is None:
            return None
        id_, event_id, order, amount_minor, currency, reason, state, reference, user_id, sale_id = row
        return Refund(
            id_, event_id, order, amount_minor, currency, RefundReason(reason), RefundState(state), reference, user_id,
            sale_id,
        )  # fmt: skip

    async def finish(self, refund: Refund, *, provider_id: str) -> bool:
        """Store that the money went back; False when it was stored before."""
        async with self._pool(refund.order_id).connection() as connection, connection.transaction():
            parameters = {"refund_id": refund.id, "provider_id": provider_id}
            if await (await connection.execute(_SQL["finish"], parameters)).fetchone() is None:
                return False
            await connection.execute(
                _SQL["account"], {"event_id": refund.event_id, "amount_minor": refund.amount_minor}
            )
            event = refund_event(
                PaymentState.REFUNDED, refund_id=refund.id, event_id=refund.event_id, order_id=refund.order_id,
                user_id=refund.user_id, sale_id=refund.sale_id, amount_minor=refund.amount_minor,
                currency=refund.currency, reason=refund.reason.value,
            )  # fmt: skip
            await tell(connection, {DESTINATION_PAYMENT_EVENTS: [event]})
        return True

    async def refuse(self, refund: Refund) -> None:
        """Store that the provider refuses it for good: the money stays due, and a dead letter tells of it."""
        async with self._pool(refund.order_id).connection() as connection:
            await connection.execute(_SQL["refuse"], {"refund_id": refund.id})

    async def tried(self, refund: Refund) -> None:
        """Note that a message of this refund is at work, and that it comes again."""
        async with self._pool(refund.order_id).connection() as connection:
            await connection.execute(_SQL["tried"], {"refund_id": refund.id})

    async def tell_again(self, shard: int, *, age: timedelta, limit: int) -> int:
        """Tell of refunds that are due and were not tried for `age`; their number. A second message is harmless."""
        async with self._pools[shard].connection() as connection, connection.transaction():
            cursor = await connection.execute(_SQL["forgotten"], {"age": age, "limit": limit})
            messages = [refund_message(refund_id, order_id) for refund_id, order_id in await cursor.fetchall()]
            await tell(connection, {DESTINATION_REFUNDS: messages})
        return len(messages)

    def _pool(self, order_id: UUID) -> Pool:
        return self._pools[self._cluster.shard_of_order(order_id)]
