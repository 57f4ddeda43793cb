"""Refunds through a real simulator: each once at the provider and once here, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import ClassVar, cast
from uuid import UUID, uuid4

import orjson
import psycopg
import pytest

from domain.orders import OrderEntry
from domain.topology import DESTINATION_REFUNDS, REFUNDS_QUEUE
from payments.providers.port import Captured
from payments.providers.simulated import parse_event
from payments.refunds import Refund, Refunds
from payments.rows import refund_message
from payments.settling import Settled
from runtime.dead_letters import DeadLetter
from runtime.dead_letters.replay import replay
from runtime.process.service import Service
from runtime.process.settings import Settings
from runtime.redis.leases import Lease
from tests.fixtures.fix_payments import Simulator
from tests.payments.till import Till
from tests.workers.writing import eventually, rows
from workers.payments.refunder import Refunder
from workers.payments.sweep import Sweep

DELAYS_MS = (1_000,)
NOW, LONG = timedelta(0), timedelta(days=1)
LEASE = cast(Lease, None)  # a round of the sweep does not ask it


async def pay_twice(till: Till, simulator: Simulator, orders: int = 1) -> list[OrderEntry]:
    """Orders that are paid twice at the provider, so that the second payments go back; messages are published."""
    await simulator.control(second_share=1.0)
    made = [till.order() for _ in range(orders)]
    for order in made:
        page = await simulator.page(order.order_id, amount_minor=order.total_minor)
        assert (await simulator.click(page))[0] in (302, 303)
    for event in await simulator.shop.has(2 * orders):
        captured = parse_event(orjson.dumps(event))
        assert isinstance(captured, Captured)
        assert await till.settling.settle(till.shard, [captured]) != [Settled.UNKNOWN]
    query = "SELECT id, events FROM outbox WHERE destination = %s"
    for number, events in rows(till.dsn, query, DESTINATION_REFUNDS):
        for event in events:
            await till.bench.queue.publish(REFUNDS_QUEUE, orjson.dumps(event), message_id=f"{number}-{event['id']}")
    return made


async def take_away(till: Till) -> int:
    """Empty the queue; the number of its messages."""
    async with till.bench.queue.consume(REFUNDS_QUEUE, prefetch=16) as consumer:
        deliveries = await consumer.next_batch(count_max=16, wait_s=0.5)
        for delivery in deliveries:
            await delivery.ack()
        return len(deliveries)


def sweep_of(till: Till, forgotten_after: timedelta) -> Sweep:
    return Sweep(
        till.shard, settling=till.settling, ledger=till.ledger, refunds=till.refunds, interrupted_after=NOW,
        unconfirmed_after=LONG, lost_after=LONG, forgotten_after=forgotten_after,
    )  # fmt: skip


@asynccontextmanager
async def refunding(till: Till, simulator: Simulator, refunds: Refunds | None = None) -> AsyncIterator[Service]:
    """Two refunders at work."""
    service = Service("test", Settings())
    refunders = [
        Refunder(
            queue=till.bench.queue, letters=till.bench.letters, refunds=refunds or till.refunds,
            provider=simulator.provider, service=service, delays_ms=DELAYS_MS,
        )
        for _ in range(2)
    ]  # fmt: skip
    async with asyncio.TaskGroup() as group:
        for refunder in refunders:
            group.create_task(refunder.run())
        try:
            yield service
        finally:
            service.stopping.set()


async def drained(till: Till) -> None:
    async def empty() -> bool:
        depth = await till.bench.queue.depth(REFUNDS_QUEUE)
        return depth.messages == depth.retrying == 0 and await till.bench.queue.barrier(REFUNDS_QUEUE, wait_s=0)

    await eventually(empty)


async def refunded_there(simulator: Simulator) -> list[int]:
    """Amounts of the refunds in the provider's books."""
    return [entry.amount_minor for entry in await simulator.ledger() if entry.is_refund]


def states(till: Till) -> tuple[list[str], list[str]]:
    """States of the refunds, and of the payments that are not kept."""
    payments = rows(till.dsn, "SELECT state FROM payments WHERE NOT settles ORDER BY event_id")
    refunds = rows(till.dsn, "SELECT state FROM refunds ORDER BY id")
    return [state for (state,) in refunds], [state for (state,) in payments]


async def letters(till: Till) -> list[DeadLetter]:
    page, _ = await till.bench.letters.list(REFUNDS_QUEUE, cursor=None, limit=10)
    return list(page)


async def test_money_goes_back_once(till: Till, simulator: Simulator) -> None:
    await pay_twice(till, simulator, orders=5)
    async with refunding(till, simulator):
        await drained(till)
    assert states(till) == (["done"] * 5, ["refunded"] * 5)
    assert await refunded_there(simulator) == [100] * 5
    events = [kind for destination, kind in till.outbox() if destination == "events.payments"]
    assert events.count("payment.refunded") == 5
    (payment,) = {row for row in till.payments().values() if not row[1]}
    assert payment == ("refunded", False, 0, 100)


async def test_an_error_after_the_refund_and_a_crash_before_the_commit_refund_once(
    till: Till, simulator: Simulator
) -> None:
    await pay_twice(till, simulator, orders=2)
    await simulator.control(refund_error_share=1.0)

    class Crashing(Refunds):
        """Ends between the provider's answer and the commit, the first time."""

        crashes = 0

        async def finish(self, refund: Refund, *, provider_id: str) -> bool:
            if Crashing.crashes < 2:
                Crashing.crashes += 1
                raise psycopg.OperationalError("the process ends here")
            return await super().finish(refund, provider_id=provider_id)

    crashing = Crashing(till.bench.pools, till.ledger._cluster)
    async with refunding(till, simulator, crashing):

        async def both_refunded_there() -> bool:
            return await refunded_there(simulator) == [100] * 2

        await eventually(both_refunded_there)
        assert states(till)[0] == ["due"] * 2
        await simulator.control(refund_error_share=0.0)
        await drained(till)
    assert Crashing.crashes == 2
    assert states(till) == (["done"] * 2, ["refunded"] * 2)
    assert await refunded_there(simulator) == [100] * 2


async def test_a_shard_that_is_away_holds_up_no_other(till: Till, simulator: Simulator) -> None:
    class OneAway(Refunds):
        """The shard of these orders does not answer."""

        away: ClassVar[set[UUID]] = {till.order().order_id for _ in range(4)}

        async def read(self, refund_id: UUID, order_id: UUID) -> Refund | None:
            if order_id in OneAway.away:
                raise psycopg.OperationalError("away")
            return await super().read(refund_id, order_id)

    for place, order_id in enumerate(OneAway.away):
        message = refund_message(uuid4(), order_id)
        await till.bench.queue.publish(REFUNDS_QUEUE, orjson.dumps(message), message_id=f"away-{place}")
    await pay_twice(till, simulator)

    async def done() -> bool:
        return states(till) == (["done"], ["refunded"])

    async with refunding(till, simulator, OneAway(till.bench.pools, till.ledger._cluster)):
        await eventually(done)
        OneAway.away.clear()
        await drained(till)
    assert [letter.kind for letter in await letters(till)] == ["unroutable"] * 4, "their messages were kept"


async def test_a_provider_that_is_away_spends_no_attempt(till: Till, simulator: Simulator) -> None:
    await pay_twice(till, simulator)
    simulator.kill()
    async with refunding(till, simulator) as service:

        async def not_ready() -> bool:
            return not service.checks.get("payment provider", (True, ""))[0]

        await eventually(not_ready)
        await asyncio.sleep(1.2)  # a retry, which fails as well
        assert states(till)[0] == ["due"] and await letters(till) == []
        simulator.start()
        await drained(till)
        assert service.checks["payment provider"][0]
    assert states(till) == (["done"], ["refunded"])


async def test_what_the_provider_refuses_for_good_is_a_dead_letter_that_can_be_replayed(
    till: Till, simulator: Simulator
) -> None:
    await pay_twice(till, simulator)
    await simulator.control(refund_refusal_share=1.0)
    async with refunding(till, simulator):
        await drained(till)
    assert states(till) == (["refused"], ["refund_due"])
    (letter,) = await letters(till)
    assert letter.kind == "rejected_by_receiver" and await refunded_there(simulator) == []
    assert (await till.ledger.open_work(till.shard)).refused == 1
    await simulator.control(refund_refusal_share=0.0)
    await replay(till.bench.letters, till.bench.queue, letter.id)
    async with refunding(till, simulator):
        await drained(till)
    assert states(till) == (["done"], ["refunded"]) and await refunded_there(simulator) == [100]


async def test_a_refund_whose_message_was_lost_is_told_again(till: Till, simulator: Simulator) -> None:
    """As if the queue had lost it: the message was delivered from the outbox, and never came."""
    await pay_twice(till, simulator)
    assert await take_away(till) == 1
    with psycopg.connect(till.dsn) as connection:
        connection.execute("DELETE FROM outbox")
    await sweep_of(till, timedelta(hours=1)).step(LEASE)
    assert till.outbox() == [], "its message may be on its way"
    for _ in range(2):
        with psycopg.connect(till.dsn) as connection:
            connection.execute("UPDATE refunds SET changed_at = changed_at - interval '1 hour'")
        await sweep_of(till, timedelta(hours=1)).step(LEASE)
    await sweep_of(till, timedelta(hours=1)).step(LEASE)
    assert till.outbox() == [(DESTINATION_REFUNDS, "refund.due")] * 2, "once in each hour"
    ((events,), *_) = rows(till.dsn, "SELECT events FROM outbox")
    await till.bench.queue.publish(REFUNDS_QUEUE, orjson.dumps(events[0]), message_id="again")
    async with refunding(till, simulator):
        await drained(till)
    assert states(till) == (["done"], ["refunded"]) and await refunded_there(simulator) == [100]
    with psycopg.connect(till.dsn) as connection:
        connection.execute("DELETE FROM outbox")
    await sweep_of(till, NOW).step(LEASE)
    assert till.outbox() == []


async def test_a_refund_that_is_tried_in_vain_is_not_told_again(till: Till, simulator: Simulator) -> None:
    await pay_twice(till, simulator)
    with psycopg.connect(till.dsn) as connection:
        connection.execute("DELETE FROM outbox")
        connection.execute("UPDATE refunds SET changed_at = changed_at - interval '1 hour'")
    simulator.kill()
    async with refunding(till, simulator) as service:

        async def not_ready() -> bool:
            return not service.checks.get("payment provider", (True, ""))[0]

        await eventually(not_ready)
    await sweep_of(till, timedelta(hours=1)).step(LEASE)
    assert till.outbox() == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"schema": 1, "data": {"refund_id": "x", "order_id": "y"}}'])
async def test_a_malformed_message_is_a_dead_letter(till: Till, simulator: Simulator, body: bytes) -> None:
    await till.bench.queue.publish(REFUNDS_QUEUE, body, message_id="m")
    async with refunding(till, simulator):
        await drained(till)
    (letter,) = await letters(till)
    assert letter.kind == "malformed"


async def test_a_message_twice_and_a_message_without_a_row(till: Till, simulator: Simulator) -> None:
    (order,) = await pay_twice(till, simulator)
    (refund_id,) = [one for (one,) in rows(till.dsn, "SELECT id FROM refunds")]
    for place, named in enumerate((refund_id, order.order_id)):
        message = {"schema": 1, "data": {"refund_id": str(named), "order_id": str(order.order_id)}}
        await till.bench.queue.publish(REFUNDS_QUEUE, orjson.dumps(message), message_id=f"again-{place}")
    async with refunding(till, simulator):
        await drained(till)
    (letter,) = await letters(till)
    assert letter.kind == "unroutable" and await refunded_there(simulator) == [100]
