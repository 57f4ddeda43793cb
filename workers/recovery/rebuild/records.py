"""Values that a rebuild writes to Redis, made from stored orders: user states and counters. Performs no I/O.

The layouts are those of `docs/redis-layout.md`, as the scripts write them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from domain import ids
from domain.orders import OrderEntry, OrderLine, OrderStatus
from domain.sales import SaleDefinition, Stock, spread

FINAL_TTL_S = 24 * 3600
_NO_ARRIVAL = bytes(7)  # the rate limit starts anew
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
HOLDING = (OrderStatus.RESERVED, OrderStatus.PAID)


class UnknownSku(Exception):
    """An order has a SKU that its sale does not; the message names both."""


@dataclass(slots=True)
class Units:
    """One SKU in one lane."""

    reserved: int = 0
    paid: int = 0


@dataclass(slots=True)
class Tally:
    """Restored so far: users, orders by status, and units by (lane, SKU index)."""

    users: int = 0
    orders: dict[str, int] = field(default_factory=dict)
    units: dict[tuple[int, int], Units] = field(default_factory=dict)

    def add(self, order: OrderEntry) -> None:
        """Count an order."""
        self.orders[order.status.label] = self.orders.get(order.status.label, 0) + 1
        if order.status not in HOLDING:
            return
        for line in order.lines:
            units = self.units.setdefault((ids.lane_of(order.order_id), line.sku_index), Units())
            if order.status is OrderStatus.PAID:
                units.paid += line.quantity
            else:
                units.reserved += line.quantity

    def held(self, index: int) -> int:
        """Units of one SKU held by orders, over all lanes."""
        return sum(units.reserved + units.paid for (_, sku), units in self.units.items() if sku == index)


def entry_of(row: Sequence[Any], *, sale_id: UUID, epoch: int, indices: Mapping[str, int]) -> OrderEntry:
    """The order of a row of `read_orders`, at the new epoch, so that scripts of that epoch change it."""
    order_id, user_id, key, status, version, currency, lines, reserved_at, expires_at, changed_at = row
    for line in lines:
        if line["sku"] not in indices:
            raise UnknownSku(f"order {order_id} has {line['sku']}")
    return OrderEntry(
        order_id=order_id,
        user_id=user_id,
        sale_id=sale_id,
        idempotency_key=key,
        currency=currency,
        lines=tuple(
            OrderLine(indices[line["sku"]], line["sku"], line["quantity"], line["unit_price_minor"]) for line in lines
        ),
        status=OrderStatus(status),
        version=version,
        epoch=epoch,
        reserved_at_ms=unix_ms(reserved_at),
        expires_at_ms=unix_ms(expires_at),
        changed_at_ms=unix_ms(changed_at),
    )


def by_user(orders: Iterable[OrderEntry]) -> Iterator[list[OrderEntry]]:
    """Neighbouring orders of the same user, together."""
    for _, group in groupby(orders, key=lambda order: order.user_id):
        yield list(group)


def user_state(orders: Iterable[OrderEntry]) -> bytes:
    """The user's state: no arrival time, then 3 bytes per SKU that the user's reserved and paid orders hold."""
    bought: dict[int, int] = {}
    for order in orders:
        if order.status in HOLDING:
            for line in order.lines:
                bought[line.sku_index] = bought.get(line.sku_index, 0) + line.quantity
    # A counter is at most 65,535: no reservation exceeds it.
    counters = (bytes([index]) + units.to_bytes(2, "big") for index, units in bought.items())
    return _NO_ARRIVAL + b"".join(counters)


def fits(order: OrderEntry, stock: Sequence[int], tally: Tally) -> bool:
    """Whether units are left for an order that is not stored."""
    return all(tally.held(line.sku_index) + line.quantity <= stock[line.sku_index] for line in order.lines)


def lane_stocks(sale: SaleDefinition, stock: Sequence[int], tally: Tally) -> dict[int, list[Stock]]:
    """Counters by lane and SKU index: held units in the lanes of their orders, the rest in equal shares.

    Together the lanes are allotted exactly the ledger's stock. Rejected orders hold nothing in PostgreSQL, so no unit
    of the ledger is written off for them.
    """
    lanes: dict[int, list[Stock]] = {lane: [] for lane in sale.lanes}
    for index in range(len(sale.items)):
        left = stock[index] - tally.held(index)
        assert left >= 0, "the guard never stores more units than the ledger has"
        count = len(sale.lanes)
        for lane, share in zip(sale.lanes, spread(left, lanes=count), strict=True):
            units = tally.units.get((lane, index), Units())
            fresh = Stock.fresh(share, lanes=count)
            allotted = share + units.reserved + units.paid
            lanes[lane].append(replace(fresh, reserved=units.reserved, paid=units.paid, allotted=allotted))
    return lanes


def gaps(places: Iterable[int], *, after: int, upto: int) -> list[tuple[int, int]]:
    """Inclusive ranges within (after, upto] without a place; `places` in any order."""
    found: list[tuple[int, int]] = []
    expected = after + 1
    for place in sorted({place for place in places if after < place <= upto}):
        if place > expected:
            found.append((expected, place - 1))
        expected = place + 1
    if expected <= upto:
        found.append((expected, upto))
    return found


def unix_ms(time: datetime) -> int:
    """Milliseconds since 1970, exact."""
    return (time - _UNIX) // timedelta(milliseconds=1)
