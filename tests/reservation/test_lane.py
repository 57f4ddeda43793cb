"""The typed gateway on a real Redis: each method runs its script, and each answer has its type or its exception."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain import ids, topology
from domain.orders import OrderEntry, OrderStatus
from domain.outcomes import DefineAnswer, ForgetAnswer, LoadAnswer, Outcome, RestockAnswer, Transition
from domain.sales import LaneSaleState, SaleDefinition, Stock
from reservation.lane import (
    ORDERS_PER_RESTORE,
    AppliedRestock,
    Change,
    Closed,
    Forgotten,
    LaneForgot,
    Lanes,
    RebuildSuperseded,
    RestoredUser,
)
from runtime.redis.leases import LeaseLost
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale

NO_ARRIVAL = bytes(7)
TTL_S = 600


@pytest.fixture
def lanes(script_client: Redis) -> Lanes:
    return Lanes(script_client)


@pytest.fixture
async def sale(lanes: Lanes) -> SaleDefinition:
    sale = make_sale()
    assert await lanes.load(LANE, sale, [Stock.fresh(200)]) is LoadAnswer.LOADED
    return sale


def buy(lane: LaneClient, sale: SaleDefinition, count: int = 1) -> list[OrderEntry]:
    """Orders of one user, one unit each."""
    user_id = ids.new_uuid7()
    orders = []
    for place in range(count):
        request = make_request(sale, user_id, f"key-{place}")
        assert lane.outcome(request) is Outcome.ACCEPTED
        order = lane.order(request.order.order_id)
        assert order is not None
        orders.append(order)
    return orders


def next_epoch(sale: SaleDefinition) -> SaleDefinition:
    return replace(sale, epoch=sale.epoch + 1, version=sale.version + 1)


async def test_a_sale_is_loaded_changed_restocked_and_forgotten(
    lanes: Lanes, lane: LaneClient, sale: SaleDefinition
) -> None:
    sale_id = sale.sale_id
    assert await lanes.load(LANE, sale, [Stock.fresh(9)]) is LoadAnswer.KNOWN
    ended = replace(sale, version=2, state=LaneSaleState.ENDED)
    assert await lanes.restock(LANE, sale_id, sku_index=0, quantity=5, key="k") is RestockAnswer.APPLIED
    assert await lanes.restock(LANE, sale_id, sku_index=0, quantity=5, key="k") is RestockAnswer.REPEATED
    assert await lanes.restock(LANE, sale_id, sku_index=0, quantity=6, key="k") is RestockAnswer.KEY_REUSED
    assert lane.stock(sale) == Stock.fresh(205)
    (order,) = buy(lane, sale)
    assert await lanes.forget(LANE, sale_id) == Forgotten(ForgetAnswer.NOT_OVER)
    assert await lanes.define(LANE, ended) is DefineAnswer.REPLACED
    assert await lanes.define(LANE, ended) is DefineAnswer.KEPT
    assert await lanes.forget(LANE, sale_id) == Forgotten(ForgetAnswer.RESERVED)
    lane.cancel(order)
    assert await lanes.forget(LANE, sale_id) == Forgotten(ForgetAnswer.FORGOTTEN, 2)
    assert await lanes.forget(LANE, sale_id) == Forgotten(ForgetAnswer.UNKNOWN)


async def test_a_lane_that_forgot_a_sale_is_named(lanes: Lanes) -> None:
    unknown = make_sale()
    with pytest.raises(LaneForgot) as of_define:
        await lanes.define(LANE, unknown)
    with pytest.raises(LaneForgot) as of_restock:
        await lanes.restock(LANE, unknown.sale_id, sku_index=0, quantity=1, key="k")
    assert {(error.value.sale_id, error.value.lane) for error in (of_define, of_restock)} == {(unknown.sale_id, LANE)}


async def test_trimming_needs_the_lease(
    lanes: Lanes, lane: LaneClient, sale: SaleDefinition, script_redis: redis.Redis
) -> None:
    buy(lane, sale, 3)
    with pytest.raises(LeaseLost):
        await lanes.trim(LANE, token=7, upto=2)
    script_redis.set(topology.lane_lease_key(LANE), 7)
    with pytest.raises(LeaseLost):
        await lanes.trim(LANE, token=6, upto=2)
    assert await lanes.trim(LANE, token=7, upto=2) == 2
    assert list(lane.stream()) == [3]


async def test_orders_change_once(lanes: Lanes, lane: LaneClient, sale: SaleDefinition) -> None:
    cancelled, paid, rejected = buy(lane, sale, 3)
    done = await lanes.cancel(cancelled)
    assert done.entry is not None
    assert (done.transition, done.entry.status, done.entry.version) == (Transition.DONE, OrderStatus.CANCELLED, 2)
    assert await lanes.cancel(cancelled) == Change(Transition.REPEATED, done.entry)
    stranger = replace(paid, order_id=ids.order_id(unix_ms=1, lane=LANE, bucket=1, random=2))
    answers = await lanes.settle([paid, paid, cancelled, stranger])
    assert answers == [Transition.DONE, Transition.REPEATED, Transition.CONFLICT, Transition.NOT_FOUND]
    assert (await lanes.cancel(paid)).transition is Transition.CONFLICT
    assert (await lanes.reject(rejected)).transition is Transition.DONE
    assert lane.stock(sale) == Stock(198, 0, 1, 1, 200, 0, 0)


async def test_expiry_answers_for_each_order_also_after_the_script_cache_was_emptied(
    lanes: Lanes, lane: LaneClient, sale: SaleDefinition, script_redis: redis.Redis
) -> None:
    living = buy(lane, sale)
    over = make_sale(hold_ms=0)
    await lanes.load(LANE, over, [Stock.fresh(10)])
    due = buy(lane, over, 2)
    foreign = replace(living[0], sale_id=over.sale_id)
    for expected in (Transition.DONE, Transition.REPEATED):
        script_redis.script_flush()
        answers = await lanes.expire([due[0], living[0], foreign, due[1]])
        assert answers[:2] == [expected, Transition.NOT_DUE] and answers[3] is expected
        assert isinstance(answers[2], ResponseError) and str(answers[2]).startswith("CORRUPT")
    assert await lanes.expire([]) == []


async def test_a_rebuild_closes_restores_and_reopens(
    lanes: Lanes, lane: LaneClient, sale: SaleDefinition, script_redis: redis.Redis
) -> None:
    orders = buy(lane, sale, ORDERS_PER_RESTORE + 2)
    lane.cancel(orders[0])
    final = lane.order(orders[0].order_id)
    assert final is not None
    stored = [final, *orders[1:]]
    seq = len(orders) + 1
    new = next_epoch(sale)
    closed = await lanes.close_sale(LANE, sale.sale_id, epoch=new.epoch, floor=1000, mark="mark")
    assert closed == Closed(sales=1, seq_before=seq, seq=1000)
    script_redis.delete(topology.user_key(LANE, sale.sale_id, final.user_id))
    user = RestoredUser(NO_ARRIVAL, [replace(order, epoch=new.epoch) for order in stored])
    with pytest.raises(RebuildSuperseded) as error:
        await lanes.restore(sale.sale_id, [user], mark="another", final_ttl_s=TTL_S)
    assert error.value.lane == LANE
    script_redis.script_flush()
    await lanes.restore(sale.sale_id, [user], mark="mark", final_ttl_s=TTL_S)
    hash_there = lane.user(sale.sale_id, final.user_id)
    assert hash_there is not None and len(hash_there.records) == len(orders), "all calls of a user add up"
    assert 0 < script_redis.ttl(topology.order_key(final.order_id)) <= TTL_S
    assert script_redis.ttl(topology.order_key(orders[1].order_id)) == -1
    held = len(orders) - 1
    stock = [Stock(200 - held, held, 0, 0, 200, 0, 0)]
    restocks = [AppliedRestock("more", 0, 7)]
    await lanes.reopen(LANE, new, stock, floor=0, mark="mark", restocks=restocks)
    assert lane.stock(sale) == stock[0]
    assert await lanes.restock(LANE, sale.sale_id, sku_index=0, quantity=7, key="more") is RestockAnswer.REPEATED
    with pytest.raises(RebuildSuperseded):
        await lanes.reopen(LANE, new, stock, floor=0, mark="mark")


async def test_a_lane_behind_its_floor_is_closed_whole(lanes: Lanes, lane: LaneClient, sale: SaleDefinition) -> None:
    buy(lane, sale, 2)
    assert await lanes.close_if_behind(LANE, floor=2) == Closed(sales=0, seq_before=2, seq=2)
    assert await lanes.close_if_behind(LANE, floor=9) == Closed(sales=1, seq_before=2, seq=9)
    with pytest.raises(LaneForgot):
        await lanes.define(LANE, replace(sale, version=9))


async def test_a_broken_contract_is_an_error_of_redis(lanes: Lanes, lane: LaneClient) -> None:
    with pytest.raises(ResponseError, match=r"^MALFORMED number of SKUs"):
        await lanes.load(LANE, make_sale(), [])
    assert lane.state() == {}
