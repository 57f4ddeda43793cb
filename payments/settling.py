"""Settling: from the provider's event to the final state of the payment and of its order.

    1. read the order in Redis, or in its shard when Redis has it no more. The payment of an order that neither knows
       is stored all the same; it gets its order when the order becomes known, and goes back when that takes too long
    2. store the payment: it may settle its order, or goes back. Where it goes back at once, mark its order before as
       one with payments
    3. let Redis decide (`settle-5`), which marks the order
    4. store the decision: `captured`, or `refund_due` with its refund
    5. answer the provider

The result of a crash after each step:

    before 2         nothing happened; the provider repeats the event
    after 2          the payment is `received`. The repeated event, or the payment worker, continues with step 3
    after 3          as after 2: only this event may settle the order, so that a repeated `settle` means the same
    after 4, no 5    the provider repeats the event and gets the same answer; nothing changes
    of the shard     the last captures may be `received` again: the payment worker continues with step 3
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import cast
from uuid import UUID

from redis.asyncio import Redis

from domain import topology
from domain.orders import OrderStatus, decode_value
from domain.outcomes import Transition
from domain.payments import UNKNOWN_ID, PaymentState, RefundReason
from payments.ledger import PaymentLedger
from payments.providers.port import Captured
from payments.rows import Arrival, Payment
from reservation.lane import Lanes
from reservation.payment_marks import mark_payments

BATCH_MAX = 64


class Settled(Enum):
    """The result of an event."""

    CAPTURED = auto()
    REFUND_DUE = auto()
    MISMATCH = auto()  # also due back
    REUSED = auto()  # the event id was stored for another order or amount: nothing was changed
    UNKNOWN = auto()  # no such order at present: stored if there is room, and the provider repeats the event
    UNDECIDED = auto()  # the order cannot change at present; stored: the provider or the payment worker repeats it


@dataclass(frozen=True, slots=True)
class _Known:
    """An order that a payment is for."""

    user_id: UUID
    sale_id: UUID
    total_minor: int
    currency: str


class Settling:
    """Settles events, at most `BATCH_MAX` of one shard in a call."""

    def __init__(self, redis: Redis, ledger: PaymentLedger) -> None:
        """Uses both, owns neither."""
        self._redis = redis
        self._lanes = Lanes(redis)
        self._ledger = ledger

    async def settle(self, shard: int, events: Sequence[Captured]) -> list[Settled]:
        """The result of each event.

        Raises RedisError and psycopg.Error while a server is away: the events are to be repeated then.
        """
        assert len(events) <= BATCH_MAX
        known = await self._known(shard, {event.order_id for event in events})
        arrivals: dict[str, Arrival] = {}
        for event in events:
            if (order := known.get(event.order_id)) is not None:
                arrivals.setdefault(event.event_id, _arrival(event, order))
        # An order that was lost for good leaves the row of its payment: a repeated event has its answer there.
        homeless = {event.event_id: event for event in events if event.order_id not in known}
        stored = await self._ledger.known(shard, list(homeless)) if homeless else {}
        # Money that came must not vanish, although its order is unknown: the provider does not repeat for ever.
        if homeless.keys() - stored.keys() and await self._ledger.has_room_for_unknown(shard):
            arrivals |= {name: _arrival(event, None) for name, event in homeless.items() if name not in stored}
        if not arrivals:
            return [_result(event, arrivals, stored, {}) for event in events]
        able = [arrival for arrival in arrivals.values() if arrival.reason is None]
        payments = await self._ledger.claim(shard, able) if able else {}
        if rest := [arrival for event_id, arrival in arrivals.items() if event_id not in payments]:
            # A payment that goes back at once is decided by its row.
            await mark_payments(self._redis, {arrival.order_id for arrival in rest})
            payments |= await self._ledger.receive(shard, rest)
        payments |= await self._adopt(shard, payments.values(), known)
        received = [p for p in payments.values() if p.state is PaymentState.RECEIVED and not p.waits_for_order]
        results = await self._finish(shard, received, lost=False)
        return [_result(event, arrivals, {**stored, **payments}, results) for event in events]

    async def finish(self, shard: int, payments: Sequence[Payment], *, lost: bool = False) -> dict[str, Settled]:
        """Let Redis decide about payments that may settle their orders, and store the decisions; results by event id.

        `lost`: an order that neither Redis nor its shard knows is lost, and its money goes back; otherwise it is
        undecided, because it may be on its way.
        """
        waiting = [payment for payment in payments if payment.waits_for_order]
        adopted, results = await self._look_again(shard, waiting, lost=lost) if waiting else ([], {})
        decided = [*adopted, *(payment for payment in payments if not payment.waits_for_order)]
        return results | await self._finish(shard, decided, lost=lost)

    async def _look_again(
        self, shard: int, waiting: Sequence[Payment], *, lost: bool
    ) -> tuple[list[Payment], dict[str, Settled]]:
        """Payments that may settle their orders, which are known by now, and the results of the others."""
        known = await self._known(shard, {payment.order_id for payment in waiting})
        adopted = await self._adopt(shard, waiting, known)
        unknown = [payment for payment in waiting if payment.event_id not in adopted]
        if unknown and lost:
            await mark_payments(self._redis, {payment.order_id for payment in unknown})
            await self._ledger.give_back_unknown(shard, unknown)
        results = {payment.event_id: Settled.REFUND_DUE if lost else Settled.UNDECIDED for payment in unknown}
        able = [payment for payment in adopted.values() if payment.state is PaymentState.RECEIVED]
        results |= dict.fromkeys(adopted.keys() - {payment.event_id for payment in able}, Settled.MISMATCH)
        return able, results

    async def _adopt(self, shard: int, payments: Iterable[Payment], known: Mapping[UUID, _Known]) -> dict[str, Payment]:
        """The rows of payments that waited for their orders, with their orders, as far as these are known now."""
        found = [(p, known[p.order_id]) for p in payments if p.waits_for_order and p.order_id in known]
        if not found:
            return {}
        await mark_payments(self._redis, {payment.order_id for payment, _ in found})  # some go back at once
        return await self._ledger.adopt(shard, [_arrival(*each) for each in found])

    async def _finish(self, shard: int, payments: Sequence[Payment], *, lost: bool) -> dict[str, Settled]:
        if not payments:
            return {}
        captured: list[Payment] = []
        due: list[tuple[Payment, RefundReason]] = []
        missing: list[Payment] = []
        answers = await self._lanes.settle(payments)
        for payment, answer in zip(payments, answers, strict=True):
            match answer:
                case Transition.DONE | Transition.REPEATED:
                    captured.append(payment)
                case Transition.CONFLICT:
                    due.append((payment, RefundReason.LATE))
                case Transition.NOT_FOUND:
                    missing.append(payment)
                case _:
                    pass  # the sale is closed for recovery, for example
        if missing:
            # The script has marked all others. A reader that sees a decision must look into the shard.
            await mark_payments(self._redis, {payment.order_id for payment in missing})
            await self._judge_missing(shard, missing, captured, due, lost=lost)
        if captured or due:
            await self._ledger.conclude(shard, captured=captured, due=due)
        results = dict.fromkeys((payment.event_id for payment in payments), Settled.UNDECIDED)
        results |= {payment.event_id: Settled.CAPTURED for payment in captured}
        results |= {payment.event_id: Settled.REFUND_DUE for payment, _ in due}
        return results

    async def _judge_missing(
        self,
        shard: int,
        payments: Sequence[Payment],
        captured: list[Payment],
        due: list[tuple[Payment, RefundReason]],
        *,
        lost: bool,
    ) -> None:
        """Orders that the script did not find: final and stored long ago, left behind by a rebuild, or lost."""
        values = await self._values([payment.order_id for payment in payments])
        stored = await self._ledger.orders(shard, [payment.order_id for payment in payments])
        for payment, value in zip(payments, values, strict=True):
            order = stored.get(payment.order_id)
            if order is not None and order.status is OrderStatus.PAID:
                captured.append(payment)  # by this payment: no other one may settle the order
            elif order is not None and order.status.is_final:
                due.append((payment, RefundReason.LATE))
            elif value is not None or (order is None and lost):
                due.append((payment, RefundReason.LOST))  # of an older epoch than the sale: for good

    async def _known(self, shard: int, order_ids: set[UUID]) -> dict[UUID, _Known]:
        wanted = list(order_ids)
        values = await self._values(wanted)
        known: dict[UUID, _Known] = {}
        for order_id, value in zip(wanted, values, strict=True):
            if value is not None:
                entry = decode_value(order_id, value)
                known[order_id] = _Known(entry.user_id, entry.sale_id, entry.total_minor, entry.currency)
        missing = [order_id for order_id in wanted if order_id not in known]
        if missing:
            for order_id, stored in (await self._ledger.orders(shard, missing)).items():
                known[order_id] = _Known(stored.user_id, stored.sale_id, stored.total_minor, stored.currency)
        return known

    async def _values(self, order_ids: Sequence[UUID]) -> list[bytes | None]:
        return cast(
            list[bytes | None], await self._redis.mget([topology.order_key(order_id) for order_id in order_ids])
        )


def _arrival(event: Captured | Payment, order: _Known | None) -> Arrival:
    order = order or _Known(UNKNOWN_ID, UNKNOWN_ID, event.amount_minor, event.currency)
    matches = (event.amount_minor, event.currency) == (order.total_minor, order.currency)
    return Arrival(
        event.event_id, event.order_id, order.user_id, order.sale_id, event.reference, event.amount_minor,
        event.currency, None if matches else RefundReason.MISMATCH,
    )  # fmt: skip


def _result(
    event: Captured, arrivals: Mapping[str, Arrival], payments: Mapping[str, Payment], results: Mapping[str, Settled]
) -> Settled:
    arrival, payment = arrivals.get(event.event_id), payments.get(event.event_id)
    if payment is None:
        return Settled.UNKNOWN
    told = (event.order_id, event.amount_minor, event.currency)
    if told != (payment.order_id, payment.amount_minor, payment.currency):
        return Settled.REUSED
    if payment.event_id in results:
        return results[payment.event_id]
    if arrival is not None and arrival.reason is RefundReason.MISMATCH:
        return Settled.MISMATCH
    if payment.waits_for_order:
        return Settled.UNKNOWN
    if payment.state is PaymentState.RECEIVED:
        return Settled.UNDECIDED
    return Settled.CAPTURED if payment.state is PaymentState.CAPTURED else Settled.REFUND_DUE
