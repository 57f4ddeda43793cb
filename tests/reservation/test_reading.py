"""Reads of lane state on a real Redis: sequences, definitions, stock, and the reason why a lane cannot sell."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from redis.asyncio import Redis

from domain import ids, topology
from domain.outcomes import Outcome
from domain.sales import LaneDefinition, LaneSaleState, SaleDefinition, Stock
from reservation.lane import LaneForgot, Lanes
from reservation.reading import read_lane, read_oldest_entry, read_sale, read_sequences, read_stock
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale

OTHER_LANE = LANE + 1


@pytest.fixture
def sale(lane: LaneClient) -> SaleDefinition:
    sale = make_sale(limits=(0, 0))
    lane.load(sale, [Stock.fresh(10), Stock.fresh(20)])
    return sale


async def test_a_lane_is_read_at_one_moment(script_client: Redis, lane: LaneClient, sale: SaleDefinition) -> None:
    assert lane.outcome(make_request(sale, ids.new_uuid7(), "k", [(1, 4)])) is Outcome.ACCEPTED
    other, unknown = make_sale(), make_sale()
    lane.load(other, [Stock.fresh(1)])
    state = await read_lane(script_client, LANE, {sale.sale_id: 2, other.sale_id: 0, unknown.sale_id: 1})
    assert state.seq == 1
    there = state.sales[sale.sale_id]
    assert there.definition == LaneDefinition(
        sale.state, sale.epoch, sale.version, sale.starts_at_ms, sale.ends_at_ms, sale.hold_ms
    )
    assert there.stock == (Stock.fresh(10), Stock(16, 4, 0, 0, 20, 0, 0)) and there.sells(1)
    assert state.sales[other.sale_id].stock == () and state.sales[other.sale_id].is_known
    missing = state.sales[unknown.sale_id]
    assert (missing.is_known, missing.definition, missing.stock, missing.full_stock) == (False, None, (None,), None)
    assert (await read_lane(script_client, OTHER_LANE, {})).seq == 0


async def test_the_reason_why_a_lane_cannot_sell(
    script_client: Redis, lane: LaneClient, sale: SaleDefinition, script_redis: redis.Redis
) -> None:
    async def problem(epoch: int) -> str | None:
        there = await read_sale(script_client, LANE, sale)
        assert there.sells(epoch) is (epoch == 1 and there.problem(epoch) is None)
        return there.problem(epoch)

    field = topology.definition_field(sale.sale_id)
    assert (await problem(1), await problem(0)) == (None, None)
    assert await problem(2) == f"lane {LANE} has epoch 1 of 2"
    lane.close(0, sale)
    assert await problem(2) == f"lane {LANE} has closed the sale"
    for damage in (sale.pack_for_lane()[:-1], b"", b"\x09" + sale.pack_for_lane()[1:]):
        script_redis.hset(topology.lane_state_key(LANE), field, damage)
        assert await problem(1) == f"lane {LANE} has a malformed definition of the sale"
    script_redis.hdel(topology.lane_state_key(LANE), field)
    assert await problem(1) == f"lane {LANE} does not know the sale"


async def test_a_lane_without_a_counter_does_not_sell(
    script_client: Redis, sale: SaleDefinition, script_redis: redis.Redis
) -> None:
    script_redis.hdel(topology.lane_state_key(LANE), topology.stock_field(sale.sale_id, 1))
    there = await read_sale(script_client, LANE, sale)
    assert there.problem(1) is None and there.full_stock is None and not there.sells(1)
    with pytest.raises(LaneForgot):
        await read_stock(script_client, sale)


async def test_stock_is_summed_over_the_lanes(script_client: Redis, sale: SaleDefinition) -> None:
    both = replace(sale, lanes=(LANE, OTHER_LANE))
    with pytest.raises(LaneForgot) as error:
        await read_stock(script_client, both)
    assert error.value.lane == OTHER_LANE
    await Lanes(script_client).load(OTHER_LANE, both, [Stock(1, 0, 2, 0, 0, 3, 0), Stock(0, 5, 0, 1, 7, 0, 1)])
    assert await read_stock(script_client, both) == [Stock(11, 0, 2, 0, 10, 3, 0), Stock(20, 5, 0, 1, 27, 0, 1)]


async def test_sequences_and_the_oldest_entry(script_client: Redis, lane: LaneClient, sale: SaleDefinition) -> None:
    assert await read_oldest_entry(script_client, LANE) is None
    for place in range(3):
        lane.outcome(make_request(sale, ids.new_uuid7(), f"k{place}"))
    assert await read_sequences(script_client, [LANE, OTHER_LANE]) == {LANE: 3, OTHER_LANE: 0}
    assert await read_sequences(script_client, []) == {}
    lane.redis.set(topology.lane_lease_key(LANE), "1")
    lane.trim("1", 2)
    assert await read_oldest_entry(script_client, LANE) == 3


async def test_a_closed_sale_is_seen_as_closed(script_client: Redis, lane: LaneClient, sale: SaleDefinition) -> None:
    lane.close(0, sale)
    there = await read_sale(script_client, LANE, sale)
    assert there.definition is not None and there.definition.state is LaneSaleState.CLOSED
