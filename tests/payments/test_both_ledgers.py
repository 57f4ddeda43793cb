"""Both ledgers read from real servers: the simulator's books over HTTP, the rows of real shards, page by page."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID

import psycopg
import pytest

from payments import both_ledgers
from payments.both_ledgers import BothLedgers, TooMuch
from payments.comparing import Comparison, Kind
from payments.providers.port import Captured, ProviderAway, ProviderEntry
from payments.refunds import Refunds
from payments.settling import Settled
from runtime.redis.leases import Lease
from tests.fixtures.fix_payments import Simulator, a_checkout
from tests.payments.till import Till
from tests.workers.writing import rows
from workers.payments import comparison, metrics

SINCE = datetime(2020, 1, 1, tzinfo=UTC)
NO_GRACE = timedelta(0)


NO_LEASE = cast(Lease, None)  # a comparison only reads


async def compared(till: Till, simulator: Simulator, *, grace: timedelta = NO_GRACE) -> Comparison:
    return await BothLedgers(till.bench.pools, simulator.provider).compare(SINCE, grace=grace)


async def pay(till: Till, simulator: Simulator, count: int = 1, action: str = "pay") -> list[Captured]:
    """Payments of new orders at the simulator; their events."""
    before = len(simulator.shop.events)
    for _ in range(count):
        order = till.order()
        page = await simulator.provider.checkout(a_checkout(order.order_id, amount_minor=order.total_minor))
        await simulator.click(page, action)
    found = await simulator.shop.has(before + count * (2 if action == "pay_twice" else 1))
    return [
        Captured(event["event_id"], UUID(event["order_id"]), event["amount_minor"], event["currency"], "")
        for event in found[before:]
    ]


async def refund_all(till: Till, simulator: Simulator) -> None:
    """As the payment worker does."""
    refunds = Refunds(till.bench.pools, till.ledger._cluster)
    for refund_id, order_id in rows(till.dsn, "SELECT id, order_id FROM refunds WHERE state = 'due'"):
        refund = await refunds.read(refund_id, order_id)
        assert refund is not None
        await refunds.finish(refund, provider_id=await simulator.provider.refund(refund.request))


def kinds(found: Comparison) -> list[Kind]:
    return [difference.kind for difference in found.differences]


async def test_ledgers_agree_and_each_damage_is_named(
    till: Till, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both_ledgers, "PAGE_MAX", 3)
    events = await pay(till, simulator, 7) + await pay(till, simulator, 2, "pay_twice")
    results = await till.settling.settle(till.shard, events)
    assert results.count(Settled.CAPTURED) == 9 and results.count(Settled.REFUND_DUE) == 2
    await refund_all(till, simulator)
    found = await compared(till, simulator)
    assert found.differences == [] and (found.payments, found.refunds, found.under_way) == (11, 2, 0)
    assert found.payments_minor == {"EUR": 11 * events[0].amount_minor}

    with psycopg.connect(till.dsn) as connection:
        connection.execute("DELETE FROM payments WHERE event_id = %s", (events[0].event_id,))
        connection.execute("UPDATE payments SET amount_minor = 101 WHERE event_id = %s", (events[1].event_id,))
        connection.execute("UPDATE payments SET event_id = 'evt_invented' WHERE event_id = %s", (events[2].event_id,))
        connection.execute("UPDATE refunds SET state = 'due', provider_id = NULL")
    found = await compared(till, simulator)
    assert sorted(kinds(found)) == sorted(
        [
            Kind.PAYMENT_WITHOUT_ROW, Kind.PAYMENT_WITHOUT_ROW, Kind.PAYMENT_DIFFERS, Kind.ROW_WITHOUT_PAYMENT,
            Kind.REFUND_NOT_STORED, Kind.REFUND_NOT_STORED,
        ]
    )  # fmt: skip
    with psycopg.connect(till.dsn) as connection:  # rows of another provider are not this one's
        connection.execute("UPDATE payments SET provider = 'stripe' WHERE event_id = 'evt_invented'")
    assert Kind.ROW_WITHOUT_PAYMENT not in kinds(await compared(till, simulator))


async def test_money_whose_webhook_was_lost_is_found(till: Till, simulator: Simulator) -> None:
    await simulator.control(lost_share=1)
    order = till.order()
    await simulator.click(await simulator.provider.checkout(a_checkout(order.order_id, amount_minor=100)))
    young = await compared(till, simulator, grace=timedelta(minutes=5))
    assert young.differences == [] and young.under_way == 1
    (difference,) = (await compared(till, simulator)).differences
    assert (difference.kind, difference.order_id) == (Kind.PAYMENT_WITHOUT_ROW, order.order_id)


async def test_rows_that_arrive_while_the_ledgers_are_read_are_no_difference(till: Till, simulator: Simulator) -> None:
    """The payment is stored after the rows were read, and before the comparison."""
    events = await pay(till, simulator)

    class Slow:
        name = "simulated"

        async def entries(self, since: datetime):  # type: ignore[no-untyped-def]
            await till.settling.settle(till.shard, events)
            async for entry in simulator.provider.entries(since):
                yield entry

    found = await BothLedgers(till.bench.pools, Slow()).compare(SINCE, grace=NO_GRACE)  # type: ignore[arg-type]
    assert found.differences == [] and found.payments == 1


async def test_payment_whose_webhook_took_days_is_found_further_back(till: Till, simulator: Simulator) -> None:
    (event,) = await pay(till, simulator)
    await till.settling.settle(till.shard, [event])
    asked: list[datetime] = []

    class Old:
        name = "simulated"

        async def entries(self, since: datetime):  # type: ignore[no-untyped-def]
            asked.append(since)
            async for entry in simulator.provider.entries(SINCE):
                if since <= (at := entry.at - timedelta(days=3)):
                    yield replace(entry, at=at)

    since = datetime.now(UTC) - timedelta(minutes=1)
    found = await BothLedgers(till.bench.pools, Old()).compare(since, grace=NO_GRACE)  # type: ignore[arg-type]
    assert found.differences == [] and len(asked) == 2
    assert asked == [since - older for older in both_ledgers.OLDER]


async def test_comparison_is_bounded(till: Till, simulator: Simulator) -> None:
    await till.settling.settle(till.shard, await pay(till, simulator, 3))
    both = BothLedgers(till.bench.pools, simulator.provider)
    for both_max in (2, 5):
        with pytest.raises(TooMuch):
            await both.compare(SINCE, both_max=both_max)
    await both.compare(SINCE, both_max=6)


class FakeLedger:
    """A provider that is away, or has money of no row."""

    name = "simulated"
    away = False

    async def entries(self, _: datetime):  # type: ignore[no-untyped-def]
        if self.away:
            raise ProviderAway("status 503")
        old = datetime.now(UTC) - timedelta(hours=1)
        yield ProviderEntry("evt_x", is_refund=False, order_id=None, amount_minor=5, currency="EUR", at=old)


async def test_verdict_has_an_age_and_never_stands_when_it_could_not_be_made(till: Till) -> None:
    now = 1000.0
    ledger = FakeLedger()
    hourly = comparison.HourlyComparison(
        BothLedgers(till.bench.pools, ledger), every_s=3600, again_s=60, clock=lambda: now  # type: ignore[arg-type]
    )  # fmt: skip

    def shown(kind: Kind = Kind.PAYMENT_WITHOUT_ROW) -> float:
        (metric,) = metrics.DIFFERENCES.collect()
        return next(sample.value for sample in metric.samples if sample.labels["kind"] == kind.value)

    assert math.isnan(shown()) and math.isnan(hourly.age_s())
    await hourly.step(NO_LEASE)
    assert (shown(), shown(Kind.PAYMENT_DIFFERS), hourly.age_s()) == (1, 0, 0)
    ledger.away = True
    now += 3599
    await hourly.step(NO_LEASE)  # not yet
    assert (shown(), hourly.age_s()) == (1, 3599)
    now += 1
    await hourly.step(NO_LEASE)
    assert math.isnan(shown()) and hourly.age_s() == 3600
    ledger.away = False
    now += 59
    await hourly.step(NO_LEASE)
    assert math.isnan(shown())  # not due again
    now += 1
    await hourly.step(NO_LEASE)
    assert (shown(), hourly.age_s()) == (1, 0)
    now += comparison.COUNTS_S_MAX + 1
    assert math.isnan(shown())  # no round came for two hours
