"""A client of one lane for tests: builds KEYS and ARGV, reads answers and the lane's content. One script a call."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from redis.exceptions import NoScriptError

from domain import ids, topology
from domain.orders import (
    RECORD_SINCE_MS,
    OrderEntry,
    OrderLine,
    OrderStatus,
    decode_entry,
    decode_value,
    encode_body,
    encode_entry,
    encode_record,
    pack_key,
    unpack_key,
)
from domain.outcomes import OUTCOME_BITS, Outcome, Transition
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock, pack_edition
from reservation import scripts
from reservation.payment_marks import MARK_S
from reservation.scripts import PACKAGE
from runtime.redis.scripts import Script, load_script
from tests.reference.reservations import Answer, Rate, Record, Request, User

ALL_SCRIPTS = tuple(value for value in vars(scripts).values() if isinstance(value, Script))
LANE = 3
HOUR_MS = 3_600_000
FREE_RATE = Rate(interval_us=1, burst=10_000)
STREAM_LENGTH_MAX = 1_000_000
# Years away from any test's clock.
LONG_AGO_MS = 1_000_000_000_000
FAR_AWAY_MS = 4_000_000_000_000


def make_sale(
    *,
    limits: Sequence[int] = (0,),
    epoch: int = 1,
    version: int = 1,
    state: LaneSaleState = LaneSaleState.RUNNING,
    starts_at_ms: int = LONG_AGO_MS,
    ends_at_ms: int = FAR_AWAY_MS,
    hold_ms: int = HOUR_MS,
    sale_id: UUID | None = None,
    lanes: tuple[int, ...] = (LANE,),
) -> SaleDefinition:
    """An open sale with a SKU per purchase limit."""
    items = tuple(SaleItem(f"SKU-{index}", 100 + index, limit) for index, limit in enumerate(limits))
    return SaleDefinition(
        sale_id or ids.new_uuid7(), "sale", epoch, version, state, starts_at_ms, ends_at_ms, hold_ms, "EUR", lanes,
        items,
    )  # fmt: skip


def make_request(
    sale: SaleDefinition,
    user_id: UUID,
    key: str,
    lines: Sequence[tuple[int, int]] = ((0, 1),),
    *,
    epoch: int | None = None,
    version: int | None = None,
    order_id: UUID | None = None,
    lane: int = LANE,
) -> Request:
    """A request for `lines` of (SKU index, quantity), believing the sale's own epoch and version if none are given."""
    order = OrderEntry(
        order_id=order_id
        or ids.order_id(unix_ms=1, lane=lane, bucket=topology.bucket_of_user(user_id), random=secrets.randbits(52)),
        user_id=user_id,
        sale_id=sale.sale_id,
        idempotency_key=key,
        currency=sale.currency,
        lines=tuple(
            OrderLine(index, sale.items[index].sku, quantity, sale.items[index].unit_price_minor)
            for index, quantity in lines
        ),
        status=OrderStatus.RESERVED,
        version=1,
        epoch=0,
        reserved_at_ms=0,
        expires_at_ms=0,
        changed_at_ms=0,
    )
    return Request(order, sale.epoch if epoch is None else epoch, sale.version if version is None else version)


def batch_call(
    requests: Sequence[Request],
    *,
    rate: Rate = FREE_RATE,
    stream_length_max: int = STREAM_LENGTH_MAX,
    lane: int = LANE,
) -> tuple[list[bytes | str], list[bytes | str | int]]:
    """KEYS and ARGV of `reserve` and `lookup`. Requests of one sale must believe the same epoch and version."""
    sales: dict[UUID, tuple[int, int, int]] = {}
    keys: list[bytes | str] = [topology.lane_state_key(lane), topology.lane_stream_key(lane)]
    tail: list[bytes | str | int] = []
    for request in requests:
        order = request.order
        place, epoch, version = sales.setdefault(order.sale_id, (len(sales), request.epoch, request.version))
        assert (epoch, version) == (request.epoch, request.version)
        keys += [topology.user_key(lane, order.sale_id, order.user_id), topology.order_key(order.order_id)]
        lines = bytes([place]) + b"".join(bytes([line.sku_index, line.quantity]) for line in order.lines)
        tail += [pack_key(order.idempotency_key), lines, encode_body(order)]
    args: list[bytes | str | int] = [len(requests), len(sales), rate.interval_us, rate.burst, stream_length_max]
    for sale_id, (_, epoch, version) in sales.items():
        args += [ids.short(sale_id), pack_edition(epoch, version)]
    return keys, args + tail


def decode_record(data: bytes) -> Record:
    """An apply-once record as the scripts store it."""
    assert len(data) > 21 and len(data) % 2 == 1
    lines = tuple((data[at], data[at + 1]) for at in range(21, len(data), 2))
    return Record(UUID(bytes=data[:16]), RECORD_SINCE_MS + int.from_bytes(data[16:21], "big"), lines)


def decode_answer(member: int | bytes) -> Answer:
    """One member of the answer of `reserve` or `lookup`."""
    if isinstance(member, bytes):
        return Answer(Outcome.REPLAYED, record=decode_record(member))
    return Answer(Outcome(member & ((1 << OUTCOME_BITS) - 1)), member >> OUTCOME_BITS)


@dataclass(frozen=True, slots=True)
class LaneClient:
    """Runs scripts on one lane of a real Redis, each on its own, with their sources sent along."""

    redis: Any  # redis.Redis; its types do not tell that answers are bytes
    number: int = LANE

    def run(self, name: str, keys: Sequence[bytes | str], args: Sequence[bytes | str | int]) -> Any:
        script = load_script(PACKAGE, name)
        try:
            return self.redis.evalsha(script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return self.redis.eval(script.source, len(keys), *keys, *args)

    def reserve(
        self, requests: Sequence[Request], *, rate: Rate = FREE_RATE, stream_length_max: int = STREAM_LENGTH_MAX
    ) -> tuple[int, list[Answer]]:
        """`now_ms` and the answers."""
        return self._batch("reserve-2-2n", requests, rate, stream_length_max)

    def lookup(
        self, requests: Sequence[Request], *, rate: Rate = FREE_RATE, stream_length_max: int = STREAM_LENGTH_MAX
    ) -> tuple[int, list[Answer]]:
        """`now_ms` and the answers."""
        return self._batch("lookup-2-2n", requests, rate, stream_length_max)

    def _batch(
        self, name: str, requests: Sequence[Request], rate: Rate, stream_length_max: int
    ) -> tuple[int, list[Answer]]:
        now_ms, *members = self.run(
            name, *batch_call(requests, rate=rate, stream_length_max=stream_length_max, lane=self.number)
        )
        assert len(members) == len(requests)
        return now_ms, [decode_answer(member) for member in members]

    def outcome(self, request: Request, *, rate: Rate = FREE_RATE) -> Outcome:
        """Reserve one request alone."""
        return self.reserve([request], rate=rate)[1][0].outcome

    def change(self, name: str, order: OrderEntry, *more: bytes) -> tuple[Transition, OrderEntry | None]:
        """Run `cancel-4` (which takes the user id, too), `settle-5`, `expire-4` or `reject-4` on an order."""
        keys: tuple[bytes | str, ...] = topology.order_change_keys(
            order.order_id, sale_id=order.sale_id, user_id=order.user_id
        )
        if name == "settle-5":
            keys, more = (*keys, topology.payment_mark_key(order.order_id)), (b"%d" % MARK_S,)
        transition, entry = self.run(name, keys, [ids.short(order.sale_id), order.order_id.bytes, *more])
        return Transition(transition), decode_entry(entry) if entry else None

    def cancel(self, order: OrderEntry) -> tuple[Transition, OrderEntry | None]:
        """The buyer's own cancel."""
        return self.change("cancel-4", order, order.user_id.bytes)

    def load(self, sale: SaleDefinition, stock: Sequence[Stock]) -> int:
        """Answer of `load-1`."""
        packed = [counters.pack() for counters in stock]
        answer: int = self.run(
            "load-1", [topology.lane_state_key(self.number)], [ids.short(sale.sale_id), sale.pack_for_lane(), *packed]
        )
        return answer

    def define(self, sale: SaleDefinition) -> int:
        """Answer of `define-1`."""
        args: list[bytes | str | int] = [ids.short(sale.sale_id), sale.pack_for_lane()]
        answer: int = self.run("define-1", [topology.lane_state_key(self.number)], args)
        return answer

    def restock(self, sale_id: UUID, index: int, quantity: int, key: str) -> int:
        """Answer of `restock-2`."""
        keys = [topology.lane_state_key(self.number), topology.restock_key(self.number, sale_id)]
        answer: int = self.run("restock-2", keys, [ids.short(sale_id), index, quantity, key])
        return answer

    def forget(self, sale_id: UUID) -> int:
        """Answer of `forget-1`."""
        answer: int = self.run("forget-1", [topology.lane_state_key(self.number)], [ids.short(sale_id)])
        return answer

    def close(self, floor: int, sale: SaleDefinition | None = None, *, mark: str = "") -> tuple[int, int, int]:
        """Answer of `close-2` for a sale of the epoch before the next one, or for the whole lane."""
        keys = [topology.lane_state_key(self.number), topology.lane_stream_key(self.number)]
        named: list[bytes | str | int] = ["", 0] if sale is None else [ids.short(sale.sale_id), sale.epoch + 1]
        closed, before, seq = self.run("close-2", keys, [floor, *named, mark])
        return closed, before, seq

    def restore(
        self, sale: SaleDefinition, orders: Sequence[OrderEntry], *, mark: str, state: bytes, ttl_s: int = 0
    ) -> int:
        """Answer of `restore-2-1n` for all orders of one user; `state` is the user's."""
        user_key = topology.user_key(self.number, sale.sale_id, orders[0].user_id)
        keys: list[bytes | str] = [topology.lane_state_key(self.number), user_key]
        args: list[bytes | str | int] = [ids.short(sale.sale_id), mark, 1, state]
        for order in orders:
            keys.append(topology.order_key(order.order_id))
            args += [pack_key(order.idempotency_key), encode_record(order), encode_entry(order), ttl_s]
        answer: int = self.run("restore-2-1n", keys, args)
        return answer

    def reopen(
        self,
        sale: SaleDefinition,
        floor: int,
        stock: Sequence[Stock],
        *,
        mark: str,
        restocks: Sequence[tuple[str, str]] = (),
    ) -> int:
        """Answer of `reopen-4`."""
        lane = (
            topology.lane_state_key(self.number),
            topology.lane_stream_key(self.number),
            topology.restock_key(self.number, sale.sale_id),
            topology.transfers_key(self.number, sale.sale_id),
        )
        args: list[bytes | str | int] = [ids.short(sale.sale_id), mark, floor, sale.pack_for_lane()]
        args += [counters.pack() for counters in stock]
        args += [text for restock in restocks for text in restock]
        answer: int = self.run("reopen-4", lane, args)
        return answer

    def lend(self, sale: SaleDefinition, index: int, destination: int, number: int, units: int) -> int:
        """Answer of `lend-2`."""
        answer: int = self._step("lend-2", sale, index, destination, number, units)
        return answer

    def credit(self, sale: SaleDefinition, index: int, source: int, number: int, units: int) -> int:
        """Answer of `credit-2`."""
        answer: int = self._step("credit-2", sale, index, source, number, units)
        return answer

    def clear(self, sale: SaleDefinition, index: int, destination: int, number: int) -> int:
        """Answer of `clear-2`."""
        answer: int = self._step("clear-2", sale, index, destination, number)
        return answer

    def _step(self, name: str, sale: SaleDefinition, *numbers: int) -> Any:
        keys = [topology.lane_state_key(self.number), topology.transfers_key(self.number, sale.sale_id)]
        return self.run(name, keys, [ids.short(sale.sale_id), sale.epoch, *numbers])

    def left(self, sale: SaleDefinition, index: int, returns: int, left: int) -> int:
        """Answer of `left-1`."""
        args: list[bytes | str | int] = [ids.short(sale.sale_id), sale.epoch, index, returns, left]
        answer: int = self.run("left-1", [topology.lane_state_key(self.number)], args)
        return answer

    def trim(self, token: str, confirmed_seq: int) -> int:
        """Answer of `trim-2`."""
        keys = [topology.lane_stream_key(self.number), topology.lane_lease_key(self.number)]
        answer: int = self.run("trim-2", keys, [token, confirmed_seq])
        return answer

    def state(self) -> dict[bytes, bytes]:
        """The lane's state hash."""
        return dict(self.redis.hgetall(topology.lane_state_key(self.number)))

    def stock(self, sale: SaleDefinition, index: int = 0) -> Stock:
        """Counters of one SKU."""
        value = self.redis.hget(topology.lane_state_key(self.number), topology.stock_field(sale.sale_id, index))
        assert value is not None
        return Stock.unpack(value)

    def stream(self) -> dict[int, OrderEntry]:
        """The lane's stream by sequence number, every entry decoded."""
        entries = {}
        for entry_id, fields in self.redis.xrange(topology.lane_stream_key(self.number)):
            seq, _, second = entry_id.partition(b"-")
            assert second == b"0" and list(fields) == [b"e"]
            entries[int(seq)] = decode_entry(fields[b"e"])
        return entries

    def order(self, order_id: UUID) -> OrderEntry | None:
        """The order's value, with the idempotency key that the user's hash has for it, if there is one."""
        value = self.redis.get(topology.order_key(order_id))
        if not value:
            return None
        order = decode_value(order_id, value)
        fields = self.redis.hgetall(topology.user_key(self.number, order.sale_id, order.user_id))
        keys = [unpack_key(key) for key, record in fields.items() if key and record[:16] == order_id.bytes]
        assert len(keys) <= 1
        return replace(order, idempotency_key="".join(keys))

    def user(self, sale_id: UUID, user_id: UUID) -> User | None:
        """The user's hash; purchase counters of zero are left out."""
        fields = dict(self.redis.hgetall(topology.user_key(self.number, sale_id, user_id)))
        if not fields:
            return None
        state = fields.pop(topology.USER_STATE_FIELD)
        assert (len(state) - 7) % 3 == 0
        purchases = {state[at]: int.from_bytes(state[at + 1 : at + 3], "big") for at in range(7, len(state), 3)}
        assert 0 not in purchases.values()
        records = {unpack_key(name): decode_record(record) for name, record in fields.items()}
        return User(int.from_bytes(state[:7], "big"), purchases, records)

    def snapshot(self) -> dict[bytes, bytes]:
        """Everything in the database, to show that nothing was written."""
        return {key: self.redis.dump(key) or b"" for key in sorted(self.redis.scan_iter(count=1000))}
