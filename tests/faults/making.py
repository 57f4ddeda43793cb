"""A small correct sale: the clients' history and the stored data. Tests damage them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from uuid import UUID

from domain import ids
from domain.orders import OrderEntry, OrderLine, OrderStatus
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock
from domain.topology import Topology, bucket_of_user, outbox_partition
from faults.evidence import Event, Evidence, StoredOrder
from faults.history import Attempt, Ending, History, Lines, OrderRequest, Told
from faults.money import Money, MoneyEvent, StoredPayment, StoredRefund
from payments.providers.port import ProviderEntry

TOPOLOGY = Topology()
SKUS = ("A", "B")
UNITS = 40
LANE = 2
PRICE = 5
HOLD_MS = 600_000
PAID = (3, 4)  # numbers of orders
PAID_AT = datetime(2026, 1, 1, tzinfo=UTC)


def ok(order_id: UUID, *, replayed: bool = False) -> Attempt:
    return Attempt(1.0, 1.1, Ending.OK, 202, order_id=order_id, replayed=replayed, body_hash=hash(order_id))


def told(order_id: UUID, sale: UUID, lines: Lines, status: str = "reserved") -> Attempt:
    """An answer with the whole order."""
    priced = tuple((sku, quantity, PRICE) for sku, quantity in lines)
    total = sum(quantity * PRICE for _, quantity in lines)
    answer = ok(order_id)
    answer.told = Told(sale, status, priced, total, "EUR", 0, HOLD_MS)
    return answer


def refused(code: str = "sold_out", status: int = 409) -> Attempt:
    return Attempt(1.0, 1.1, Ending.REFUSED, status, code)


def unknown(code: str = "outcome_unknown", status: int = 504) -> Attempt:
    return Attempt(1.0, 1.1, Ending.UNKNOWN, status, code)


def right_sale(seed: int, orders: int = 12) -> tuple[History, Evidence]:
    """`orders` accepted orders, the last one cancelled; one refused, one with an unknown attempt, one misused key.

    The orders `PAID` are paid, the second of them twice; the cancelled one is paid late. What is too much went back.
    """
    rng = random.Random(seed)
    sale = ids.new_uuid7()
    items = tuple(SaleItem(sku, PRICE, 4) for sku in SKUS)
    evidence = Evidence(
        SaleDefinition(sale, "s", 1, 1, LaneSaleState.RUNNING, 0, 10**13, HOLD_MS, "EUR", (LANE,), items)
    )
    history = History(sale)
    seq = 0
    for number in range(orders):
        user = UUID(int=rng.getrandbits(128))
        sku = rng.choice(SKUS)
        quantity = rng.randint(1, 2)
        bucket = bucket_of_user(user)
        order_id = ids.order_id(
            unix_ms=1_700_000_000_000 + number, lane=LANE, bucket=bucket, random=rng.getrandbits(62)
        )
        cancelled = number == orders - 1
        lines = ((sku, quantity),)
        attempts = [told(order_id, sale, lines)]
        if number == 1:
            attempts = [unknown(), ok(order_id, replayed=True)]
        request = OrderRequest(user, f"key-{number}", lines, attempts)
        if cancelled:
            request.cancels.append(told(order_id, sale, lines, "cancelled"))
        history.requests.append(request)
        paid = number in PAID
        status = OrderStatus.CANCELLED if cancelled else OrderStatus.PAID if paid else OrderStatus.RESERVED
        version = 2 if cancelled or paid else 1
        shard = TOPOLOGY.shard_of_order(order_id)
        evidence.rows.append(
            StoredOrder(
                shard,
                order_id,
                user,
                request.key,
                status,
                version,
                lines,
                LANE,
                (PRICE,),
                quantity * PRICE,
                "EUR",
                0,
                HOLD_MS,
            )
        )
        line = OrderLine(SKUS.index(sku), sku, quantity, PRICE)
        evidence.orders[order_id] = OrderEntry(
            order_id, user, sale, request.key, "EUR", (line,), status, version, 1, 0, 600_000, 0
        )
        evidence.records[user, request.key] = order_id
        for at in range(1, version + 1):
            seq += 1
            at_status = OrderStatus.RESERVED if at == 1 else status
            evidence.transitions.append((order_id, at, LANE, seq, at_status))
            evidence.events.append(
                Event(
                    f"{order_id}:{at}", order_id, at, f"digest {number} {at}", at_status.label, user, lines,
                    quantity * PRICE, str(user), outbox_partition(str(user)),
                )
            )  # fmt: skip
        if not cancelled:
            evidence.purchases[user, sku] = quantity
        if paid:
            pay(evidence.money, order_id, f"evt_{number}", quantity * PRICE)
        if number == PAID[1] or cancelled:
            pay(evidence.money, order_id, f"evt_{number}_back", quantity * PRICE, UUID(int=rng.getrandbits(128)))
        request.clicks = paid + (number == PAID[1] or cancelled)
    first = history.requests[0]
    other = refused("idempotency_key_reused", 422)
    history.requests.append(OrderRequest(first.user_id, first.key, (("A", 9),), [other], misuse=True))
    history.requests.append(OrderRequest(UUID(int=rng.getrandbits(128)), "refused", (("A", 1),), [refused()]))
    evidence.places[LANE] = seq, set(range(1, seq + 1))
    _balance(evidence)
    return history, evidence


def pay(money: Money, order_id: UUID, event_id: str, amount_minor: int, refund_id: UUID | None = None) -> None:
    """A payment that pays its order; with a refund id one that went back."""
    shard, back = TOPOLOGY.shard_of_order(order_id), amount_minor if refund_id else 0
    state, settles = ("refunded", False) if refund_id else ("captured", True)
    money.payments.append(StoredPayment(shard, event_id, order_id, amount_minor, "EUR", state, settles, 0, back))
    money.captured.append(
        ProviderEntry(
            event_id, is_refund=False, order_id=order_id, amount_minor=amount_minor, currency="EUR", at=PAID_AT
        )
    )
    money.marked.add(order_id)
    told = [("refund_due", event_id), ("refunded", str(refund_id))] if refund_id else [("captured", event_id)]
    if refund_id:
        money.refunds.append(StoredRefund(shard, refund_id, event_id, order_id, amount_minor, "EUR", "done"))
        money.returned.append(
            ProviderEntry(
                str(refund_id), is_refund=True, order_id=order_id, amount_minor=amount_minor, currency="EUR", at=PAID_AT
            )
        )
    for kind, about in told:
        digest = f"digest {about} {kind}"
        money.events.append(MoneyEvent(f"{about}:{kind}", kind, about, order_id, amount_minor, "EUR", digest))


def _balance(evidence: Evidence) -> None:
    def units(status: OrderStatus, shard: int, sku: str) -> int:
        rows = [row for row in evidence.rows if row.shard == shard and row.status == status]
        return sum(quantity for row in rows for name, quantity in row.lines if name == sku)

    shards = range(TOPOLOGY.shards)
    held = {
        (shard, sku): units(OrderStatus.RESERVED, shard, sku) + units(OrderStatus.PAID, shard, sku)
        for shard in shards
        for sku in SKUS
    }
    stocks = []
    for sku in SKUS:
        reserved = sum(units(OrderStatus.RESERVED, shard, sku) for shard in shards)
        paid = sum(units(OrderStatus.PAID, shard, sku) for shard in shards)
        stocks.append(Stock(UNITS - reserved - paid, reserved, paid, 0, UNITS, 0, 0))
        evidence.ledger[sku] = (UNITS, reserved + paid)
    evidence.lanes[LANE] = stocks
    for place, units in held.items():
        evidence.quota[place] = (units, units)
        evidence.grants[place] = units
