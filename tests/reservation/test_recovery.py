"""The scripts of recovery: closing stops a sale, restoring returns its orders, a mark excludes other rebuilds."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.orders import OrderEntry, encode_entry, encode_record, pack_key
from domain.outcomes import Outcome, Transition
from domain.sales import LaneSaleState, SaleDefinition, Stock
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale

NO_ARRIVAL = bytes(7)


@pytest.fixture
def sale(lane: LaneClient) -> SaleDefinition:
    sale = make_sale(limits=(3,))
    assert lane.load(sale, [Stock.fresh(10)]) == 1
    return sale


def buy(lane: LaneClient, sale: SaleDefinition, user_id: UUID, key: str = "key-1", units: int = 2) -> OrderEntry:
    request = make_request(sale, user_id, key, [(0, units)])
    assert lane.outcome(request) is Outcome.ACCEPTED
    order = lane.order(request.order.order_id)
    assert order is not None
    return order


def rebuilt(sale: SaleDefinition) -> SaleDefinition:
    return replace(sale, epoch=sale.epoch + 1, version=sale.version + 1)


def test_a_closed_sale_takes_nothing_and_the_others_go_on(lane: LaneClient, sale: SaleDefinition) -> None:
    other = make_sale()
    lane.load(other, [Stock.fresh(1)])
    order = buy(lane, sale, ids.new_uuid7())
    assert lane.close(0, sale) == (1, 1, 1)
    assert lane.close(0, sale) == (0, 1, 1)
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "k")) is Outcome.STALE
    with pytest.raises(ResponseError, match="CORRUPT the sale is closed for recovery"):
        lane.cancel(order)
    with pytest.raises(ResponseError, match="CORRUPT the sale is closed for recovery"):
        lane.change("settle-5", order)
    assert lane.restock(sale.sale_id, 0, 1, "more") == -1
    assert lane.define(replace(sale, version=2, state=LaneSaleState.RUNNING)) == -1
    assert lane.stock(sale) == Stock(8, 2, 0, 0, 10, 0, 0)
    assert lane.outcome(make_request(other, ids.new_uuid7(), "k")) is Outcome.ACCEPTED


def test_closing_a_lane_closes_every_sale_and_gives_no_number_twice(lane: LaneClient, sale: SaleDefinition) -> None:
    lane.load(make_sale(), [Stock.fresh(1)])
    buy(lane, sale, ids.new_uuid7())
    lane.redis.hset(topology.lane_state_key(LANE), "seq", 0)  # the state went back behind the stream
    assert lane.close(0) == (2, 0, 1)
    assert lane.close(41) == (0, 1, 41)
    assert lane.close(7) == (0, 41, 41)
    newer = make_sale()
    lane.load(newer, [Stock.fresh(1)])
    assert lane.close(41) == (0, 41, 41), "a lane that did not go back keeps its sales"
    assert lane.close(0, replace(newer, epoch=0)) == (0, 41, 41), "this epoch is not over"
    assert lane.outcome(make_request(newer, ids.new_uuid7(), "k")) is Outcome.ACCEPTED
    with pytest.raises(ResponseError, match="MALFORMED"):
        lane.close(-1)


def test_a_user_is_restored_with_counters_records_and_orders(lane: LaneClient, sale: SaleDefinition) -> None:
    user_id = ids.new_uuid7()
    order = buy(lane, sale, user_id)
    lane.redis.flushall()
    lane.close(1, sale, mark="mark")
    restored = replace(order, epoch=2)
    for _ in range(2):  # a run that was killed is repeated
        assert lane.restore(sale, [restored], mark="mark", state=NO_ARRIVAL + bytes([0, 0, 2])) == 1
    opened = rebuilt(sale)
    assert lane.reopen(opened, 1, [Stock(8, 2, 0, 0, 10, 0, 0)], mark="mark", restocks=[("more", "0:5")]) == 1
    (replay,) = lane.reserve([make_request(opened, user_id, "key-1", [(0, 2)])])[1]
    assert replay.outcome is Outcome.REPLAYED and replay.record is not None
    assert (replay.record.order_id, replay.record.reserved_at_ms) == (order.order_id, order.reserved_at_ms)
    assert lane.outcome(make_request(opened, user_id, "key-2", [(0, 2)])) is Outcome.PURCHASE_LIMIT
    assert lane.restock(sale.sale_id, 0, 5, "more") == 0
    transition, cancelled = lane.cancel(restored)
    assert transition is Transition.DONE and cancelled is not None and (cancelled.epoch, cancelled.version) == (2, 2)
    assert list(lane.stream()) == [2]
    assert lane.outcome(make_request(opened, user_id, "key-2", [(0, 3)])) is Outcome.ACCEPTED


@pytest.mark.parametrize("name", ["cancel-4", "settle-5", "expire-4", "reject-4"])
def test_an_order_that_was_not_restored_moves_no_units(lane: LaneClient, name: str) -> None:
    """Its value is still there, its units are not among those that the rebuild counted as reserved."""
    sale = make_sale(limits=(3,), hold_ms=0 if name == "expire-4" else 3_600_000)
    lane.load(sale, [Stock.fresh(10)])
    order, lost = (buy(lane, sale, ids.new_uuid7()) for _ in range(2))
    more = (order.user_id.bytes,) if name == "cancel-4" else ()
    more_of_lost = (lost.user_id.bytes,) if name == "cancel-4" else ()
    lane.close(0, sale, mark="mark")
    with pytest.raises(ResponseError, match="CORRUPT the sale is closed for recovery"):
        lane.change(name, lost, *more_of_lost)
    restored = replace(order, epoch=2)
    assert lane.restore(sale, [restored], mark="mark", state=NO_ARRIVAL + bytes([0, 0, 2])) == 1
    opened = rebuilt(sale)
    assert lane.reopen(opened, 2, [Stock(8, 2, 0, 0, 10, 0, 0)], mark="mark") == 1
    assert lane.define(replace(opened, version=9)) == 1, "another version is no other epoch"
    before = lane.snapshot()
    assert lane.change(name, lost, *more_of_lost) == (Transition.NOT_FOUND, None)
    assert lane.snapshot() == before
    assert lane.change(name, restored, *more)[0] is Transition.DONE
    assert lane.stock(sale).reserved == 0


def test_an_order_outlives_a_change_of_its_sale(lane: LaneClient, sale: SaleDefinition) -> None:
    order = buy(lane, sale, ids.new_uuid7())
    assert lane.define(replace(sale, version=2, state=LaneSaleState.ENDED)) == 1
    assert lane.cancel(order)[0] is Transition.DONE
    assert lane.stock(sale) == Stock.fresh(10)


def test_final_orders_are_given_their_time_to_live(lane: LaneClient, sale: SaleDefinition) -> None:
    order = buy(lane, sale, ids.new_uuid7())
    lane.close(0, sale, mark="mark")
    lane.restore(sale, [order], mark="mark", state=NO_ARRIVAL, ttl_s=60)
    assert 0 < lane.redis.ttl(topology.order_key(order.order_id)) <= 60
    lane.restore(sale, [order], mark="mark", state=NO_ARRIVAL)
    assert lane.redis.ttl(topology.order_key(order.order_id)) == -1


def test_an_order_is_not_restored_under_the_key_of_another(lane: LaneClient, sale: SaleDefinition) -> None:
    order = buy(lane, sale, ids.new_uuid7())
    lane.close(0, sale, mark="mark")
    keys = [topology.lane_state_key(LANE), topology.user_key(LANE, sale.sale_id, order.user_id)]
    other = make_request(sale, order.user_id, "key-1").order
    before = lane.snapshot()
    for key, entry, state in (
        (topology.order_key(other.order_id), encode_entry(order), NO_ARRIVAL),
        (topology.order_key(order.order_id), b"\1" + encode_entry(order)[1:], NO_ARRIVAL),
        (topology.order_key(order.order_id), encode_entry(order)[:70], NO_ARRIVAL),
        (topology.order_key(order.order_id), encode_entry(order), NO_ARRIVAL + b"\0"),
    ):
        args = [ids.short(sale.sale_id), "mark", 1, state, pack_key("key-1"), encode_record(order), entry, 0]
        with pytest.raises(ResponseError, match=r"^MALFORMED "):
            lane.run("restore-2-1n", [*keys, key], args)
    assert lane.snapshot() == before


def test_only_the_rebuild_that_closed_the_sale_may_restore_and_reopen(lane: LaneClient, sale: SaleDefinition) -> None:
    order = buy(lane, sale, ids.new_uuid7())
    opened, stock = rebuilt(sale), [Stock(8, 2, 0, 0, 10, 0, 0)]
    lane.close(0, sale, mark="first")
    lane.close(0, sale, mark="second")
    before = lane.snapshot()
    assert lane.restore(sale, [order], mark="first", state=NO_ARRIVAL) == -1
    assert lane.reopen(opened, 0, stock, mark="first") == -1
    with pytest.raises(ResponseError, match="MALFORMED stock is not balanced"):
        lane.reopen(opened, 0, [Stock(9, 2, 0, 0, 10, 0, 0)], mark="second")
    assert lane.snapshot() == before
    assert lane.reopen(opened, 0, stock, mark="second") == 1
    assert lane.reopen(opened, 0, stock, mark="second") == -1, "the mark went with the rebuild"
    assert lane.restore(sale, [order], mark="second", state=NO_ARRIVAL) == -1
