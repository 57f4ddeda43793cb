"""The checker passes a correct sale, and each planted damage breaks its invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from domain.orders import OrderStatus
from domain.sales import Stock
from faults.checker import Expectations, Finding, check
from faults.evidence import Evidence
from faults.history import Attempt, Ending, History, OrderRequest
from tests.faults.making import HOLD_MS, LANE, SKUS, TOPOLOGY, UNITS, ok, pay, refused, right_sale, unknown

SEEDS = range(5)


def judged(history: History, evidence: Evidence, expected: Expectations | None = None) -> list[Finding]:
    return check(history, evidence, cluster=TOPOLOGY, expected=expected or Expectations())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sale_in_which_all_is_right_is_green(seed: int) -> None:
    assert judged(*right_sale(seed)) == []


def lose_a_row(_: History, evidence: Evidence) -> None:
    evidence.rows.pop(0)


def store_an_order_twice(_: History, evidence: Evidence) -> None:
    evidence.rows.append(replace(evidence.rows[0], shard=(evidence.rows[0].shard + 1) % 4))


def sell_a_unit_too_many(_: History, evidence: Evidence) -> None:
    row = evidence.rows[0]
    [(sku, quantity)] = row.lines
    evidence.rows[0] = replace(row, lines=((sku, quantity + UNITS),))


def reuse_a_key(history: History, evidence: Evidence) -> None:
    request = history.requests[0]
    second = replace(evidence.rows[0], order_id=evidence.rows[1].order_id)
    evidence.rows.append(second)
    request.attempts.append(ok(second.order_id))


def accept_other_lines(history: History, _: Evidence) -> None:
    misuse = next(request for request in history.requests if request.misuse)
    misuse.attempts[0] = ok(uuid4())


def lose_an_event(_: History, evidence: Evidence) -> None:
    evidence.events.pop()


def change_an_event(_: History, evidence: Evidence) -> None:
    evidence.events.append(replace(evidence.events[0], digest="other words"))


def invent_an_event(_: History, evidence: Evidence) -> None:
    evidence.events.append(replace(evidence.events[0], version=9, event_id="x:9"))


def misplace_an_event(_: History, evidence: Evidence) -> None:
    evidence.events[0] = replace(evidence.events[0], partition=(evidence.events[0].partition + 1) % 16)


def key_an_event_by_another_user(_: History, evidence: Evidence) -> None:
    evidence.events[0] = replace(evidence.events[0], key=str(uuid4()))


def tell_an_older_version_as_the_newest(_: History, evidence: Evidence) -> None:
    """Of the last order, which is cancelled: its first version was reserved."""
    evidence.events[-2] = replace(evidence.events[-2], status=OrderStatus.CANCELLED.label)


def leave_an_outbox_row(_: History, evidence: Evidence) -> None:
    evidence.outbox = ["shard 0, notices, 9 ms old: order.paid"]


def store_what_was_refused(history: History, evidence: Evidence) -> None:
    request = next(request for request in history.requests if request.key == "refused")
    evidence.records[request.user_id, request.key] = uuid4()


def store_what_nobody_asked_for(_: History, evidence: Evidence) -> None:
    evidence.records[uuid4(), "unknown"] = uuid4()


def leave_an_outcome_unknown(history: History, _: Evidence) -> None:
    history.requests.append(OrderRequest(uuid4(), "unanswered", (("A", 1),), [unknown()]))


def lose_a_version(_: History, evidence: Evidence) -> None:
    evidence.transitions.pop(0)
    evidence.events.pop(0)


def take_a_place_twice(_: History, evidence: Evidence) -> None:
    order_id, version, lane, _seq, status = evidence.transitions[0]
    evidence.transitions[0] = (order_id, version, lane, evidence.transitions[1][3], status)


def forget_an_order_in_redis(_: History, evidence: Evidence) -> None:
    del evidence.orders[evidence.rows[0].order_id]


def unbalance_a_lane(_: History, evidence: Evidence) -> None:
    stocks = evidence.lanes[LANE]
    assert stocks is not None
    stocks[0] = replace(stocks[0], available=stocks[0].available + 1)


def conjure_up_stock(_: History, evidence: Evidence) -> None:
    evidence.lanes[LANE + 1] = [Stock.fresh(1), Stock.fresh(0)]


def lend_a_unit_to_no_lane(_: History, evidence: Evidence) -> None:
    stocks = evidence.lanes[LANE]
    assert stocks is not None
    stocks[0] = replace(stocks[0], available=stocks[0].available - 1, lent=stocks[0].lent + 1)


def credit_a_transfer_twice(_: History, evidence: Evidence) -> None:
    stocks = evidence.lanes[LANE]
    assert stocks is not None
    stocks[0] = replace(stocks[0], available=stocks[0].available - 2, lent=stocks[0].lent + 2)
    evidence.lanes[LANE + 1] = [Stock(4, 0, 0, 0, 0, 4, 0), Stock.fresh(0)]


def forget_the_sale_in_a_lane(_: History, evidence: Evidence) -> None:
    evidence.lanes[LANE] = None


def break_the_guard(_: History, evidence: Evidence) -> None:
    place = next(iter(evidence.quota))
    granted, sold = evidence.quota[place]
    evidence.quota[place] = (granted, sold + 1)


def lose_a_grant(_: History, evidence: Evidence) -> None:
    place = next(place for place, total in evidence.grants.items() if total)
    evidence.grants[place] -= 1


def undo_a_cancellation(_: History, evidence: Evidence) -> None:
    evidence.rows[-1] = replace(evidence.rows[-1], status=OrderStatus.EXPIRED)


def cancel_unasked(history: History, _: Evidence) -> None:
    history.requests[0].cancels.append(ok(uuid4()))


def answer_in_other_words(history: History, _: Evidence) -> None:
    request = history.requests[0]
    request.attempts.append(replace(request.attempts[0], replayed=True, body_hash=1))


def answer_as_new_twice(history: History, _: Evidence) -> None:
    history.requests[0].attempts.append(replace(history.requests[0].attempts[0]))


def answer_untyped(history: History, _: Evidence) -> None:
    history.requests.append(OrderRequest(uuid4(), "u", (("A", 1),), [replace(refused(), fault="500 with a page")]))


def break_a_connection(history: History, _: Evidence) -> None:
    broken = Attempt(1.0, 1.1, Ending.UNKNOWN, code="broken: ConnectionResetError")
    history.requests.append(OrderRequest(uuid4(), "b", (("A", 1),), [broken, replace(refused(), settled=True)]))


def answer_late(history: History, _: Evidence) -> None:
    history.requests.append(OrderRequest(uuid4(), "l", (("A", 1),), [replace(refused(), returned_at=9.0)]))


def bury_an_order(_: History, evidence: Evidence) -> None:
    evidence.dead_letters = 1


def _change_told(history: History, **changes: Any) -> None:
    attempt = history.requests[0].attempts[0]
    assert attempt.told is not None
    attempt.told = replace(attempt.told, **changes)


def tell_a_wrong_total(history: History, _: Evidence) -> None:
    _change_told(history, total_minor=1)


def tell_a_wrong_price(history: History, evidence: Evidence) -> None:
    """The row has the same wrong price: edge and writer agree, the sale differs."""
    [(sku, quantity)] = history.requests[0].lines
    _change_told(history, lines=((sku, quantity, 1),), total_minor=quantity)
    evidence.rows[0] = replace(evidence.rows[0], prices_minor=(1,), total_minor=quantity)


def tell_another_quantity(history: History, _: Evidence) -> None:
    [(sku, quantity)] = history.requests[0].lines
    _change_told(history, lines=((sku, quantity + 1, 5),))


def tell_a_longer_hold(history: History, evidence: Evidence) -> None:
    _change_told(history, expires_at_ms=HOLD_MS + 60_000)
    evidence.rows[0] = replace(evidence.rows[0], expires_at_ms=HOLD_MS + 60_000)


def store_another_end(_: History, evidence: Evidence) -> None:
    evidence.rows[0] = replace(evidence.rows[0], expires_at_ms=HOLD_MS + 1)


def store_another_total(_: History, evidence: Evidence) -> None:
    evidence.rows[0] = replace(evidence.rows[0], total_minor=1)


def tell_another_sale(history: History, _: Evidence) -> None:
    _change_told(history, sale_id=uuid4())


def tell_a_cancelled_order_as_reserved(history: History, _: Evidence) -> None:
    attempt = next(request for request in history.requests if request.cancels).cancels[0]
    assert attempt.told is not None
    attempt.told = replace(attempt.told, status="reserved")


def store_under_another_user(_: History, evidence: Evidence) -> None:
    evidence.rows[0] = replace(evidence.rows[0], user_id=uuid4())


def take_a_unit_for_a_refused_order(_: History, evidence: Evidence) -> None:
    stocks = evidence.lanes[LANE]
    assert stocks is not None
    stocks[0] = replace(stocks[0], available=stocks[0].available - 1, reserved=stocks[0].reserved + 1)


def give_a_cancelled_unit_back_twice(_: History, evidence: Evidence) -> None:
    stocks = evidence.lanes[LANE]
    assert stocks is not None
    stocks[0] = replace(stocks[0], available=stocks[0].available + 1, reserved=stocks[0].reserved - 1)


def keep_a_cancelled_purchase(_: History, evidence: Evidence) -> None:
    row = evidence.rows[-1]
    evidence.purchases[row.user_id, row.lines[0][0]] = row.lines[0][1]


def forget_a_purchase(_: History, evidence: Evidence) -> None:
    evidence.purchases.popitem()


def sell_beyond_the_limit(_: History, evidence: Evidence) -> None:
    row = evidence.rows[0]
    [(sku, _quantity)] = row.lines
    evidence.rows[0] = replace(row, lines=((sku, 5),))
    evidence.purchases[row.user_id, sku] = 5


def forget_a_record(_: History, evidence: Evidence) -> None:
    evidence.records.popitem()


def skip_a_place(_: History, evidence: Evidence) -> None:
    newest, places = evidence.places[LANE]
    evidence.places[LANE] = newest + 1, places


def hide_a_loss_by_a_duplicate(_: History, evidence: Evidence) -> None:
    """A place that no shard has, and another that two have: the number of places is right."""
    order_id, version, lane, lane_seq, status = evidence.transitions[1]
    evidence.transitions[1] = (order_id, version, lane, lane_seq + 1, status)
    newest, places = evidence.places[LANE]
    evidence.places[LANE] = newest, places - {lane_seq}


def repeat_a_version_at_another_place(_: History, evidence: Evidence) -> None:
    """Redis went back and cancelled an order that the shard stores as reserved."""
    order_id, version, lane, _seq, _status = evidence.transitions[0]
    newest, places = evidence.places[LANE]
    evidence.places[LANE] = newest + 1, places | {newest + 1}
    evidence.repeated.append((order_id, version, lane, newest + 1, OrderStatus.CANCELLED))


def repeat_an_entry_at_a_taken_place(_: History, evidence: Evidence) -> None:
    """The same version with the same status, at the place of another entry."""
    order_id, version, lane, _seq, status = evidence.transitions[0]
    evidence.repeated.append((order_id, version, lane, evidence.transitions[1][3], status))


def bury_a_release(_: History, evidence: Evidence) -> None:
    """The cancellation is in the dead letters: its place is accounted for, its version is not stored."""
    evidence.transitions.pop()
    row = evidence.rows[-1]
    evidence.rows[-1] = replace(row, status=OrderStatus.RESERVED, version=1)


def name_two_versions_alike(_: History, evidence: Evidence) -> None:
    """Consumers that know the first version's id would drop the second."""
    evidence.events[-1] = replace(evidence.events[-1], event_id=evidence.events[-2].event_id)


def tell_a_version_as_another(_: History, evidence: Evidence) -> None:
    """The event of the second version has the content of the first."""
    evidence.events[-1] = replace(evidence.events[-1], status="reserved")


def tell_an_event_of_another_user(_: History, evidence: Evidence) -> None:
    evidence.events[0] = replace(evidence.events[0], user_id=uuid4())


def tell_an_event_of_other_money(_: History, evidence: Evidence) -> None:
    evidence.events[0] = replace(evidence.events[0], total_minor=1)


def answer_untyped_beside_a_stopped_edge(history: History, evidence: Evidence) -> None:
    answer_untyped(history, evidence)
    history.silences.append((0.5, 3.0))


def _payment(evidence: Evidence, place: int, **changes: Any) -> None:
    """0: pays an order. 1: pays another one. 2: a second payment of that order, went back. 3: late, went back."""
    evidence.money.payments[place] = replace(evidence.money.payments[place], **changes)


def lose_a_payment(_: History, evidence: Evidence) -> None:
    evidence.money.payments.pop(0)


def invent_a_payment(_: History, evidence: Evidence) -> None:
    """Its order is paid by it; the provider does not know it."""
    evidence.money.captured.pop(0)


def store_a_payment_twice(_: History, evidence: Evidence) -> None:
    evidence.money.payments.append(replace(evidence.money.payments[0], shard=evidence.money.payments[0].shard ^ 1))


def store_a_cent_less(_: History, evidence: Evidence) -> None:
    """Here and in the refund: only the provider's ledger shows it."""
    less = evidence.money.payments[3].amount_minor - 1
    _payment(evidence, 3, amount_minor=less, refunded_minor=less)
    evidence.money.refunds[1] = replace(evidence.money.refunds[1], amount_minor=less)
    evidence.money.returned[1] = replace(evidence.money.returned[1], amount_minor=less)
    evidence.money.events = [
        replace(event, amount_minor=less) if event.order_id == evidence.money.payments[3].order_id else event
        for event in evidence.money.events
    ]


def store_another_currency(_: History, evidence: Evidence) -> None:
    _payment(evidence, 0, currency="USD")


def store_a_payment_for_another_order(_: History, evidence: Evidence) -> None:
    _payment(evidence, 0, order_id=evidence.rows[0].order_id)


def store_a_payment_in_another_shard(_: History, evidence: Evidence) -> None:
    _payment(evidence, 0, shard=evidence.money.payments[0].shard ^ 1)


def leave_a_payment_unsettled(_: History, evidence: Evidence) -> None:
    _payment(evidence, 0, state="received")


def keep_a_late_payment(_: History, evidence: Evidence) -> None:
    """The money of a cancelled order stays with the shop."""
    _payment(evidence, 3, state="captured", settles=True, refunded_minor=0)


def keep_a_second_payment(_: History, evidence: Evidence) -> None:
    _payment(evidence, 2, state="captured", refunded_minor=0)


def keep_a_part(_: History, evidence: Evidence) -> None:
    payment = evidence.money.payments[2]
    _payment(evidence, 2, state="captured", refunded_minor=payment.amount_minor - 1)


def hand_over_unpaid(_: History, evidence: Evidence) -> None:
    """An order is paid in shard and Redis, its only payment went back."""
    payment = evidence.money.payments[0]
    _payment(evidence, 0, state="refunded", refunded_minor=payment.amount_minor)


def pay_without_money(_: History, evidence: Evidence) -> None:
    """No payment came at all for a paid order."""
    evidence.money.payments.pop(0)
    evidence.money.captured.pop(0)
    evidence.money.events.pop(0)


def refund_at_the_provider_only(_: History, evidence: Evidence) -> None:
    evidence.money.refunds.pop()


def refund_here_only(_: History, evidence: Evidence) -> None:
    evidence.money.returned.pop()


def refund_twice_at_the_provider(_: History, evidence: Evidence) -> None:
    evidence.money.returned.append(replace(evidence.money.returned[0], id=str(uuid4())))


def refund_more_at_the_provider(_: History, evidence: Evidence) -> None:
    entry = evidence.money.returned[0]
    evidence.money.returned[0] = replace(entry, amount_minor=entry.amount_minor + 1)


def forget_a_due_refund(_: History, evidence: Evidence) -> None:
    """The row says due, no message is left, the provider was not asked."""
    evidence.money.refunds[0] = replace(evidence.money.refunds[0], state="due")
    payment = evidence.money.payments[2]
    _payment(evidence, 2, state="refund_due", due_minor=payment.amount_minor, refunded_minor=0)
    evidence.money.returned.pop(0)
    evidence.money.events = [event for event in evidence.money.events if event.kind != "refunded"]


def hide_a_payment_from_its_buyer(_: History, evidence: Evidence) -> None:
    evidence.money.marked.remove(evidence.money.payments[0].order_id)


def confirm_a_payment_without_money(history: History, _: Evidence) -> None:
    history.requests[0].clicks = 1


def lose_an_event_of_money(_: History, evidence: Evidence) -> None:
    evidence.money.events.pop(0)


def lose_the_event_of_a_refund(_: History, evidence: Evidence) -> None:
    evidence.money.events.pop()


def tell_another_amount(_: History, evidence: Evidence) -> None:
    evidence.money.events[0] = replace(evidence.money.events[0], amount_minor=1)


def tell_a_refund_that_was_not_made(_: History, evidence: Evidence) -> None:
    event = evidence.money.events[0]
    evidence.money.events.append(replace(event, id=f"{event.about}:refund_due", kind="refund_due"))


def tell_money_in_other_words(_: History, evidence: Evidence) -> None:
    evidence.money.events.append(replace(evidence.money.events[0], digest="other words"))


DAMAGES: list[tuple[Callable[[History, Evidence], None], str]] = [
    (lose_a_row, "B"), (store_an_order_twice, "B"), (sell_a_unit_too_many, "A"), (reuse_a_key, "C"),
    (accept_other_lines, "C"), (lose_an_event, "D"), (change_an_event, "D"), (invent_an_event, "D"),
    (misplace_an_event, "D"), (key_an_event_by_another_user, "D"), (tell_an_older_version_as_the_newest, "D"),
    (leave_an_outbox_row, "D"), (store_what_was_refused, "B"), (store_what_nobody_asked_for, "B"),
    (leave_an_outcome_unknown, "B"), (lose_a_version, "B"), (take_a_place_twice, "B"), (forget_an_order_in_redis, "B"),
    (unbalance_a_lane, "A"), (conjure_up_stock, "A"), (lend_a_unit_to_no_lane, "A"), (credit_a_transfer_twice, "A"),
    (forget_the_sale_in_a_lane, "A"), (break_the_guard, "A"),
    (lose_a_grant, "A"), (undo_a_cancellation, "C"), (cancel_unasked, "C"), (answer_in_other_words, "C"),
    (answer_as_new_twice, "C"), (answer_untyped, "E"), (break_a_connection, "E"), (answer_late, "E"),
    (bury_an_order, "B"),
    (tell_a_wrong_total, "B"), (tell_a_wrong_price, "B"), (tell_another_quantity, "B"), (tell_a_longer_hold, "B"),
    (store_another_end, "B"), (store_another_total, "B"), (tell_another_sale, "B"),
    (tell_a_cancelled_order_as_reserved, "B"), (store_under_another_user, "B"), (take_a_unit_for_a_refused_order, "A"),
    (give_a_cancelled_unit_back_twice, "A"), (keep_a_cancelled_purchase, "A"), (forget_a_purchase, "A"),
    (sell_beyond_the_limit, "A"), (forget_a_record, "C"), (skip_a_place, "B"), (name_two_versions_alike, "D"),
    (tell_a_version_as_another, "D"), (tell_an_event_of_another_user, "D"), (tell_an_event_of_other_money, "D"),
    (answer_untyped_beside_a_stopped_edge, "E"), (hide_a_loss_by_a_duplicate, "B"),
    (repeat_a_version_at_another_place, "B"), (repeat_an_entry_at_a_taken_place, "B"), (bury_a_release, "A"),
    (lose_a_payment, "G"), (invent_a_payment, "G"), (store_a_payment_twice, "G"), (store_a_cent_less, "G"),
    (store_another_currency, "G"), (store_a_payment_for_another_order, "G"), (store_a_payment_in_another_shard, "G"),
    (leave_a_payment_unsettled, "G"), (keep_a_late_payment, "G"), (keep_a_second_payment, "G"), (keep_a_part, "G"),
    (hand_over_unpaid, "G"), (pay_without_money, "G"), (refund_at_the_provider_only, "G"), (refund_here_only, "G"),
    (refund_twice_at_the_provider, "G"), (refund_more_at_the_provider, "G"), (forget_a_due_refund, "G"),
    (hide_a_payment_from_its_buyer, "G"), (confirm_a_payment_without_money, "G"), (lose_an_event_of_money, "D"),
    (lose_the_event_of_a_refund, "D"), (tell_another_amount, "D"), (tell_a_refund_that_was_not_made, "D"),
    (tell_money_in_other_words, "D"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "invariant"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("seed", SEEDS)
def test_each_planted_damage_turns_its_promise_red(
    seed: int, damage: Callable[[History, Evidence], None], invariant: str
) -> None:
    history, evidence = right_sale(seed)
    damage(history, evidence)
    assert invariant in {finding.invariant for finding in judged(history, evidence)}


def test_an_entry_that_came_again_from_another_place_is_accounted_for() -> None:
    """With the same status nothing contradicts it: a rebuilt order was cancelled as before."""
    history, evidence = right_sale(0)
    order_id, version, lane, _seq, status = evidence.transitions[-1]
    newest, places = evidence.places[LANE]
    evidence.places[LANE] = newest + 1, places | {newest + 1}
    evidence.repeated.append((order_id, version, lane, newest + 1, status))
    assert judged(history, evidence) == []


def test_not_even_a_lost_order_excuses_money_without_a_row() -> None:
    """The payment of an order that exists nowhere is stored as well, and goes back."""
    history, evidence = right_sale(0)
    gone = evidence.rows[0].order_id
    entry = replace(evidence.money.captured[0], id="evt_lost", order_id=gone)
    evidence.money.captured.append(entry)
    lost = Expectations(lost_orders=True)
    assert {finding.invariant for finding in judged(history, evidence, lost)} == {"G"}
    evidence.money.captured[-1] = replace(entry, order_id=uuid4())
    assert {finding.invariant for finding in judged(history, evidence, lost)} == {"G"}


def test_a_payment_that_went_back_after_its_order_was_lost_is_accounted_for() -> None:
    history, evidence = right_sale(0)
    pay(evidence.money, uuid4(), "evt_lost", 7, uuid4())
    evidence.money.payments[-1] = replace(
        evidence.money.payments[-1], settles=True, shard=TOPOLOGY.shard_of_order(evidence.money.payments[-1].order_id)
    )
    assert judged(history, evidence, Expectations(lost_orders=True)) == []


def test_what_a_fault_may_cause_is_no_finding() -> None:
    history, evidence = right_sale(0)
    break_a_connection(history, evidence)
    bury_an_order(history, evidence)
    assert judged(history, evidence, Expectations(broken_connections=True, dead_letters=1)) == []


def test_an_edge_that_was_stopped_is_excused_only_meanwhile() -> None:
    history, evidence = right_sale(0)
    answer_late(history, evidence)
    history.silences.append((0.5, 3.0))
    assert judged(history, evidence) == []
    history.silences[:] = [(20.0, 30.0)]
    assert [finding.invariant for finding in judged(history, evidence)] == ["E"]


@pytest.mark.parametrize(
    ("attempts", "ending"),
    [
        ([], Ending.UNKNOWN),
        ([refused()], Ending.REFUSED),
        ([refused("overloaded", 503), refused()], Ending.REFUSED),
        ([unknown(), refused()], Ending.UNKNOWN),  # the first one may still be executed
        ([unknown(), replace(refused(), settled=True)], Ending.REFUSED),
        ([refused(), ok(uuid4())], Ending.OK),
        ([unknown(), ok(uuid4())], Ending.OK),
    ],
)
def test_a_request_is_as_certain_as_its_attempts(attempts: list[Attempt], ending: Ending) -> None:
    assert OrderRequest(uuid4(), "k", ((SKUS[0], 1),), attempts).ending is ending


def test_a_cancellation_that_was_not_stored_is_lost_only_with_redis_disk() -> None:
    """`cancel_unasked` is a confirmed cancellation of an order that is stored as reserved, in its first version."""
    history, evidence = right_sale(0)
    cancel_unasked(history, evidence)
    assert {finding.invariant for finding in judged(history, evidence)} == {"C"}
    assert judged(history, evidence, Expectations(lost_orders=True)) == []
    history, evidence = right_sale(0)
    undo_a_cancellation(history, evidence)  # its second version was stored, so no loss explains the damage
    assert "C" in {finding.invariant for finding in judged(history, evidence, Expectations(lost_orders=True))}


def test_a_lost_order_frees_its_own_key_only() -> None:
    """A loss excuses lost orders only: stored orders keep their keys and answers."""
    history, evidence = right_sale(0)
    answer_in_other_words(history, evidence)
    assert {finding.invariant for finding in judged(history, evidence, Expectations(lost_orders=True))} == {"C"}
    history.requests[0].attempts.append(ok(uuid4()))  # an order without a row
    assert judged(history, evidence, Expectations(lost_orders=True)) == []
