"""The comparison of two ledgers: consistent ones have no difference, and each planted damage has exactly its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.payments import RefundState
from payments.comparing import Comparison, Kind, PaymentRow, RefundRow, Rows, compare, missing, unexplained
from payments.providers.port import ProviderEntry

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
SINCE = NOW - timedelta(days=7)
HOUR = timedelta(hours=1)


def a_payment(event_id: str, order: UUID | None, amount: int, at: datetime) -> ProviderEntry:
    return ProviderEntry(event_id, is_refund=False, order_id=order, amount_minor=amount, currency="EUR", at=at)


def a_refund(refund_id: str, order: UUID | None, amount: int, at: datetime, *, reference: str = "") -> ProviderEntry:
    return ProviderEntry(
        refund_id, is_refund=True, order_id=order, amount_minor=amount, currency="EUR", at=at, reference=reference
    )  # fmt: skip


class Ledgers:
    """Both sides of some payments, each of which may have a refund."""

    def __init__(self, payments: int, refunded: set[int], *, at: datetime = NOW - 2 * HOUR) -> None:
        self.rows = Rows()
        self.entries: list[ProviderEntry] = []
        for number in range(payments):
            order = UUID(int=number)
            self.pay(f"evt_{number}", order, 100 + number, at)
            if number in refunded:
                self.refund(UUID(int=1000 + number), order, 100 + number, at + timedelta(seconds=1))

    def pay(self, event_id: str, order: UUID, amount: int, at: datetime) -> None:
        self.rows.payments[event_id] = PaymentRow(event_id, order, amount, "EUR", at + timedelta(seconds=1))
        self.rows.judged_payments.add(event_id)
        self.entries.append(a_payment(event_id, order, amount, at))

    def refund(self, refund_id: UUID, order: UUID, amount: int, at: datetime) -> None:
        self.rows.refunds[refund_id] = RefundRow(refund_id, order, amount, "EUR", RefundState.DONE, at)
        self.rows.judged_refunds.add(refund_id)
        self.entries.append(a_refund(str(refund_id), order, amount, at))

    def compared(self) -> Comparison:
        return compare(self.rows, self.entries, since=SINCE, now=NOW)

    def named(self) -> list[tuple[Kind, str]]:
        return [(difference.kind, difference.id) for difference in self.compared().differences]


def payment_row_vanished(ledgers: Ledgers) -> tuple[Kind, str]:
    del ledgers.rows.payments["evt_0"]
    ledgers.rows.judged_payments.discard("evt_0")
    return Kind.PAYMENT_WITHOUT_ROW, "evt_0"


def payment_entry_vanished(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.entries = [entry for entry in ledgers.entries if entry.id != "evt_0"]
    return Kind.ROW_WITHOUT_PAYMENT, "evt_0"


def payment_of_another_amount(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.rows.payments["evt_0"] = replace(ledgers.rows.payments["evt_0"], amount_minor=99)
    return Kind.PAYMENT_DIFFERS, "evt_0"


def payment_in_another_currency(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.rows.payments["evt_0"] = replace(ledgers.rows.payments["evt_0"], currency="USD")
    return Kind.PAYMENT_DIFFERS, "evt_0"


def payment_of_another_order(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.rows.payments["evt_0"] = replace(ledgers.rows.payments["evt_0"], order_id=UUID(int=77))
    return Kind.PAYMENT_DIFFERS, "evt_0"


def payment_listed_twice(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.entries.append(ledgers.entries[0])
    return Kind.PAYMENT_TWICE, "evt_0"


def payment_of_no_order(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.entries.append(a_payment("evt_x", None, 5, NOW - HOUR))
    return Kind.PAYMENT_WITHOUT_ROW, "evt_x"


REFUND = UUID(int=1000)


def refund_by_hand(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.entries.append(a_refund("", None, 5, NOW - HOUR, reference="pi_7"))
    return Kind.REFUND_WITHOUT_ROW, "pi_7"


def refund_row_vanished(ledgers: Ledgers) -> tuple[Kind, str]:
    del ledgers.rows.refunds[REFUND]
    ledgers.rows.judged_refunds.discard(REFUND)
    return Kind.REFUND_WITHOUT_ROW, str(REFUND)


def refund_made_twice(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.entries.append(next(entry for entry in ledgers.entries if entry.is_refund))
    return Kind.REFUND_WITHOUT_ROW, str(REFUND)


def refund_not_at_provider(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.entries = [entry for entry in ledgers.entries if entry.id != str(REFUND)]
    return Kind.REFUND_NOT_AT_PROVIDER, str(REFUND)


def refund_not_stored(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.rows.refunds[REFUND] = replace(ledgers.rows.refunds[REFUND], state=RefundState.DUE)
    return Kind.REFUND_NOT_STORED, str(REFUND)


def refund_of_another_amount(ledgers: Ledgers) -> tuple[Kind, str]:
    ledgers.rows.refunds[REFUND] = replace(ledgers.rows.refunds[REFUND], amount_minor=99)
    return Kind.REFUND_DIFFERS, str(REFUND)


def refund_overdue(ledgers: Ledgers) -> tuple[Kind, str]:
    refund_not_at_provider(ledgers)
    refund_not_stored(ledgers)
    return Kind.REFUND_OVERDUE, str(REFUND)


def refund_refused(ledgers: Ledgers) -> tuple[Kind, str]:
    refund_not_at_provider(ledgers)
    row = ledgers.rows.refunds[REFUND]
    ledgers.rows.refunds[REFUND] = replace(row, state=RefundState.REFUSED, created_at=NOW)
    return Kind.REFUND_REFUSED, str(REFUND)


DAMAGE: list[Callable[[Ledgers], tuple[Kind, str]]] = [
    payment_row_vanished, payment_entry_vanished, payment_of_another_amount, payment_in_another_currency,
    payment_of_another_order, payment_listed_twice, payment_of_no_order, refund_by_hand, refund_row_vanished,
    refund_made_twice, refund_not_at_provider, refund_not_stored, refund_of_another_amount, refund_overdue,
    refund_refused,
]  # fmt: skip


@given(st.integers(0, 30), st.sets(st.integers(0, 30)), st.randoms())
def test_consistent_ledgers_have_no_difference_in_any_order(payments: int, refunded: set[int], random: object) -> None:
    ledgers = Ledgers(payments, refunded)
    random.shuffle(ledgers.entries)  # type: ignore[attr-defined]
    found = ledgers.compared()
    assert found.differences == [] and found.under_way == 0
    made = {number for number in refunded if number < payments}
    assert (found.payments, found.refunds) == (payments, len(made))
    assert found.payments_minor["EUR"] == sum(100 + number for number in range(payments))
    assert found.refunds_minor["EUR"] == sum(100 + number for number in made)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_each_damage_has_its_name(damage: Callable[[Ledgers], tuple[Kind, str]]) -> None:
    ledgers = Ledgers(3, {0, 2})
    expected = damage(ledgers)
    assert ledgers.named() == [expected]


def test_every_kind_is_planted() -> None:
    assert {damage(Ledgers(3, {0, 2}))[0] for damage in DAMAGE} == set(Kind)


def test_difference_tells_both_sides() -> None:
    ledgers = Ledgers(1, set())
    payment_of_another_amount(ledgers)
    (difference,) = ledgers.compared().differences
    order = UUID(int=0)
    assert (difference.ours, difference.theirs) == (f"99 EUR, order {order}", f"100 EUR, order {order}")
    assert difference.order_id == order


def test_young_entries_may_be_under_way() -> None:
    for damage in (payment_row_vanished, refund_not_stored):
        ledgers = Ledgers(1, {0}, at=NOW - timedelta(minutes=4))
        damage(ledgers)
        found = ledgers.compared()
        assert found.differences == [] and found.under_way == 1
        older = compare(ledgers.rows, ledgers.entries, since=SINCE, now=NOW, grace=timedelta(0))
        assert len(older.differences) == 1
    young = Ledgers(1, {0}, at=NOW - timedelta(minutes=4))
    refund_overdue(young)
    assert young.named() == []


def test_older_entries_explain_rows_and_are_not_judged_themselves() -> None:
    ledgers = Ledgers(2, {0, 1}, at=SINCE - HOUR)
    assert ledgers.named() == []
    assert ledgers.compared().payments == 0
    payment_row_vanished(ledgers)  # older than the comparison: an earlier one has named it
    assert ledgers.named() == []
    refund_not_stored(ledgers)  # its row is open now, however old the provider's entry is
    assert ledgers.named() == [(Kind.REFUND_NOT_STORED, str(REFUND))]


def test_rows_are_read_again_only_where_they_decide() -> None:
    ledgers = Ledgers(3, {0, 1, 2})
    assert unexplained(ledgers.rows, ledgers.entries, since=SINCE) == (set(), set())
    payment_row_vanished(ledgers)
    refund_not_stored(ledgers)
    refund_by_hand(ledgers)
    assert unexplained(ledgers.rows, ledgers.entries, since=SINCE) == ({"evt_0"}, {REFUND})


def test_older_entries_are_wanted_only_for_rows_without_one() -> None:
    ledgers = Ledgers(3, {0, 1, 2})
    assert not missing(ledgers.rows, ledgers.entries)
    refund_not_stored(ledgers)
    assert not missing(ledgers.rows, ledgers.entries)
    for damage in (payment_entry_vanished, refund_not_at_provider):
        ledgers = Ledgers(3, {0, 1, 2})
        damage(ledgers)
        assert missing(ledgers.rows, ledgers.entries)
