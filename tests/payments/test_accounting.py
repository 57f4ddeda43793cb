"""Invariant G: damage of each kind is found, and money in order is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from domain.orders import OrderStatus
from domain.payments import RefundReason
from payments.accounting import Accounting, Sums
from tests.payments.till import Till


async def findings(till: Till, *, late_s: float = 0.0) -> list[str]:
    return await Accounting(till.bench.pools, late=timedelta(seconds=late_s)).findings(till.shard)


def change(till: Till, statement: str) -> None:
    with psycopg.connect(till.dsn) as connection:
        assert connection.execute(statement.encode()).rowcount >= 1


async def test_money_in_order_is_proved(till: Till) -> None:
    paid, late = till.order(), till.order()
    till.lane.cancel(late)
    await till.settling.settle(till.shard, [till.paying(paid), till.paying(paid), till.paying(late)])
    assert await findings(till, late_s=60) == [], "the order may be on its way to its shard"
    till.store(till.held(paid.order_id))
    await till.ledger.confirm(till.shard, limit=9)
    assert await findings(till) == []
    assert await Accounting(till.bench.pools).sums(till.shard) == [Sums("EUR", 300, 100, 200, 0, 0)]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE refunds SET amount_minor = 99", "its refunds have other amounts"),
        ("DELETE FROM refunds", "its refunds have other amounts"),
        ("UPDATE payments SET due_minor = 0, refunded_minor = 100, state = 'refunded' WHERE due_minor > 0", "other amounts"),
        ("UPDATE orders SET status = 3, charged = false", "captured for an order that is not paid"),
        ("DELETE FROM orders", "captured for an order that is not stored"),
        ("UPDATE orders SET total_minor = 99", "pays an order of another amount"),
        ("UPDATE payments SET amount_minor = 99 WHERE state = 'captured'", "pays an order of another amount"),
        ("UPDATE payments SET state = 'received' WHERE state = 'captured'", "received long ago and not settled"),
        ("DELETE FROM payments WHERE state = 'captured'", "is paid, and no payment pays it"),
    ],
)  # fmt: skip
async def test_each_damage_is_found(till: Till, damage: str, found: str) -> None:
    order = till.order()
    await till.settling.settle(till.shard, [till.paying(order), till.paying(order)])
    till.store(till.held(order.order_id))
    await till.ledger.confirm(till.shard, limit=9)
    assert await findings(till) == []
    change(till, damage)
    told = await findings(till)
    assert any(found in text for text in told), told
    changed_since = datetime.now(UTC) + timedelta(minutes=1)
    assert await Accounting(till.bench.pools).findings(till.shard, since=changed_since) == []


@pytest.mark.parametrize("reason", ["late", "lost", "staff"])
async def test_a_paid_order_keeps_its_money_unless_staff_give_it_back(till: Till, reason: str) -> None:
    order = till.order()
    await till.settling.settle(till.shard, [till.paying(order)])
    (payment,) = await till.ledger.unconfirmed_before(till.shard, age=timedelta(0), limit=9)
    await till.ledger.conclude(till.shard, captured=[], due=[(payment, RefundReason.LATE)])
    key = "'key'" if reason == "staff" else "NULL"
    change(till, f"UPDATE refunds SET reason = '{reason}', idempotency_key = {key}")
    till.store(till.held(order.order_id))
    told = [] if reason == "staff" else [f"order {order.order_id} is paid, and no payment pays it"]
    assert await findings(till) == told


async def test_a_paid_order_that_costs_nothing_needs_no_payment(till: Till) -> None:
    order = till.order()
    till.store(order.becoming(OrderStatus.PAID, at_ms=order.changed_at_ms))
    change(till, "UPDATE orders SET total_minor = 0")
    assert await findings(till) == []
