"""`cancel`, `settle`, `expire`, and the scripts of staff, relay and janitor, case by case."""

from __future__ import annotations

import struct
from dataclasses import replace
from uuid import UUID

import pytest
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.orders import OrderEntry, OrderStatus, encode_entry, encode_value
from domain.outcomes import Outcome, Transition
from domain.sales import LaneSaleState, SaleDefinition, Stock
from domain.topology import USER_STATE_FIELD
from reservation.payment_marks import MARK_S
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale

STATE, STREAM = topology.lane_state_key(LANE), topology.lane_stream_key(LANE)


def place_order(lane: LaneClient, sale: SaleDefinition, lines: list[tuple[int, int]]) -> OrderEntry:
    request = make_request(sale, ids.new_uuid7(), "key", lines)
    assert lane.outcome(request) is Outcome.ACCEPTED
    order = lane.order(request.order.order_id)
    assert order is not None
    return order


@pytest.fixture
def sale(lane: LaneClient) -> SaleDefinition:
    sale = make_sale(limits=(0, 2))
    lane.load(sale, [Stock.fresh(10), Stock.fresh(10)])
    return sale


@pytest.fixture
def order(lane: LaneClient, sale: SaleDefinition) -> OrderEntry:
    """A reserved order: three of SKU 0, two of SKU 1."""
    return place_order(lane, sale, [(0, 3), (1, 2)])


@pytest.fixture
def overdue(lane: LaneClient) -> OrderEntry:
    """A reserved order of a sale whose holds end at once."""
    sale = make_sale(hold_ms=0)
    lane.load(sale, [Stock.fresh(10)])
    return place_order(lane, sale, [(0, 4)])


def run(lane: LaneClient, name: str, order: OrderEntry) -> tuple[Transition, OrderEntry | None]:
    return lane.cancel(order) if name == "cancel-4" else lane.change(name, order)


def test_cancel_returns_units_and_purchases(lane: LaneClient, sale: SaleDefinition, order: OrderEntry) -> None:
    transition, changed = lane.cancel(order)
    assert transition is Transition.DONE and changed is not None
    assert (changed.status, changed.version) == (OrderStatus.CANCELLED, 2)
    assert changed.reserved_at_ms == order.reserved_at_ms <= changed.changed_at_ms
    assert lane.order(order.order_id) == changed and lane.stream() == {1: order, 2: changed}
    assert lane.stock(sale, 0) == Stock.fresh(10) and lane.stock(sale, 1) == Stock.fresh(10)
    user = lane.user(sale.sale_id, order.user_id)
    assert user is not None and user.purchases == {}
    again = make_request(sale, order.user_id, "again", [(1, 2)])
    assert lane.outcome(again) is Outcome.ACCEPTED, "the purchase limit counts what is held"
    assert lane.cancel(order) == (Transition.REPEATED, changed)


def test_settle_moves_units_to_paid(lane: LaneClient, sale: SaleDefinition, order: OrderEntry) -> None:
    transition, changed = lane.change("settle-5", order)
    assert transition is Transition.DONE and changed is not None
    assert (changed.status, changed.version) == (OrderStatus.PAID, 2)
    assert lane.stock(sale, 0) == Stock(7, 0, 3, 0, 10, 0, 0) and lane.stock(sale, 1) == Stock(8, 0, 2, 0, 10, 0, 0)
    user = lane.user(sale.sale_id, order.user_id)
    assert user is not None and user.purchases == {0: 3, 1: 2}
    assert lane.change("settle-5", order) == (Transition.REPEATED, changed)
    assert lane.cancel(order) == (Transition.CONFLICT, changed)
    assert lane.change("expire-4", order) == (Transition.CONFLICT, changed)


def test_expire_collects_what_is_due_only(lane: LaneClient, order: OrderEntry, overdue: OrderEntry) -> None:
    assert lane.change("expire-4", order) == (Transition.NOT_DUE, order)
    assert lane.cancel(overdue) == (Transition.CONFLICT, overdue)
    assert lane.change("settle-5", overdue) == (Transition.CONFLICT, overdue)
    transition, changed = lane.change("expire-4", overdue)
    assert transition is Transition.DONE and changed is not None and changed.status is OrderStatus.EXPIRED
    assert lane.change("expire-4", overdue) == (Transition.REPEATED, changed)


def test_reject_writes_units_off_also_after_the_hold(
    lane: LaneClient, sale: SaleDefinition, order: OrderEntry, overdue: OrderEntry
) -> None:
    transition, changed = lane.change("reject-4", order)
    assert transition is Transition.DONE and changed is not None
    assert (changed.status, changed.version) == (OrderStatus.REJECTED, 2)
    assert lane.order(order.order_id) == changed and lane.stream()[3] == changed
    assert lane.stock(sale, 0) == Stock(7, 0, 0, 3, 10, 0, 0) and lane.stock(sale, 1) == Stock(8, 0, 0, 2, 10, 0, 0)
    user = lane.user(sale.sale_id, order.user_id)
    assert user is not None and user.purchases == {}, "what was rejected does not count against the purchase limit"
    assert lane.change("reject-4", order) == (Transition.REPEATED, changed)
    assert lane.cancel(order) == (Transition.CONFLICT, changed)
    assert lane.change("expire-4", order) == (Transition.CONFLICT, changed)
    assert lane.change("reject-4", overdue)[0] is Transition.DONE


@pytest.mark.parametrize("name", ["cancel-4", "settle-5"])
def test_reject_changes_only_what_is_reserved(lane: LaneClient, order: OrderEntry, name: str) -> None:
    _, changed = run(lane, name, order)
    before = lane.snapshot()
    assert lane.change("reject-4", order) == (Transition.CONFLICT, changed)
    assert lane.snapshot() == before


def test_unknown_and_foreign_orders_are_not_found(lane: LaneClient, sale: SaleDefinition, order: OrderEntry) -> None:
    unknown = make_request(sale, order.user_id, "unknown").order
    for name in ("cancel-4", "settle-5", "expire-4", "reject-4"):
        assert run(lane, name, unknown) == (Transition.NOT_FOUND, None)
    assert lane.change("cancel-4", order, ids.new_uuid7().bytes) == (Transition.NOT_FOUND, None)
    assert lane.order(order.order_id) == order


def test_a_hold_outlives_the_users_hash(lane: LaneClient, overdue: OrderEntry) -> None:
    """The janitor may remove users before the last hold is collected."""
    lane.redis.delete(topology.user_key(LANE, overdue.sale_id, overdue.user_id))
    transition, changed = lane.change("expire-4", overdue)
    assert transition is Transition.DONE
    assert changed is not None and changed.idempotency_key == "", "the hash had it; the shard keeps its own"
    assert lane.user(overdue.sale_id, overdue.user_id) is None


@pytest.mark.parametrize("key", ["k", "0123456789abcdef", "2c5ea4c0-4067-11e9-8bad-9b1deb4d3b7d", "x" * 64])
def test_a_change_finds_the_orders_own_key_among_those_of_its_user(
    lane: LaneClient, sale: SaleDefinition, key: str
) -> None:
    """The key is in the user's hash only. Other orders of the user, and the user's state, are not mistaken for it."""
    user = ids.new_uuid7()
    requests = [make_request(sale, user, each, [(0, 1)]) for each in ("before", key, "after")]
    for request in requests:
        assert lane.outcome(request) is Outcome.ACCEPTED
    for request in (requests[1], requests[0], requests[2]):
        order = lane.order(request.order.order_id)
        assert order is not None and order.idempotency_key == request.order.idempotency_key
        transition, changed = lane.change("settle-5", order)
        assert transition is Transition.DONE
        assert changed == order.becoming(OrderStatus.PAID, at_ms=changed.changed_at_ms if changed else 0)
        assert lane.stream()[max(lane.stream())] == changed


def spoil(lane: LaneClient, order: OrderEntry, damage: str) -> None:
    redis, sale_id = lane.redis, order.sale_id
    user_key, order_key = topology.user_key(LANE, sale_id, order.user_id), topology.order_key(order.order_id)
    value, state = encode_value(order), redis.hget(user_key, USER_STATE_FIELD)
    if damage == "sale unknown":
        redis.hdel(STATE, topology.definition_field(sale_id))
    elif damage == "definition cut":
        redis.hset(
            STATE, topology.definition_field(sale_id), redis.hget(STATE, topology.definition_field(sale_id))[:29]
        )
    elif damage == "SKU unknown":
        redis.hdel(STATE, topology.stock_field(sale_id, 1))
    elif damage == "reserved too low":
        redis.hset(STATE, topology.stock_field(sale_id, 1), Stock(9, 1, 0, 0, 10, 0, 0).pack())
    elif damage == "available too high":
        redis.hset(STATE, topology.stock_field(sale_id, 1), Stock(2**32 - 1, 2, 0, 0, 10, 0, 0).pack())
    elif damage == "purchases too low":
        redis.hset(user_key, USER_STATE_FIELD, state[:7] + struct.pack(">BHBH", 0, 2, 1, 2))
    elif damage == "purchases missing":
        redis.hset(user_key, USER_STATE_FIELD, state[:10])
    elif damage == "user's state cut":
        redis.hset(user_key, USER_STATE_FIELD, b"short")
    elif damage == "version at its end":
        redis.set(order_key, value[:2] + b"\xff\xff" + value[4:])
    elif damage == "another format":
        redis.set(order_key, b"\1" + value[1:])
    elif damage == "another user's order":
        redis.set(order_key, encode_value(replace(order, user_id=ids.new_uuid7())))
    elif damage == "another sale's order":
        redis.set(order_key, encode_value(replace(order, sale_id=ids.new_uuid7())))
    elif damage == "an entry":
        redis.set(order_key, encode_entry(order))
    elif damage == "value cut":
        redis.set(order_key, value[:-1])
    elif damage == "value too long":
        redis.set(order_key, value + b"\0")
    elif damage == "no lines":
        redis.set(order_key, value[:62] + b"key"[: value[61]] + b"\0")
    elif damage == "a line twice":
        half = (len(value) - 62 - value[61] - 1) // 2
        redis.set(order_key, value[:-half] + value[-2 * half : -half])
    elif damage == "sequence went back":
        redis.hset(STATE, "seq", "0")
    else:
        raise AssertionError(damage)


@pytest.mark.parametrize(
    "damage",
    [
        "sale unknown", "definition cut", "SKU unknown", "reserved too low", "available too high", "purchases too low",
        "purchases missing", "user's state cut", "version at its end", "another format", "another user's order",
        "another sale's order", "an entry", "value cut", "value too long", "no lines", "a line twice", "sequence went back",
    ],
)  # fmt: skip
def test_impossible_state_is_an_error_and_stays_as_it_is(lane: LaneClient, order: OrderEntry, damage: str) -> None:
    spoil(lane, order, damage)
    before = lane.snapshot()
    with pytest.raises(ResponseError, match=r"^CORRUPT "):
        lane.cancel(order)
    assert lane.snapshot() == before


@pytest.mark.parametrize("name", ["cancel-4", "settle-5", "expire-4", "reject-4"])
def test_the_key_of_another_order_breaks_the_contract(lane: LaneClient, order: OrderEntry, name: str) -> None:
    """The order's id is not in its value: it is taken from the key, which must be the asked order's."""
    other = place_order(lane, make_sale(limits=(0, 2), sale_id=order.sale_id), [(0, 1)])
    keys: tuple[bytes | str, ...] = topology.order_change_keys(
        other.order_id, sale_id=order.sale_id, user_id=order.user_id
    )
    if name == "settle-5":
        keys = (*keys, topology.payment_mark_key(other.order_id))
    before = lane.snapshot()
    with pytest.raises(ResponseError, match=r"^MALFORMED ids"):
        lane.run(name, keys, [ids.short(order.sale_id), order.order_id.bytes, order.user_id.bytes])
    assert lane.snapshot() == before


def test_load_never_overwrites(lane: LaneClient, sale: SaleDefinition, order: OrderEntry) -> None:
    del order
    before = lane.snapshot()
    assert lane.load(make_sale(sale_id=sale.sale_id, limits=(0, 2), epoch=2), [Stock.fresh(99)] * 2) == 0
    assert lane.snapshot() == before
    lane.redis.hdel(STATE, topology.definition_field(sale.sale_id))
    with pytest.raises(ResponseError, match=r"^CORRUPT stock without a definition"):
        lane.load(sale, [Stock.fresh(99)] * 2)


@pytest.mark.parametrize("stock", [[], [Stock.fresh(1)], [Stock.fresh(1)] * 3, [Stock(1, 0, 0, 0, 2, 0, 0)] * 2])
def test_load_wants_balanced_stock_for_each_sku(lane: LaneClient, stock: list[Stock]) -> None:
    with pytest.raises(ResponseError, match=r"^MALFORMED "):
        lane.load(make_sale(limits=(0, 2)), stock)
    assert lane.state() == {}


def test_define_takes_newer_versions_of_the_same_epoch(lane: LaneClient, sale: SaleDefinition) -> None:
    def defined(version: int, epoch: int = 1, sale_id: UUID = sale.sale_id) -> int:
        return lane.define(
            make_sale(sale_id=sale_id, limits=(0, 2), version=version, epoch=epoch, state=LaneSaleState.PAUSED)
        )

    assert defined(3) == 1
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "key", version=3)) is Outcome.NOT_OPEN
    assert (defined(3), defined(2)) == (0, 0)
    assert (defined(4, epoch=2), defined(4, sale_id=ids.new_uuid7())) == (-1, -1)
    for broken in (make_sale(sale_id=sale.sale_id, version=9, limits=(0, 3)),
                   make_sale(sale_id=sale.sale_id, version=9, limits=(0, 2, 0)),
                   make_sale(sale_id=sale.sale_id, version=9, limits=(0, 2), hold_ms=1)):  # fmt: skip
        with pytest.raises(ResponseError, match=r"^MALFORMED hold time and SKUs"):
            lane.define(broken)


def test_restock_counts_once_per_key(lane: LaneClient, sale: SaleDefinition) -> None:
    assert [lane.restock(sale.sale_id, 0, 5, key) for key in ("a", "a", "b")] == [1, 0, 1]
    assert lane.stock(sale, 0) == Stock(20, 0, 0, 0, 20, 0, 0)
    assert (lane.restock(sale.sale_id, 0, 6, "a"), lane.restock(sale.sale_id, 1, 5, "a")) == (-2, -2)
    assert (lane.restock(sale.sale_id, 2, 5, "c"), lane.restock(ids.new_uuid7(), 0, 5, "c")) == (-1, -1)
    before = lane.snapshot()
    for quantity in (0, -1, 2**32):
        with pytest.raises(ResponseError, match=r"^MALFORMED "):
            lane.restock(sale.sale_id, 0, quantity, "d")
    with pytest.raises(ResponseError, match=r"^MALFORMED more units"):
        lane.restock(sale.sale_id, 0, 2**32 - 20, "d")
    assert lane.snapshot() == before
    assert lane.restock(sale.sale_id, 0, 1_000_000_000, "e") == 1
    assert lane.redis.hget(topology.restock_key(LANE, sale.sale_id), "e") == b"0:1000000000"


def test_forget_waits_for_the_end_and_for_the_last_hold(
    lane: LaneClient, sale: SaleDefinition, order: OrderEntry
) -> None:
    other = make_sale()
    lane.load(other, [Stock.fresh(1)])
    assert lane.forget(sale.sale_id) == -1
    lane.define(make_sale(sale_id=sale.sale_id, limits=(0, 2), version=2, state=LaneSaleState.ENDED))
    assert lane.forget(sale.sale_id) == -2
    lane.cancel(order)
    assert lane.forget(sale.sale_id) == 3
    assert lane.forget(sale.sale_id) == 0
    assert set(lane.state()) == {
        b"seq", topology.definition_field(other.sale_id).encode(), topology.stock_field(other.sale_id, 0).encode(),
    }  # fmt: skip


def test_trim_is_for_the_lease_owner(lane: LaneClient, sale: SaleDefinition) -> None:
    for _ in range(5):
        place_order(lane, sale, [(0, 1)])
    assert lane.trim("7", 3) == -1, "the lane has no owner"
    lane.redis.set(topology.lane_lease_key(LANE), "7")
    assert lane.trim("6", 3) == -1
    assert list(lane.stream()) == [1, 2, 3, 4, 5]
    assert (lane.trim("7", 3), lane.trim("7", 3), lane.trim("7", 0)) == (3, 0, 0)
    assert list(lane.stream()) == [4, 5]
    assert lane.trim("7", 10**15) == 2
    place_order(lane, sale, [(0, 1)])
    assert list(lane.stream()) == [6], "the sequence goes on after the last entry was trimmed"


def test_settle_marks_every_order_that_it_finds(lane: LaneClient, order: OrderEntry, overdue: OrderEntry) -> None:
    """A reader of the order looks for its payment only where the mark is."""
    for settled, transition in ((order, Transition.DONE), (order, Transition.REPEATED), (overdue, Transition.CONFLICT)):
        mark = topology.payment_mark_key(settled.order_id)
        lane.redis.delete(mark)
        assert lane.change("settle-5", settled)[0] is transition
        assert 0 < lane.redis.ttl(mark) <= MARK_S
    unknown = ids.new_uuid7()
    assert not lane.redis.exists(topology.payment_mark_key(unknown))


def test_settle_refuses_the_mark_of_another_order(lane: LaneClient, order: OrderEntry, overdue: OrderEntry) -> None:
    keys = topology.order_change_keys(order.order_id, sale_id=order.sale_id, user_id=order.user_id)
    before = lane.snapshot()
    with pytest.raises(ResponseError, match=r"^MALFORMED mark"):
        lane.run(
            "settle-5", (*keys, topology.payment_mark_key(overdue.order_id)),
            [ids.short(order.sale_id), order.order_id.bytes, MARK_S],
        )  # fmt: skip
    assert lane.snapshot() == before
