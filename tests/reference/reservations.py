"""A lane of the reservation Redis in plain Python: the oracle of the scripts. Dicts and loops, one order after another.

Does not model packing, batches or two phases: it runs the requests of a batch one by one. Times come from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from domain.orders import OrderEntry, OrderStatus
from domain.outcomes import Outcome, Transition
from domain.sales import LEFT_UNKNOWN, Elsewhere, LaneSaleState, SaleDefinition, Stock

PURCHASES_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Request:
    """One order request. `order` holds the client's input; its state, version, epoch and times are ignored."""

    order: OrderEntry
    epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class Record:
    """An apply-once record: the order of an idempotency key."""

    order_id: UUID
    reserved_at_ms: int
    lines: tuple[tuple[int, int], ...]  # (SKU index, quantity) in the order of the request


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer to one request; `record` for REPLAYED only."""

    outcome: Outcome
    argument: int = 0
    record: Record | None = None


@dataclass(slots=True)
class User:
    """One user in one sale."""

    arrival_us: int = 0  # GCRA theoretical arrival time
    purchases: dict[int, int] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rate:
    """GCRA: one request per interval, `burst` at once."""

    interval_us: int
    burst: int


@dataclass(slots=True)
class Lane:
    """The whole state of a lane."""

    seq: int = 0
    definitions: dict[UUID, SaleDefinition] = field(default_factory=dict)
    stock: dict[tuple[UUID, int], Stock] = field(default_factory=dict)
    users: dict[tuple[UUID, UUID], User] = field(default_factory=dict)
    orders: dict[UUID, OrderEntry] = field(default_factory=dict)
    stream: dict[int, OrderEntry] = field(default_factory=dict)
    restocks: dict[tuple[UUID, str], tuple[int, int]] = field(default_factory=dict)
    lease: str | None = None
    lent: dict[tuple[UUID, int, int], tuple[int, int]] = field(default_factory=dict)  # number, units in transit
    credited: dict[tuple[UUID, int, int], int] = field(default_factory=dict)

    def reserve(self, requests: Sequence[Request], *, now_us: int, rate: Rate, stream_length_max: int) -> list[Answer]:
        """Decide and apply, one request after another."""
        answers = []
        for request in requests:
            answer = self._decide(request, now_us, rate, stream_length_max)
            if answer.outcome is Outcome.UNITS_ELSEWHERE:
                self._want(request.order)
            if answer.outcome is Outcome.ACCEPTED:
                self._accept(request.order, now_us, rate)
            answers.append(answer)
        return answers

    def lookup(self, requests: Sequence[Request], *, now_us: int, rate: Rate, stream_length_max: int) -> list[Answer]:
        """Decide on each request alone, without effect."""
        answers = [self._decide(request, now_us, rate, stream_length_max) for request in requests]
        asks_reserve = (Outcome.ACCEPTED, Outcome.UNITS_ELSEWHERE)
        return [Answer(Outcome.HAS_STOCK) if a.outcome in asks_reserve else a for a in answers]

    def _decide(self, request: Request, now_us: int, rate: Rate, stream_length_max: int) -> Answer:
        order, now_ms = request.order, now_us // 1000
        lines = tuple((line.sku_index, line.quantity) for line in order.lines)
        sale = self.definitions.get(order.sale_id)
        if sale is None or (sale.epoch, sale.version) != (request.epoch, request.version):
            return Answer(Outcome.STALE)
        if sale.state is LaneSaleState.CLOSED:
            return Answer(Outcome.STALE)
        user = self.users.get((order.sale_id, order.user_id), User())
        record = user.records.get(order.idempotency_key)
        if record is not None:
            if sorted(record.lines) == sorted(lines):
                return Answer(Outcome.REPLAYED, record=record)
            return Answer(Outcome.KEY_REUSED)
        if sale.state is LaneSaleState.ENDED or now_ms >= sale.ends_at_ms:
            return Answer(Outcome.ENDED)
        if sale.state is LaneSaleState.PAUSED:
            return Answer(Outcome.NOT_OPEN)
        if now_ms < sale.starts_at_ms:
            return Answer(Outcome.NOT_OPEN, sale.starts_at_ms - now_ms)
        ahead_us = max(user.arrival_us, now_us) + rate.interval_us - now_us
        if ahead_us > rate.interval_us * rate.burst:
            wait_us = ahead_us - rate.interval_us * rate.burst
            return Answer(Outcome.RATE_LIMITED, max(1, -(-wait_us // 1000)))
        for index, quantity in lines:
            limit = sale.items[index].per_user_limit or PURCHASES_MAX
            if user.purchases.get(index, 0) + quantity > limit:
                return Answer(Outcome.PURCHASE_LIMIT)
        short = [(index, quantity) for index, quantity in lines if self._available(order.sale_id, index) < quantity]
        for index, quantity in short:
            there = self.stock[order.sale_id, index].elsewhere
            if there is None or there.left < quantity:
                return Answer(Outcome.SOLD_OUT)
        if short:
            return Answer(Outcome.UNITS_ELSEWHERE)
        if len(self.stream) >= stream_length_max:
            return Answer(Outcome.STREAM_FULL)
        return Answer(Outcome.ACCEPTED)

    def _available(self, sale_id: UUID, index: int) -> int:
        return self.stock[sale_id, index].available

    def _want(self, order: OrderEntry) -> None:
        for line in order.lines:
            place = (order.sale_id, line.sku_index)
            stock = self.stock[place]
            if stock.available < line.quantity:
                assert stock.elsewhere is not None
                wanted = max(stock.elsewhere.wanted, line.quantity)
                self.stock[place] = replace(stock, elsewhere=replace(stock.elsewhere, wanted=wanted))

    def _came(self, sale_id: UUID, index: int, units: int) -> None:
        """Units came back, or were added: more may be left."""
        stock = self.stock[sale_id, index]
        if stock.elsewhere is not None:
            left, returns = min(LEFT_UNKNOWN, stock.elsewhere.left + units), (stock.elsewhere.returns + 1) % 256
            elsewhere = replace(stock.elsewhere, left=left, returns=returns)
            self.stock[sale_id, index] = replace(stock, elsewhere=elsewhere)

    def _accept(self, order: OrderEntry, now_us: int, rate: Rate) -> None:
        sale, now_ms = self.definitions[order.sale_id], now_us // 1000
        user = self.users.setdefault((order.sale_id, order.user_id), User())
        user.arrival_us = max(user.arrival_us, now_us) + rate.interval_us
        for line in order.lines:
            user.purchases[line.sku_index] = user.purchases.get(line.sku_index, 0) + line.quantity
            self._move(order.sale_id, line.sku_index, available=-line.quantity, reserved=line.quantity)
        user.records[order.idempotency_key] = Record(
            order.order_id, now_ms, tuple((line.sku_index, line.quantity) for line in order.lines)
        )
        self._store(
            replace(
                order,
                status=OrderStatus.RESERVED,
                version=1,
                epoch=sale.epoch,
                reserved_at_ms=now_ms,
                expires_at_ms=now_ms + sale.hold_ms,
                changed_at_ms=now_ms,
            )
        )

    def _move(
        self, sale_id: UUID, index: int, *, available: int = 0, reserved: int = 0, paid: int = 0, rejected: int = 0
    ) -> None:
        stock = self.stock[sale_id, index]
        self.stock[sale_id, index] = replace(
            stock,
            available=stock.available + available,
            reserved=stock.reserved + reserved,
            paid=stock.paid + paid,
            rejected=stock.rejected + rejected,
        )

    def _store(self, entry: OrderEntry) -> None:
        self.seq += 1
        self.stream[self.seq] = entry
        self.orders[entry.order_id] = entry

    def cancel(self, order_id: UUID, user_id: UUID, *, now_ms: int) -> tuple[Transition, OrderEntry | None]:
        """Cancel for the buyer."""
        order = self.orders.get(order_id)
        if order is None or order.user_id != user_id:
            return Transition.NOT_FOUND, None
        return self._change(order, OrderStatus.CANCELLED, now_ms)

    def settle(self, order_id: UUID, *, now_ms: int) -> tuple[Transition, OrderEntry | None]:
        """A payment."""
        order = self.orders.get(order_id)
        if order is None:
            return Transition.NOT_FOUND, None
        return self._change(order, OrderStatus.PAID, now_ms)

    def expire(self, order_id: UUID, *, now_ms: int) -> tuple[Transition, OrderEntry | None]:
        """Collect a hold."""
        order = self.orders.get(order_id)
        if order is None:
            return Transition.NOT_FOUND, None
        return self._change(order, OrderStatus.EXPIRED, now_ms)

    def reject(self, order_id: UUID, *, now_ms: int) -> tuple[Transition, OrderEntry | None]:
        """Reject an order for which PostgreSQL has no unit."""
        order = self.orders.get(order_id)
        if order is None:
            return Transition.NOT_FOUND, None
        return self._change(order, OrderStatus.REJECTED, now_ms)

    def _change(self, order: OrderEntry, wanted: OrderStatus, now_ms: int) -> tuple[Transition, OrderEntry | None]:
        if order.status is wanted:
            return Transition.REPEATED, order
        if order.status is not OrderStatus.RESERVED:
            return Transition.CONFLICT, order
        over = now_ms >= order.expires_at_ms
        if wanted is OrderStatus.EXPIRED and not over:
            return Transition.NOT_DUE, order
        if wanted in (OrderStatus.CANCELLED, OrderStatus.PAID) and over:
            return Transition.CONFLICT, order
        if order.epoch < self.definitions[order.sale_id].epoch:
            return Transition.NOT_FOUND, None
        user = self.users.get((order.sale_id, order.user_id))
        for line in order.lines:
            if wanted is OrderStatus.PAID:
                self._move(order.sale_id, line.sku_index, reserved=-line.quantity, paid=line.quantity)
                continue
            place = "rejected" if wanted is OrderStatus.REJECTED else "available"
            self._move(order.sale_id, line.sku_index, reserved=-line.quantity, **{place: line.quantity})
            if place == "available":
                self._came(order.sale_id, line.sku_index, line.quantity)
            if user is not None:
                user.purchases[line.sku_index] -= line.quantity
        changed = order.becoming(wanted, at_ms=now_ms)
        self._store(changed)
        return Transition.DONE, changed

    def load(self, sale: SaleDefinition, stock: Sequence[Stock]) -> int:
        """Load a sale, once."""
        if sale.sale_id in self.definitions:
            return 0
        self.definitions[sale.sale_id] = sale
        for index, counters in enumerate(stock):
            self.stock[sale.sale_id, index] = counters
        return 1

    def define(self, sale: SaleDefinition) -> int:
        """Replace a definition by a newer one of the same epoch. A sale closed for recovery stays closed."""
        known = self.definitions.get(sale.sale_id)
        if known is None or known.epoch != sale.epoch or known.state is LaneSaleState.CLOSED:
            return -1
        if sale.version <= known.version:
            return 0
        self.definitions[sale.sale_id] = sale
        return 1

    def is_closed(self, sale_id: UUID) -> bool:
        """Whether the sale is closed for recovery in this lane."""
        sale = self.definitions.get(sale_id)
        return sale is not None and sale.state is LaneSaleState.CLOSED

    def close(self, floor: int, sale_id: UUID | None) -> tuple[int, int, int]:
        """Close a sale, or all sales when the sequence is below the floor. Returns their number and both sequences."""
        before = self.seq
        self.seq = max(self.seq, floor)
        closed = 0
        for known in [sale_id] if sale_id else tuple(self.definitions) if self.seq > before else ():
            if known in self.definitions and not self.is_closed(known):
                self.definitions[known] = replace(self.definitions[known], state=LaneSaleState.CLOSED)
                closed += 1
        return closed, before, self.seq

    def reopen(self, sale: SaleDefinition, floor: int, stock: Sequence[Stock]) -> None:
        """Give a closed sale new counters and a new definition. Forgets its restocks."""
        self.definitions[sale.sale_id] = sale
        for index, counters in enumerate(stock):
            self.stock[sale.sale_id, index] = counters
        self.restocks = {place: done for place, done in self.restocks.items() if place[0] != sale.sale_id}
        self.seq = max(self.seq, floor)

    def restore(self, order: OrderEntry) -> None:
        """Move an order to the epoch that a rebuild opens."""
        self.orders[order.order_id] = order

    def restock(self, sale_id: UUID, index: int, quantity: int, key: str) -> int:
        """Add units, once per key."""
        stock = self.stock.get((sale_id, index))
        if stock is None or self.is_closed(sale_id):
            return -1
        applied = self.restocks.get((sale_id, key))
        if applied is not None:
            return 0 if applied == (index, quantity) else -2
        self.restocks[sale_id, key] = (index, quantity)
        self.stock[sale_id, index] = replace(
            stock, available=stock.available + quantity, allotted=stock.allotted + quantity
        )
        self._came(sale_id, index, LEFT_UNKNOWN)
        return 1

    def _sells(self, sale: SaleDefinition) -> bool:
        known = self.definitions.get(sale.sale_id)
        return known is not None and known.epoch == sale.epoch and known.state is not LaneSaleState.CLOSED

    def lend(self, sale: SaleDefinition, index: int, destination: int, number: int, units: int) -> int:
        """Take units out of the lane; the number lent."""
        if not self._sells(sale):
            return -1
        place = (sale.sale_id, index, destination)
        last, in_transit = self.lent.get(place, (0, 0))
        stock = self.stock[sale.sale_id, index]
        units = min(units, stock.available)
        if in_transit or number != last + 1 or not units:
            return 0
        self.lent[place] = (number, units)
        self.stock[sale.sale_id, index] = replace(stock, available=stock.available - units, lent=stock.lent + units)
        return units

    def credit(self, sale: SaleDefinition, index: int, source: int, number: int, units: int) -> int:
        """Add the units of a transfer, once."""
        if not self._sells(sale):
            return -1
        place = (sale.sale_id, index, source)
        if number <= self.credited.get(place, 0):
            return 0
        self.credited[place] = number
        stock = self.stock[sale.sale_id, index]
        assert stock.elsewhere is not None
        self.stock[sale.sale_id, index] = replace(
            stock,
            available=stock.available + units,
            borrowed=stock.borrowed + units,
            elsewhere=replace(stock.elsewhere, wanted=0),
        )
        return 1

    def clear(self, sale: SaleDefinition, index: int, destination: int, number: int) -> int:
        """Record that a transfer has arrived."""
        if not self._sells(sale):
            return -1
        place = (sale.sale_id, index, destination)
        last, in_transit = self.lent.get(place, (0, 0))
        if last != number or not in_transit:
            return 0
        self.lent[place] = (number, 0)
        return 1

    def left(self, sale: SaleDefinition, index: int, returns: int, left: int) -> int:
        """Take a bound of the units left, unless units came back since."""
        if not self._sells(sale):
            return -1
        stock = self.stock[sale.sale_id, index]
        assert stock.elsewhere is not None
        if stock.elsewhere.returns != returns:
            return 0
        wanted = stock.elsewhere.wanted if stock.elsewhere.wanted <= left else 0
        self.stock[sale.sale_id, index] = replace(stock, elsewhere=Elsewhere(left, wanted, returns))
        return 1

    def forget(self, sale_id: UUID, *, now_ms: int) -> int:
        """Remove a sale that is over and holds no unit."""
        sale = self.definitions.get(sale_id)
        if sale is None:
            return 0
        if sale.state is not LaneSaleState.ENDED and now_ms < sale.ends_at_ms:
            return -1
        places = [place for place in self.stock if place[0] == sale_id]
        if any(self.stock[place].reserved for place in places):
            return -2
        del self.definitions[sale_id]
        for place in places:
            del self.stock[place]
        return 1 + len(places)

    def trim(self, token: str, confirmed_seq: int) -> int:
        """Drop the confirmed prefix, for the owner of the lease."""
        if token != self.lease:
            return -1
        confirmed = [seq for seq in self.stream if seq <= confirmed_seq]
        for seq in confirmed:
            del self.stream[seq]
        return len(confirmed)
