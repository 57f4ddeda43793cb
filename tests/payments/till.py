"""A till for tests: orders in a lane of a real Redis, their rows in real shards, and payments for them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import redis
from psycopg.types.json import Jsonb

from domain import ids, topology
from domain.orders import OrderEntry, OrderStatus, decode_value
from domain.outcomes import Outcome
from domain.sales import SaleDefinition, Stock
from domain.topology import Topology
from payments.ledger import PaymentLedger
from payments.providers.port import Captured
from payments.refunds import Refunds
from payments.settling import Settling
from tests.fixtures.fix_databases import Databases
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale
from tests.workers.writing import Bench, open_bench, rows

TOPOLOGY = Topology()


@dataclass
class Till:
    """Orders of one shard, and events of payments for them."""

    bench: Bench
    lane: LaneClient
    sale: SaleDefinition
    shard: int = 0
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def ledger(self) -> PaymentLedger:
        return PaymentLedger(self.bench.pools, TOPOLOGY, provider="simulated")

    @property
    def settling(self) -> Settling:
        return Settling(self.bench.redis, self.ledger)

    @property
    def refunds(self) -> Refunds:
        return Refunds(self.bench.pools, TOPOLOGY)

    def buyer(self) -> UUID:
        """A new user of the shard."""
        while True:
            user_id = uuid4()
            if TOPOLOGY.shard_of_user(user_id) == self.shard:
                return user_id

    def order(self, sale: SaleDefinition | None = None, lines: Sequence[tuple[int, int]] = ((0, 1),)) -> OrderEntry:
        """A reserved order, only in Redis."""
        request = make_request(sale or self.sale, self.buyer(), f"key-{next(self._numbers)}", lines)
        assert self.lane.outcome(request) is Outcome.ACCEPTED
        return self.held(request.order.order_id)

    def held(self, order_id: UUID) -> OrderEntry:
        """The order at its newest version in Redis."""
        value = self.lane.redis.get(topology.order_key(order_id))
        return decode_value(order_id, value)

    def store(self, entry: OrderEntry) -> None:
        """Insert or replace the row that the shard writer makes of an entry."""
        lines = [{"sku": i.sku, "quantity": i.quantity, "unit_price_minor": i.unit_price_minor} for i in entry.lines]
        with psycopg.connect(self.dsn) as connection:
            connection.execute("DELETE FROM orders WHERE id = %s", (entry.order_id,))
            connection.execute(
                """INSERT INTO orders (id, user_id, sale_id, bucket, idempotency_key, status, version, epoch, currency,
                       total_minor, lines, reserved_at, expires_at, changed_at, lane, charged)
                   VALUES (%s, %s, %s, %s, %s, %s, %s, 1, %s, %s, %s, now(), now(), now(), %s, %s)""",
                (
                    *(entry.order_id, entry.user_id, entry.sale_id, ids.bucket_of(entry.order_id)),
                    *(entry.idempotency_key, int(entry.status), entry.version, entry.currency, entry.total_minor),
                    *(Jsonb(lines), LANE, entry.status in (OrderStatus.RESERVED, OrderStatus.PAID)),
                ),
            )

    def paying(self, order: OrderEntry, *, event_id: str | None = None, **other: Any) -> Captured:
        """The event of a payment of the order; `other` replaces members."""
        told = {"amount_minor": order.total_minor, "currency": order.currency, "reference": "ref"} | other
        return Captured(event_id=event_id or f"evt_{uuid4().hex}", order_id=order.order_id, **told)

    @property
    def dsn(self) -> str:
        return self.bench.databases.shard_dsns[self.shard]

    def payments(self) -> dict[str, tuple[str, bool, int, int]]:
        """State, `settles`, due and refunded amounts by event id."""
        found = rows(self.dsn, "SELECT event_id, state, settles, due_minor, refunded_minor FROM payments")
        return {event_id: (state, settles, due, refunded) for event_id, state, settles, due, refunded in found}

    def refund_rows(self) -> list[tuple[str, str, str, int]]:
        """Event id, reason, state and amount of every refund, oldest first."""
        return rows(self.dsn, "SELECT event_id, reason, state, amount_minor FROM refunds ORDER BY id")

    def outbox(self) -> list[tuple[str, str]]:
        """Destination and type of everything in the outbox, in its order."""
        found = rows(self.dsn, "SELECT destination, events FROM outbox ORDER BY id")
        return [(destination, event["type"]) for destination, events in found for event in events]


@asynccontextmanager
async def open_till(databases: Databases, redis_url: str, client: redis.Redis) -> AsyncIterator[Till]:
    """A till with a sale of two SKUs, 100 units each."""
    sale = make_sale(limits=(0, 0))
    lane = LaneClient(client)
    assert lane.load(sale, [Stock.fresh(100), Stock.fresh(100)]) == 1
    async with open_bench(databases, redis_url) as bench:
        yield Till(bench, lane, sale)
