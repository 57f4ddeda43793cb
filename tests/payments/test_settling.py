"""Settling on real servers: each event one row, each order paid once, each other payment on its way back."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.exceptions import RedisError

from domain import topology
from domain.orders import OrderEntry, OrderStatus, encode_value
from domain.outcomes import Transition
from domain.payments import PaymentState
from payments.accounting import Accounting
from payments.ledger import read_shown
from payments.providers.port import Captured
from payments.settling import Settled
from reservation.lane import Lanes
from tests.payments.till import Till
from tests.reservation.lane import LANE, make_sale
from tests.workers.writing import rows

NOW = timedelta(0)


async def settle(till: Till, *events: Captured) -> list[Settled]:
    return await till.settling.settle(till.shard, events)


async def test_a_payment_in_time_pays_the_order(till: Till) -> None:
    order = till.order()
    event = till.paying(order)
    assert await settle(till, event) == [Settled.CAPTURED]
    paid = till.held(order.order_id)
    assert (paid.status, paid.version) == (OrderStatus.PAID, 2)
    assert till.payments() == {event.event_id: ("captured", True, 0, 0)}
    assert till.refund_rows() == [] and till.outbox() == [("events.payments", "payment.captured")]
    assert till.lane.stock(till.sale).paid == 1


async def test_the_same_event_many_times_at_once_takes_effect_once(till: Till) -> None:
    event = till.paying(till.order())
    results = await asyncio.gather(*(settle(till, event) for _ in range(60)))
    assert results == [[Settled.CAPTURED]] * 60
    assert till.payments() == {event.event_id: ("captured", True, 0, 0)}
    assert till.outbox() == [("events.payments", "payment.captured")]
    assert await settle(till, event, event, event) == [Settled.CAPTURED] * 3


async def test_of_two_payments_at_once_one_pays_and_the_other_goes_back(till: Till) -> None:
    order = till.order()
    events = [till.paying(order) for _ in range(8)]
    results = [one for (one,) in await asyncio.gather(*(settle(till, event) for event in events))]
    assert sorted(result.name for result in results) == ["CAPTURED"] + ["REFUND_DUE"] * 7
    states = sorted(state for state, *_ in till.payments().values())
    assert states == ["captured"] + ["refund_due"] * 7
    assert {(reason, state, amount) for _, reason, state, amount in till.refund_rows()} == {("second", "due", 100)}
    assert len(till.refund_rows()) == 7
    assert till.outbox().count(("refunds", "refund.due")) == 7
    # In one batch, too.
    other = till.order()
    twice = await settle(till, till.paying(other), till.paying(other))
    assert sorted(result.name for result in twice) == ["CAPTURED", "REFUND_DUE"]


@pytest.mark.parametrize("ending", ["cancelled", "expired", "collected", "rejected"])
async def test_a_late_payment_goes_back(till: Till, ending: str) -> None:
    hold_ms = 50 if ending in ("expired", "collected") else 3_600_000
    sale = make_sale(hold_ms=hold_ms)
    till.lane.load(sale, [till.lane.stock(till.sale)])
    order = till.order(sale)
    if ending == "cancelled":
        till.lane.cancel(order)
    elif ending == "rejected":
        till.lane.change("reject-4", order)
    else:
        await asyncio.sleep(0.1)
    if ending == "collected":
        assert till.lane.change("expire-4", order)[0] is Transition.DONE
    event = till.paying(order)
    assert await settle(till, event) == [Settled.REFUND_DUE]
    assert till.payments() == {event.event_id: ("refund_due", True, order.total_minor, 0)}
    assert till.refund_rows() == [(event.event_id, "late", "due", order.total_minor)]
    assert sorted(till.outbox()) == [("events.payments", "payment.refund_due"), ("refunds", "refund.due")]
    assert await settle(till, event) == [Settled.REFUND_DUE], "a repeated event gets the same answer"
    assert len(till.refund_rows()) == 1


@pytest.mark.parametrize(
    "other", [{"amount_minor": 99}, {"amount_minor": 101}, {"currency": "USD"}, {"currency": "XXX"}]
)
async def test_another_amount_or_currency_is_kept_and_goes_back(till: Till, other: dict[str, object]) -> None:
    order = till.order()
    wrong, right = till.paying(order, **other), till.paying(order)
    assert await settle(till, wrong) == [Settled.MISMATCH]
    assert till.held(order.order_id).status is OrderStatus.RESERVED
    assert await settle(till, right, wrong) == [Settled.CAPTURED, Settled.MISMATCH]
    assert till.payments()[wrong.event_id] == ("refund_due", False, wrong.amount_minor, 0)
    assert [(reason, amount) for _, reason, _, amount in till.refund_rows()] == [("mismatch", wrong.amount_minor)]


async def test_an_event_id_that_is_used_again_for_another_payment_changes_nothing(till: Till) -> None:
    order, other = till.order(), till.order()
    event = till.paying(order, event_id="evt")
    assert await settle(till, event) == [Settled.CAPTURED]
    before = till.payments(), till.outbox()
    assert await settle(till, till.paying(other, event_id="evt")) == [Settled.REUSED]
    assert await settle(till, till.paying(order, event_id="evt", amount_minor=1)) == [Settled.REUSED]
    assert (till.payments(), till.outbox()) == before
    assert till.held(other.order_id).status is OrderStatus.RESERVED


def lose(till: Till, order: OrderEntry) -> bytes:
    """Take an order that is not stored yet out of Redis; returns its value."""
    key = topology.order_key(order.order_id)
    value: bytes = till.lane.redis.get(key)
    till.lane.redis.delete(key)
    return value


async def test_the_payment_of_an_order_that_nobody_knows_is_kept_and_asked_for_again(till: Till) -> None:
    known, unknown = till.order(), till.order()
    value, event = lose(till, unknown), till.paying(unknown)
    for results in ([Settled.UNKNOWN, Settled.CAPTURED], [Settled.UNKNOWN, Settled.REFUND_DUE]):
        assert await settle(till, event, till.paying(known)) == results
    assert till.payments()[event.event_id] == ("received", True, 0, 0)
    assert await settle(till, event) == [Settled.UNKNOWN], "the provider repeats it"
    # It was on its way: a rebuild brings it back, and the repeated event pays it.
    till.lane.redis.set(topology.order_key(unknown.order_id), value)
    assert await settle(till, event) == [Settled.CAPTURED]
    assert till.held(unknown.order_id).status is OrderStatus.PAID
    found = rows(till.dsn, "SELECT user_id, sale_id FROM payments WHERE order_id = %s", unknown.order_id)
    assert found == [(unknown.user_id, unknown.sale_id)]


async def test_the_payment_of_an_order_that_nobody_knows_goes_back_after_long(till: Till) -> None:
    """Redis lost the order before it was stored, and the provider gives up: the money must not stay there."""
    order = till.order()
    value, event = lose(till, order), till.paying(order)
    assert await settle(till, event, till.paying(order, event_id="second")) == [Settled.UNKNOWN, Settled.REFUND_DUE]
    (waiting,) = await till.ledger.received_before(till.shard, age=NOW, limit=9)
    assert await till.settling.finish(till.shard, [waiting]) == {event.event_id: Settled.UNDECIDED}
    for _ in range(2):
        assert await till.settling.finish(till.shard, [waiting], lost=True) == {event.event_id: Settled.REFUND_DUE}
    assert sorted(till.refund_rows()) == sorted(
        [(event.event_id, "lost", "due", 100), ("second", "second", "due", 100)]
    )
    assert till.outbox().count(("refunds", "refund.due")) == 2
    assert await settle(till, event) == [Settled.REFUND_DUE], "a repeated event gets its answer"
    assert await Accounting(till.bench.pools, late=NOW).findings(till.shard) == []
    till.lane.redis.set(topology.order_key(order.order_id), value)
    assert await settle(till, event) == [Settled.REFUND_DUE], "also when the order comes back after all"
    assert till.held(order.order_id).status is OrderStatus.RESERVED and len(till.refund_rows()) == 2


@pytest.mark.parametrize("by_provider", [True, False])
async def test_an_order_that_becomes_known_takes_only_its_own_amount(till: Till, *, by_provider: bool) -> None:
    right, wrong = till.order(), till.order()
    values = {order.order_id: lose(till, order) for order in (right, wrong)}
    events = [till.paying(right, event_id="right"), till.paying(wrong, event_id="wrong", amount_minor=7)]
    assert await settle(till, *events) == [Settled.UNKNOWN] * 2
    for order_id, value in values.items():
        till.lane.redis.set(topology.order_key(order_id), value)
    if by_provider:
        assert await settle(till, *events) == [Settled.CAPTURED, Settled.MISMATCH]
    else:
        waiting = await till.ledger.received_before(till.shard, age=NOW, limit=9)
        results = await till.settling.finish(till.shard, waiting, lost=True)
        assert results == {"right": Settled.CAPTURED, "wrong": Settled.MISMATCH}
    assert till.payments() == {"right": ("captured", True, 0, 0), "wrong": ("refund_due", False, 7, 0)}
    assert till.refund_rows() == [("wrong", "mismatch", "due", 7)]
    assert await settle(till, till.paying(wrong)) == [Settled.CAPTURED], "the wrong amount takes no place"


async def test_payments_of_unknown_orders_are_bounded(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payments.ledger.UNKNOWN_MAX", 2)
    orders = [till.order() for _ in range(3)]
    events = [till.paying(order) for order in orders if lose(till, order)]
    for event in (*events, *events):
        assert await settle(till, event) == [Settled.UNKNOWN]
    assert till.payments().keys() == {event.event_id for event in events[:2]}


async def test_an_order_that_only_its_shard_knows(till: Till) -> None:
    """Final and stored a day ago, or lost by Redis: then it waits for the rebuild."""
    cancelled, paid, reserved = till.order(), till.order(), till.order()
    for order, status in ((cancelled, OrderStatus.CANCELLED), (paid, OrderStatus.PAID), (reserved, None)):
        till.store(order if status is None else order.becoming(status, at_ms=order.changed_at_ms))
        till.lane.redis.delete(topology.order_key(order.order_id))
    late, undecided = till.paying(cancelled), till.paying(reserved)
    assert await settle(till, late, undecided) == [Settled.REFUND_DUE, Settled.UNDECIDED]
    assert till.payments()[undecided.event_id] == ("received", True, 0, 0), "money that came is kept"
    # A free order, or one that lost its payment with its shard: the row that comes is the one that pays it.
    assert await settle(till, till.paying(paid)) == [Settled.CAPTURED]
    # After the rebuild the event is repeated.
    till.store(reserved.becoming(OrderStatus.EXPIRED, at_ms=reserved.changed_at_ms))
    assert await settle(till, undecided) == [Settled.REFUND_DUE]


async def test_an_interrupted_settling_is_taken_up_at_every_point(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted before Redis decides, and before the decision is stored; then repeated by the provider, or swept."""
    for interrupted in ("settle", "conclude"):
        for by_provider in (True, False):
            order = till.order()
            event = till.paying(order)
            settling = till.settling

            async def fail(*_: object, **__: object) -> None:
                raise RedisError("interrupted")

            owner = settling._lanes if interrupted == "settle" else settling._ledger
            monkeypatch.setattr(owner, interrupted, fail)
            with pytest.raises(RedisError):
                await settling.settle(till.shard, [event])
            assert till.payments()[event.event_id] == ("received", True, 0, 0)
            second = till.paying(order)
            assert await settle(till, second) == [Settled.REFUND_DUE], "only the first event may pay the order"
            if by_provider:
                assert await settle(till, event) == [Settled.CAPTURED]
            else:
                (payment,) = await till.ledger.received_before(till.shard, age=NOW, limit=9)
                assert await till.settling.finish(till.shard, [payment]) == {event.event_id: Settled.CAPTURED}
            assert till.payments()[event.event_id] == ("captured", True, 0, 0)
            assert till.held(order.order_id).status is OrderStatus.PAID


async def test_a_sale_that_is_closed_for_recovery_leaves_the_payment_undecided(till: Till) -> None:
    order = till.order()
    event = till.paying(order)
    till.lane.close(0, till.sale)
    assert await settle(till, event) == [Settled.UNDECIDED]
    assert till.payments()[event.event_id] == ("received", True, 0, 0)


async def test_a_decision_that_redis_lost_is_made_again(till: Till) -> None:
    """The captured payment's order is reserved again after a rebuild, or its hold is over by then."""
    again, over = till.order(), till.order()
    await settle(till, till.paying(again), till.paying(over, event_id="over"))
    paid = till.held(again.order_id)
    for order in (again, over):
        till.store(order)  # as reserved: the entry of the payment was lost
    keys = [topology.order_key(order.order_id) for order in (again, over)]
    till.lane.redis.set(keys[0], encode_value(again))
    till.lane.redis.set(keys[1], encode_value(over.becoming(OrderStatus.EXPIRED, at_ms=over.changed_at_ms)))
    stock = replace(till.lane.stock(till.sale), available=99, reserved=1, paid=0)
    till.lane.redis.hset(topology.lane_state_key(LANE), topology.stock_field(till.sale.sale_id, 0), stock.pack())
    assert await till.ledger.confirm(till.shard, limit=9) == 0
    found = await till.ledger.unconfirmed_before(till.shard, age=NOW, limit=9)
    results = await till.settling.finish(till.shard, found)
    assert sorted(result.name for result in results.values()) == ["CAPTURED", "REFUND_DUE"]
    assert till.payments()["over"] == ("refund_due", True, 100, 0)
    assert till.held(again.order_id).status is OrderStatus.PAID
    till.store(paid)
    assert await till.ledger.confirm(till.shard, limit=9) == 1
    assert await till.ledger.unconfirmed_before(till.shard, age=NOW, limit=9) == []


async def test_the_money_of_an_order_that_is_stored_as_paid_stays(till: Till) -> None:
    """Redis came back without the payment, and the order was cancelled there before a rebuild."""
    order = till.order()
    event = till.paying(order)
    await settle(till, event)
    till.store(till.held(order.order_id))
    cancelled = order.becoming(OrderStatus.CANCELLED, at_ms=order.changed_at_ms)
    till.lane.redis.set(topology.order_key(order.order_id), encode_value(cancelled))
    for _ in range(2):
        found = await till.ledger.unconfirmed_before(till.shard, age=NOW, limit=9)
        await till.settling.finish(till.shard, found)
        assert till.payments() == {event.event_id: ("captured", True, 0, 0)} and till.refund_rows() == []
    assert await till.ledger.confirm(till.shard, limit=9) == 1


async def test_an_order_that_is_lost_for_good_gives_its_money_back_only_after_long(till: Till) -> None:
    order = till.order()
    event = till.paying(order)
    await settle(till, event)
    till.lane.redis.delete(topology.order_key(order.order_id))
    found = await till.ledger.unconfirmed_before(till.shard, age=NOW, limit=9)
    assert await till.settling.finish(till.shard, found) == {event.event_id: Settled.UNDECIDED}
    assert await till.settling.finish(till.shard, found, lost=True) == {event.event_id: Settled.REFUND_DUE}
    assert till.refund_rows() == [(event.event_id, "lost", "due", 100)]
    assert await settle(till, event) == [Settled.REFUND_DUE], "a repeated event gets its answer without the order"


async def test_a_buyer_sees_the_payment_that_counts(till: Till) -> None:
    order = till.order()
    assert await shown(till, order.order_id) is None
    wrong = till.paying(order, amount_minor=7)
    await settle(till, wrong)
    assert await shown(till, order.order_id) == ("refund_due", 7, 0)
    assert till.lane.redis.exists(topology.payment_mark_key(order.order_id)) == 1
    await settle(till, till.paying(order))
    assert await shown(till, order.order_id) == ("captured", 7, 0)


async def shown(till: Till, order_id: UUID) -> tuple[str, int, int] | None:
    async with till.bench.pools[till.shard].connection() as connection:
        found = (await read_shown(connection, [order_id])).get(order_id)
    return None if found is None else (found.payment, found.due_minor, found.refunded_minor)


async def test_a_payment_that_goes_back_is_shown_also_after_a_crash(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edge ends after the row was stored, and the provider does not repeat the event."""
    order, settling = till.order(), till.settling
    receive = settling._ledger.receive

    async def interrupted(*arguments: Any) -> None:
        await receive(*arguments)
        raise RedisError("interrupted")

    monkeypatch.setattr(settling._ledger, "receive", interrupted)
    with pytest.raises(RedisError):
        await settling.settle(till.shard, [till.paying(order, amount_minor=7)])
    assert await shown(till, order.order_id) == ("refund_due", 7, 0)
    assert till.lane.redis.exists(topology.payment_mark_key(order.order_id)) == 1


async def test_pay_cancel_and_expiry_race_with_one_winner(till: Till, seed: int) -> None:
    """Every captured unit of money is a paid order's, or on its way back, in every order of events."""
    rng, lanes = random.Random(seed), Lanes(till.bench.redis)
    sale = make_sale(hold_ms=150)
    till.lane.load(sale, [till.lane.stock(till.sale)])
    orders = [till.order(sale) for _ in range(30)]
    events = [till.paying(order) for order in orders for _ in range(rng.randint(1, 2))]
    rng.shuffle(events)

    async def pay(event: Captured) -> Settled:
        await asyncio.sleep(rng.random() * 0.3)
        return (await settle(till, event))[0]

    async def end(order: OrderEntry) -> None:
        await asyncio.sleep(rng.random() * 0.3)
        if rng.random() < 0.5:
            await lanes.cancel(order)
        else:
            await lanes.expire([order])

    results = await asyncio.gather(*(pay(event) for event in events), *(end(order) for order in orders))
    paid = {order.order_id for order in orders if till.held(order.order_id).status is OrderStatus.PAID}
    captured = {event.order_id for event, result in zip(events, results, strict=False) if result is Settled.CAPTURED}
    assert paid == captured and len(captured) == sum(result is Settled.CAPTURED for result in results)
    states = rows(till.dsn, "SELECT state, count(*), sum(due_minor)::int FROM payments GROUP BY state")
    by_state = {PaymentState(state): (count, due) for state, count, due in states}
    assert by_state.get(PaymentState.CAPTURED, (0, 0)) == (len(paid), 0)
    assert by_state.get(PaymentState.REFUND_DUE, (0, 0))[1] == 100 * (len(events) - len(paid))
    assert len(till.refund_rows()) == len(events) - len(paid)
