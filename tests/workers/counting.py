"""Events of orders and payments for the tests of analytics, their figures by a naive count, and the stored figures."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import psycopg

from domain.events import event_headers, order_event
from domain.figures import COUNTS
from domain.orders import OrderEntry, OrderStatus
from domain.payments import PaymentState
from domain.topology import OUTBOX_PARTITIONS, TOPIC_ORDERS, TOPIC_PAYMENTS, TOPICS, outbox_partition
from payments.rows import refund_event
from runtime.event_log import EventLog, NewRecord
from tests.workers.making import Maker

FIGURE_TABLES = ("seconds", "minutes", "sku_seconds", "pay_times")
_ENDS = {OrderStatus.CANCELLED: "cancelled", OrderStatus.EXPIRED: "expired", OrderStatus.REJECTED: "rejected"}


@dataclass
class Story:
    """Orders of a sale with the events of their lives, from a seeded random number generator."""

    rng: random.Random
    start_ms: int
    sale_id: UUID = field(default_factory=uuid4)
    events: list[dict[str, Any]] = field(default_factory=list)
    entries: list[OrderEntry] = field(default_factory=list)

    def order(self, at_ms: int, lines: Sequence[tuple[str, int]] = (("SKU-1", 1),)) -> OrderEntry:
        """A reserved order with its event."""
        made = Maker(self.rng, self.sale_id).order(shard=self.rng.randrange(4), lines=lines)
        entry = replace(made, reserved_at_ms=at_ms, changed_at_ms=at_ms, expires_at_ms=at_ms + 600_000)
        self._happens(entry)
        return entry

    def becomes(self, entry: OrderEntry, status: OrderStatus, at_ms: int) -> OrderEntry:
        """The order's next version with its event."""
        later = entry.becoming(status, at_ms=at_ms)
        self._happens(later)
        return later

    def refund(self, entry: OrderEntry, amount_minor: int, at_ms: int) -> None:
        """A finished refund."""
        event = refund_event(
            PaymentState.REFUNDED, refund_id=uuid4(), event_id="evt", order_id=entry.order_id, user_id=entry.user_id,
            sale_id=self.sale_id, amount_minor=amount_minor, currency=entry.currency, reason="staff",
        )  # fmt: skip
        self.events.append(event | {"time_ms": at_ms})

    def random_lives(self, orders: int) -> None:
        """Orders over some seconds that are paid, cancelled, expired, rejected or refunded later."""
        for _ in range(orders):
            at_ms = self.start_ms + self.rng.randrange(8_000)
            entry = self.order(at_ms, [(sku, self.rng.randint(1, 3)) for sku in self.rng.sample(["A", "B", "C"], 2)])
            end = self.rng.choice([None, OrderStatus.PAID, OrderStatus.PAID, *_ENDS])
            if end is None:
                continue
            ended_ms = at_ms + self.rng.randrange(1, 400_000)
            ended = self.becomes(entry, end, ended_ms)
            if end is OrderStatus.PAID and self.rng.random() < 0.3:
                self.refund(ended, 1999, ended_ms + 1000)

    def _happens(self, entry: OrderEntry) -> None:
        self.entries.append(entry)
        self.events.append(order_event(entry))


def totals(events: Iterable[dict[str, Any]]) -> Counter[str]:
    """The sums of all figures over distinct events, counted naively."""
    sums: Counter[str] = Counter()
    for event in {event["id"]: event for event in events}.values():
        data, kind = event["data"], event["type"]
        units = sum(line["quantity"] for line in data.get("items", ()))
        if kind == "order.reserved":
            sums += Counter(orders=1, units=units, orders_minor=data["total_minor"])
        elif kind == "order.paid":
            sums += Counter(paid=1, paid_units=units, revenue_minor=data["total_minor"])
        elif kind == "payment.refunded":
            sums += Counter(refunds=1, refunded_minor=data["amount_minor"])
        else:
            sums[kind.removeprefix("order.")] += 1
    return sums


def by_second(events: Iterable[dict[str, Any]]) -> dict[int, Counter[str]]:
    """As `totals`, by the Unix second of the event."""
    seconds: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        seconds[event["time_ms"] // 1000].append(event)
    return {second: totals(those) for second, those in seconds.items()}


def stored_seconds(dsn: str, table: str = "figures.seconds") -> dict[int, Counter[str]]:
    """The stored counts by Unix second, without zeros."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(f"SELECT extract(epoch FROM at)::bigint, {', '.join(COUNTS)} FROM {table}").fetchall()
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for second, *counts in rows:
        found[second] += Counter(dict(zip(COUNTS, counts, strict=True)))
    return dict(found)


def stored_figures(dsn: str, space: str = "figures") -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a generation's figures, sorted, by table."""
    with psycopg.connect(dsn) as connection:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {space}.{table}").fetchall(), key=repr)
            for table in (*FIGURE_TABLES, "counted")
        }


async def append(log: EventLog, events: Iterable[dict[str, Any]]) -> None:
    """Append events as the dispatcher does."""
    records: dict[tuple[str, int], list[NewRecord]] = defaultdict(list)
    for event in events:
        topic = TOPIC_PAYMENTS if event["type"].startswith("payment.") else TOPIC_ORDERS
        value = json.dumps(event["data"]).encode()
        records[topic, outbox_partition(event["key"])].append(NewRecord(event["key"], value, event_headers(event)))
    for (topic, partition), listed in records.items():
        for first in range(0, len(listed), 1000):
            await log.append(topic, partition, listed[first : first + 1000])


async def is_drained(log: EventLog, dsn: str, space: str = "figures") -> bool:
    """Whether the positions in the database are the ends of the topics."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(f"SELECT topic, partition, last_offset FROM {space}.positions").fetchall()
    positions = {(topic, partition): offset for topic, partition, offset in rows}
    for topic in (TOPIC_ORDERS, TOPIC_PAYMENTS):
        assert any(spec.name == topic for spec in TOPICS)
        async with log.reader(None, topic, range(OUTBOX_PARTITIONS)) as reader:
            for partition, lag in (await reader.lag()).items():
                if lag.records and positions.get((topic, partition), -1) != lag.end:
                    return False
    return True
