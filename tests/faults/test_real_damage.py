"""Damage in real servers: from rows and entries to a verdict, on a separate stack."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import psycopg
import pytest
from redis.asyncio import Redis

from devstack.demo.rehearsal import own_stack
from devstack.state import StateFolder
from domain.orders import pack_key
from domain.topology import (
    OUTBOX_PARTITIONS,
    TOPIC_ORDERS,
    TOPIC_PAYMENTS,
    Topology,
    lane_state_key,
    payment_mark_key,
    stock_field,
    user_key,
)
from faults.buyers import Habits, SimulatedBuyers
from faults.checker import Expectations, check
from faults.evidence import Evidence, backlog, dead_letters, gather
from faults.history import Ending, History, OrderRequest
from faults.money import StoredPayment
from ops.shop import Shop
from ops.stack_file import Stack
from ops.tokens import mint_many
from payments.providers.port import RefundRequest
from payments.providers.simulated import SimulatedProvider
from runtime.event_log.redis_streams import stream_key
from runtime.redis.client import redis_client
from runtime.tokens.keys import load_token_keys

TOPOLOGY = Topology()
SKUS = ("DAMAGE-A", "DAMAGE-B")
BUY_S = 1.5
DRAIN_S = 30.0


@dataclass
class Sold:
    """A sale with orders, all of them stored and published."""

    stack: Stack
    history: History
    dead_letters: int
    redis: Redis
    since: datetime

    async def evidence(self) -> Evidence:
        return await gather(
            self.stack, self.history.sale_id, cluster=TOPOLOGY, since=self.since, known_dead_letters=self.dead_letters
        )

    async def broken(self) -> set[str]:
        evidence = await self.evidence()
        return {f.invariant for f in check(self.history, evidence, cluster=TOPOLOGY, expected=Expectations())}

    async def payment(self, state: str) -> tuple[StoredPayment, str]:
        """A payment in this state, and the dsn of its shard."""
        payments = (await self.evidence()).money.payments
        payment = next(payment for payment in payments if payment.state == state)
        return payment, self.stack.shard_dsns[payment.shard]

    @property
    def request(self) -> OrderRequest:
        """An accepted order's request."""
        return next(r for r in self.history.requests if r.ending is Ending.OK and not (r.cancels or r.payments))

    @property
    def key_of_user(self) -> bytes:
        """Key of the user's hash in Redis."""
        (lane,) = TOPOLOGY.lanes_of_sale(self.history.sale_id, count=1)
        return user_key(lane, self.history.sale_id, self.request.user_id)

    @property
    def order(self) -> tuple[UUID, str]:
        """The order's id, and the dsn of its shard."""
        (order_id,) = self.request.order_ids
        return order_id, self.stack.shard_dsns[TOPOLOGY.shard_of_order(order_id)]

    async def lose_records(self, topic: str, about: str) -> None:
        """Delete the records of a topic with this text."""
        deleted = 0
        for partition in range(OUTBOX_PARTITIONS):
            stream = stream_key(topic, partition)
            records = await self.redis.xrange(stream)
            if found := [entry_id for entry_id, fields in records if about.encode() in fields[b"v"]]:
                deleted += await self.redis.xdel(stream, *found)
        assert deleted

    def sql(self, dsn: str, query: str, *arguments: object) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert connection.execute(query.encode(), arguments).rowcount > 0


@pytest.fixture(scope="module")
def damaged_stack() -> Iterator[tuple[Stack, StateFolder]]:
    with own_stack(lambda _: None, name="damage") as running:
        yield running


@pytest.fixture
async def sold(damaged_stack: tuple[Stack, StateFolder], seed: int) -> AsyncIterator[Sold]:
    stack, folder = damaged_stack
    shop = Shop.log_in(stack.backoffice_url, **stack.admin)
    skus = [f"{sku}-{secrets.token_hex(3)}" for sku in SKUS]
    for sku in skus:
        shop.create_product(sku=sku, name=sku, price_minor=5)
    sale = shop.create_open_sale(name="Damage", stock={skus[0]: 40, skus[1]: 4000}, price_minor=5)
    keys = load_token_keys(folder.token_keys)
    tokens = {UUID(user): token for user, token in mint_many(keys, count=60, issuer="flashsale", ttl_s=600)}
    letters, since = await dead_letters(stack), datetime.now(UTC)
    buyers = SimulatedBuyers(
        [stack.edge_url], History(UUID(sale["id"])), tokens, skus, random.Random(seed),
        Habits(buyers=8, again=0.3, pay=0.4),
    )  # fmt: skip
    buyers.start()
    await asyncio.sleep(BUY_S)
    await buyers.stop()
    assert await buyers.resolve() == 0
    deadline = time.monotonic() + DRAIN_S
    while left := {n: count for n, count in (await backlog(stack, cluster=TOPOLOGY, since=since)).items() if count}:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.1)
    redis = redis_client(stack.redis_url)
    yield Sold(stack, buyers.history, letters, redis, since)
    await redis.aclose()


async def delete_a_row(sold: Sold) -> str:
    order_id, dsn = sold.order
    sold.sql(dsn, "DELETE FROM orders WHERE id = %s", order_id)
    return "B"


async def double_a_row(sold: Sold) -> str:
    order_id, dsn = sold.order
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT to_jsonb(orders)::text FROM orders WHERE id = %s", (order_id,)).fetchone()
    assert row is not None
    other = next(d for d in sold.stack.shard_dsns if d != dsn)
    sold.sql(other, "INSERT INTO orders SELECT * FROM jsonb_populate_record(NULL::orders, %s::jsonb)", row[0])
    return "B"


async def oversell_a_unit(sold: Sold) -> str:
    order_id, dsn = sold.order
    lines = "jsonb_set(lines, '{0,quantity}', ((lines->0->>'quantity')::int + 1)::text::jsonb)"
    sold.sql(dsn, f"UPDATE orders SET lines = {lines} WHERE id = %s", order_id)
    return "A"


async def reuse_a_key(sold: Sold) -> str:
    order_id, dsn = sold.order
    sold.sql(dsn, "UPDATE orders SET idempotency_key = 'of another request' WHERE id = %s", order_id)
    return "B"


async def lose_an_event(sold: Sold) -> str:
    order_id, _ = sold.order
    await sold.lose_records(TOPIC_ORDERS, str(order_id))
    return "D"


async def give_a_unit_back_twice(sold: Sold) -> str:
    lane = TOPOLOGY.lanes_of_sale(sold.history.sale_id, count=1)[0]
    field = stock_field(sold.history.sale_id, 0)
    packed = await sold.redis.hget(lane_state_key(lane), field)
    assert isinstance(packed, bytes)
    available = int.from_bytes(packed[:4], "big") + 1
    damaged = available.to_bytes(4, "big") + packed[4:]
    await sold.redis.hset(lane_state_key(lane), field, damaged)  # type: ignore[arg-type]
    return "A"


async def change_a_total(sold: Sold) -> str:
    order_id, dsn = sold.order
    sold.sql(dsn, "UPDATE orders SET total_minor = total_minor + 1 WHERE id = %s", order_id)
    return "B"


async def forget_purchases(sold: Sold) -> str:
    key = sold.key_of_user
    state = await sold.redis.hget(key, "")
    assert isinstance(state, bytes) and len(state) > 7
    await sold.redis.hset(key, "", state[:7])  # type: ignore[arg-type]
    return "A"


async def forget_a_record(sold: Sold) -> str:
    request = sold.request
    assert await sold.redis.hdel(sold.key_of_user, pack_key(request.key))  # type: ignore[arg-type]
    return "C"


async def lose_a_payment(sold: Sold) -> str:
    payment, dsn = await sold.payment("captured")
    sold.sql(dsn, "DELETE FROM payments WHERE event_id = %s", payment.event_id)
    return "G"


async def store_a_cent_more(sold: Sold) -> str:
    payment, dsn = await sold.payment("captured")
    sold.sql(dsn, "UPDATE payments SET amount_minor = amount_minor + 1 WHERE event_id = %s", payment.event_id)
    return "G"


async def keep_a_refunded_payment(sold: Sold) -> str:
    """As confirmed: the payment worker would settle it again."""
    payment, dsn = await sold.payment("refunded")
    if not payment.settles:  # of a paid order, perhaps, and only one payment may settle an order
        sold.sql(
            dsn, "UPDATE payments SET settles = false, state = 'refunded', refunded_minor = amount_minor"
            " WHERE order_id = %s", payment.order_id,
        )  # fmt: skip
    kept = "UPDATE payments SET state = 'captured', settles = true, confirmed = true, refunded_minor = 0"
    sold.sql(dsn, f"{kept} WHERE event_id = %s", payment.event_id)
    return "G"


async def refund_behind_the_ledger(sold: Sold) -> str:
    """A cent of a captured payment goes back at the provider, and no row says so."""
    payment, _ = await sold.payment("captured")
    assert sold.stack.payment_url and sold.stack.payment_api_key
    provider = SimulatedProvider(
        url=sold.stack.payment_url, api_key=sold.stack.payment_api_key, webhook_secrets=()
    )  # fmt: skip
    await provider.refund(RefundRequest(uuid4(), payment.order_id, payment.event_id, "", 1, payment.currency))
    await provider.close()
    return "G"


async def forget_a_mark(sold: Sold) -> str:
    payment, _ = await sold.payment("captured")
    assert await sold.redis.delete(payment_mark_key(payment.order_id))
    return "G"


async def lose_an_event_of_money(sold: Sold) -> str:
    payment, _ = await sold.payment("captured")
    await sold.lose_records(TOPIC_PAYMENTS, payment.event_id)
    return "D"


async def count_an_order_twice(sold: Sold) -> str:
    assert sold.stack.analytics_dsn
    more = "UPDATE figures.minutes SET orders = orders + 1 WHERE sale_id = %s"
    sold.sql(sold.stack.analytics_dsn, more, sold.history.sale_id)
    return "D"


async def hide_a_loss_by_a_duplicate(sold: Sold) -> str:
    """Runs last: its lane lacks a place from now on. The place before it is there twice."""
    order_id, dsn = sold.order
    moved = "UPDATE order_transitions SET lane_seq = lane_seq - 1 WHERE order_id = %s AND version = 1 AND lane_seq > 1"
    sold.sql(dsn, moved, order_id)
    return "B"


async def repeat_a_version_at_another_place(sold: Sold) -> str:
    """At place 0, which no entry has: a newer one would be a floor, and the watch would close the lane."""
    order_id, dsn = sold.order
    again = (
        "INSERT INTO repeated_places SELECT lane, 0, order_id, version, %s, 1, 2"
        " FROM order_transitions WHERE order_id = %s AND version = 1"
    )
    sold.sql(dsn, again, sold.history.sale_id, order_id)
    return "B"


@pytest.mark.parametrize(
    "damage", [delete_a_row, double_a_row, oversell_a_unit, reuse_a_key, lose_an_event, give_a_unit_back_twice,
     change_a_total, forget_purchases, forget_a_record, repeat_a_version_at_another_place, lose_a_payment,
     store_a_cent_more, keep_a_refunded_payment, refund_behind_the_ledger, forget_a_mark, lose_an_event_of_money,
     count_an_order_twice, hide_a_loss_by_a_duplicate],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
async def test_damage_in_real_servers_turns_the_checker_red(
    sold: Sold, damage: Callable[[Sold], Awaitable[str]]
) -> None:
    assert await sold.broken() == set()
    invariant = await damage(sold)
    assert invariant in await sold.broken()
