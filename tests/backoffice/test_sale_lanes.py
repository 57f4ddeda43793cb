"""Sales over many lanes by HTTP: the number of lanes, and their whole life in all lanes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import redis

from backoffice.sales.model import BUYERS_PER_LANE, UNITS_PER_LANE_MIN, Item, LanesTooMany, count_of_lanes
from domain import ids, topology
from domain.sales import LaneDefinition, LaneSaleState, Stock, restock_shares, spread
from reservation import scripts
from tests.backoffice.sale_probes import code, document, restock
from tests.fixtures.fix_backoffice import Staff


@pytest.mark.parametrize(
    ("stocks", "buyers", "lanes"),
    [
        ([1_000_000], None, 8),  # ten lanes' crowd; the cluster has eight
        ([250_000], None, 3),
        ([250_000], 50_000, 1),
        ([1_000], 10 * BUYERS_PER_LANE, 8),
        ([3 * UNITS_PER_LANE_MIN], 10 * BUYERS_PER_LANE, 3),  # each lane has some units
        ([1_000, 3 * UNITS_PER_LANE_MIN, 0], 10 * BUYERS_PER_LANE, 3),
        ([UNITS_PER_LANE_MIN - 1], 10 * BUYERS_PER_LANE, 1),
        ([0], 10 * BUYERS_PER_LANE, 1),
    ],
)
def test_lanes_by_the_expected_crowd(stocks: list[int], buyers: int | None, lanes: int) -> None:
    items = [Item(f"SKU-{index}", stock, 1, 0) for index, stock in enumerate(stocks)]
    assert count_of_lanes("auto", items, expected_buyers=buyers, lanes_max=8) == lanes


def test_no_more_lanes_than_the_cluster_has() -> None:
    items = [Item("SKU", 1, 1, 0)]
    assert count_of_lanes(8, items, expected_buyers=None, lanes_max=8) == 8
    with pytest.raises(LanesTooMany):
        count_of_lanes(9, items, expected_buyers=None, lanes_max=8)


def test_units_are_spread_and_none_is_lost() -> None:
    for units in (0, 1, 2, 3, 1_000_000_000):
        for lanes in (1, 3, 8):
            for key in ("a", "b", "c"):
                shares = restock_shares(key, units, lanes=lanes)
                assert sum(shares) == units and max(shares) - min(shares) <= 1
                assert shares == restock_shares(key, units, lanes=lanes)
    assert restock_shares("key", 7, lanes=1) == [7]


def _lanes(client: redis.Redis, sale: dict[str, Any]) -> list[tuple[LaneDefinition, Stock]]:
    sale_id = UUID(sale["id"])
    fields = [topology.definition_field(sale_id), topology.stock_field(sale_id, 0)]
    read = [client.hmget(topology.lane_state_key(lane), fields) for lane in document(client, sale).lanes]
    return [(LaneDefinition.unpack(definition), Stock.unpack(stock)) for definition, stock in read]


def test_a_sale_over_three_lanes(staff: Staff, redis_client: redis.Redis) -> None:
    sale = staff.open_sale(stock=10, lanes=3)
    assert (sale["lanes"], sale["lanes_auto"], sale["expected_buyers"]) == (3, False, None)
    lanes = document(redis_client, sale).lanes
    assert len(set(lanes)) == 3
    assert [stock.available for _, stock in _lanes(redis_client, sale)] == spread(10, lanes=3)
    for verb, state in (("pause", "PAUSED"), ("resume", "RUNNING")):
        assert staff.act(sale, verb).status_code == 200
        assert {definition.state for definition, _ in _lanes(redis_client, sale)} == {LaneSaleState[state]}
    # Units in transit: lent by one lane, in no other yet.
    lend = redis_client.register_script(scripts.LEND.source)
    keys = [topology.lane_state_key(lanes[0]), topology.transfers_key(lanes[0], UUID(sale["id"]))]
    assert lend(keys=keys, args=[ids.short(UUID(sale["id"])), 1, 0, lanes[1], 1, 2]) == 2
    for _ in range(2):
        assert restock(staff, sale, "more", quantity=4).status_code == 200
    stocks = [stock for _, stock in _lanes(redis_client, sale)]
    assert Stock.total(stocks) == Stock(12, 0, 0, 0, 14, 0, 2)
    report = staff.http.get(f"/v1/sales/{sale['id']}/report").json()
    assert (report["items"][0]["initial"], report["items"][0]["restocked"]) == (10, 4)
    assert report["items"][0]["available"] == 14, "units in transit are available"
    assert restock(staff, sale, "more", quantity=5).json()["code"] == "idempotency_key_reused"
    assert staff.act(sale, "end").status_code == 200
    assert {definition.state for definition, _ in _lanes(redis_client, sale)} == {LaneSaleState.ENDED}


def test_a_restock_reaches_lanes_that_get_no_unit(staff: Staff, redis_client: redis.Redis) -> None:
    """They must not say sold out any more: another lane has units."""
    sale = staff.open_sale(stock=0, lanes=3)
    tell = redis_client.register_script(scripts.LEFT.source)
    for lane in document(redis_client, sale).lanes:
        args = [ids.short(UUID(sale["id"])), 1, 0, 0, 0]
        assert tell(keys=[topology.lane_state_key(lane)], args=args) == 1
    assert restock(staff, sale, "one", quantity=1).status_code == 200
    stocks = [stock for _, stock in _lanes(redis_client, sale)]
    assert sorted(stock.available for stock in stocks) == [0, 0, 1]
    assert [stock.elsewhere.left for stock in stocks if stock.elsewhere] == [255, 255, 255]


def test_auto_follows_the_draft(staff: Staff) -> None:
    sale = staff.draft(stock=1_000, lanes="auto")
    path = f"/v1/sales/{sale['id']}"
    assert (sale["lanes"], sale["lanes_auto"]) == (1, True)
    changed = staff.http.patch(path, json={"expected_buyers": 2 * BUYERS_PER_LANE}).json()
    assert (changed["lanes"], changed["lanes_auto"], changed["expected_buyers"]) == (2, True, 2 * BUYERS_PER_LANE)
    fixed = staff.http.patch(path, json={"lanes": 4}).json()
    assert (fixed["lanes"], fixed["lanes_auto"]) == (4, False)
    assert staff.http.patch(path, json={"lanes": "auto"}).json()["lanes"] == 2
    assert code(staff.http.patch(path, json={"lanes": None})) == (422, "validation_failed")
    assert code(staff.http.patch(path, json={"lanes": 5})) == (422, "validation_failed")
    assert staff.act(sale, "publish").json()["lanes"] == 2
    for members in ({"lanes": "auto"}, {"expected_buyers": 1}):
        assert code(staff.http.patch(path, json=members)) == (409, "sale_state_conflict")
