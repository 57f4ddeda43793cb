"""The rebalancer: planned moves, and whole sales over many lanes on a real Redis, with interruptions at each step."""

from __future__ import annotations

import asyncio

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from domain import ids, topology
from domain.outcomes import Outcome, Transition
from domain.sales import LEFT_UNKNOWN, SaleDefinition, Stock, spread
from reservation.documents import SaleDocuments
from reservation.reading import read_sale_lanes
from reservation.transfers import Transfers, under_way
from runtime.process.service import Service
from runtime.process.settings import load_settings
from tests.reservation.lane import LaneClient, make_request, make_sale
from tests.workers.writing import eventually
from workers.rebalancer import rebalancing
from workers.rebalancer.director import NAME, Director
from workers.rebalancer.planning import Move, Place, plan
from workers.rebalancer.rebalancing import Rebalancing

LANES = (1, 2, 3, 5)
ROUNDS_MAX = 60

places = st.lists(
    st.builds(
        Place,
        lane=st.integers(0, 100),
        available=st.one_of(st.integers(0, 3), st.integers(0, 10_000)),
        wanted=st.integers(0, 5),
        sales=st.floats(0, 1000),
    ),
    min_size=2,
    max_size=16,
    unique_by=lambda place: place.lane,
)


@given(places, st.sets(st.integers(0, 100)))
def test_a_plan_moves_only_units_that_there_are(lanes: list[Place], kept: set[int]) -> None:
    after = {place.lane: place.available for place in lanes}
    moves = plan(lanes, kept=kept)
    assert len({(move.source, move.destination) for move in moves}) == len(moves)
    for move in moves:
        assert move.units > 0 and move.source != move.destination and move.source not in kept
        after[move.source] -= move.units
        after[move.destination] += move.units
    given_away = {move.source: sum(m.units for m in moves if m.source == move.source) for move in moves}
    assert all(units <= _available(lanes, lane) for lane, units in given_away.items())
    assert sum(after.values()) == sum(place.available for place in lanes)


def _available(lanes: list[Place], lane: int) -> int:
    return next(place.available for place in lanes if place.lane == lane)


@given(places)
def test_a_buyer_who_was_refused_is_served_if_there_are_units(lanes: list[Place]) -> None:
    units = sum(place.available for place in lanes)
    wanting = [place for place in lanes if place.available < place.wanted <= units]
    after = {place.lane: place.available for place in lanes}
    for move in plan(lanes):
        after[move.source] -= move.units
        after[move.destination] += move.units
    assert not wanting or any(after[place.lane] >= place.wanted for place in wanting)


@pytest.mark.parametrize(
    ("lanes", "moves"),
    [
        ([Place(0, 100), Place(1, 100)], []),
        ([Place(0, 100), Place(1, 60)], []),  # above half of its share
        ([Place(0, 100), Place(1, 20)], [Move(0, 1, 40)]),
        ([Place(0, 1), Place(1, 0)], []),  # fewer units than lanes, and nobody asked
        ([Place(0, 1), Place(1, 0, wanted=1)], [Move(0, 1, 1)]),
        ([Place(0, 1, wanted=2), Place(1, 1, wanted=2)], [Move(1, 0, 1)]),
        ([Place(0, 1), Place(1, 0, wanted=2)], []),  # sold out for two
        # Units follow the sales: lane 1 sold all of the last units.
        ([Place(0, 400), Place(1, 100, sales=50.0)], [Move(0, 1, 275)]),
    ],
)
def test_plans(lanes: list[Place], moves: list[Move]) -> None:
    assert plan(lanes) == moves


@pytest.fixture
def sale(script_redis: redis.Redis) -> SaleDefinition:
    """A published sale of 40 units over four lanes."""
    sale = make_sale(lanes=LANES)
    for lane, units in zip(LANES, spread(40, lanes=len(LANES)), strict=True):
        assert LaneClient(script_redis, lane).load(sale, [Stock.fresh(units, lanes=len(LANES))]) == 1
    return sale


@pytest.fixture
def work(script_client: Redis, sale: SaleDefinition, monkeypatch: pytest.MonkeyPatch) -> Rebalancing:
    # The buyers of these tests repeat at once.
    monkeypatch.setattr(rebalancing, "KEPT_S", 0.0)
    return Rebalancing(script_client, sale)


def buy(client: redis.Redis, sale: SaleDefinition, lane: int, units: int = 1) -> Outcome:
    user, key = ids.new_uuid7(), str(ids.new_uuid7())
    return LaneClient(client, lane).outcome(make_request(sale, user, key, [(0, units)], lane=lane))


async def stocks(client: Redis, sale: SaleDefinition) -> list[Stock]:
    return [stock for lane in await read_sale_lanes(client, sale) for stock in lane.stock if stock is not None]


async def test_the_buyers_of_one_lane_buy_the_units_of_all(
    script_redis: redis.Redis, script_client: Redis, sale: SaleDefinition, work: Rebalancing
) -> None:
    """No buyer is told sold out before the last unit is sold, and then the first answer is sold out."""
    bought = 0
    for _ in range(ROUNDS_MAX):
        while (outcome := buy(script_redis, sale, LANES[0])) is Outcome.ACCEPTED:
            bought += 1
        if outcome is Outcome.SOLD_OUT:
            break
        assert outcome is Outcome.UNITS_ELSEWHERE
        await work.step()
    assert bought == 40 and outcome is Outcome.SOLD_OUT
    await work.step()
    assert [buy(script_redis, sale, lane) for lane in LANES] == [Outcome.SOLD_OUT] * len(LANES)
    total = Stock.total(await stocks(script_client, sale))
    assert (total.available, total.reserved, total.lent) == (0, 40, total.borrowed)


async def test_units_of_a_drained_sale_that_come_back_are_sold_in_any_lane(
    script_redis: redis.Redis, sale: SaleDefinition, work: Rebalancing
) -> None:
    order = make_request(sale, ids.new_uuid7(), "first", [(0, 1)], lane=LANES[0])
    assert LaneClient(script_redis, LANES[0]).outcome(order) is Outcome.ACCEPTED
    for lane in LANES:
        while buy(script_redis, sale, lane) is Outcome.ACCEPTED:
            pass
    await work.step()
    assert buy(script_redis, sale, LANES[3]) is Outcome.SOLD_OUT
    assert LaneClient(script_redis, LANES[0]).cancel(order.order)[0] is Transition.DONE
    await work.step()
    assert buy(script_redis, sale, LANES[3]) is Outcome.UNITS_ELSEWHERE
    await work.step()
    assert buy(script_redis, sale, LANES[3]) is Outcome.ACCEPTED
    await work.step()
    assert buy(script_redis, sale, LANES[0]) is Outcome.SOLD_OUT


async def test_the_last_units_are_gathered_for_a_buyer_of_several(
    script_redis: redis.Redis, script_client: Redis, sale: SaleDefinition, work: Rebalancing
) -> None:
    for lane in LANES:
        assert buy(script_redis, sale, lane, 9) is Outcome.ACCEPTED
    await work.step()
    assert buy(script_redis, sale, LANES[1], 5) is Outcome.SOLD_OUT, "one unit is left in each of four lanes"
    assert buy(script_redis, sale, LANES[1], 4) is Outcome.UNITS_ELSEWHERE
    await work.step()
    assert [stock.available for stock in await stocks(script_client, sale)] == [0, 4, 0, 0]
    assert buy(script_redis, sale, LANES[1], 4) is Outcome.ACCEPTED


async def test_a_bound_is_not_lowered_while_units_come_back(
    script_redis: redis.Redis, sale: SaleDefinition, work: Rebalancing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lane 1 is read empty, gets a unit back, and only then lane 2 sells its last one: a unit was always left."""
    order = make_request(sale, ids.new_uuid7(), "first", [(0, 10)], lane=LANES[0])
    assert LaneClient(script_redis, LANES[0]).outcome(order) is Outcome.ACCEPTED
    for lane in LANES[1:]:
        assert buy(script_redis, sale, lane, 10) is Outcome.ACCEPTED
    read = rebalancing.read_sale_lanes

    async def read_and_cancel(client: Redis, definition: SaleDefinition) -> object:
        looked = await read(client, definition)
        LaneClient(script_redis, LANES[0]).cancel(order.order)
        return looked

    monkeypatch.setattr(rebalancing, "read_sale_lanes", read_and_cancel)
    await work.step()
    assert [buy(script_redis, sale, lane) for lane in LANES[1:]] == [Outcome.UNITS_ELSEWHERE] * 3
    assert buy(script_redis, sale, LANES[0]) is Outcome.ACCEPTED


@pytest.mark.parametrize("done", ["lend", "credit", "clear"])
async def test_another_process_ends_the_transfers_of_a_dead_one(
    script_redis: redis.Redis,
    script_client: Redis,
    sale: SaleDefinition,
    work: Rebalancing,
    monkeypatch: pytest.MonkeyPatch,
    done: str,
) -> None:
    """Killed after each step; and the dead one wakes up later and repeats all its steps."""
    steps = ["lend", "credit", "clear"]
    sent: list[tuple[str, tuple[object, ...]]] = []

    class Killed(Exception):
        pass

    for name in steps:
        step = getattr(Transfers, name)

        async def until(
            self: Transfers, transfers: tuple[object, ...], name: str = name, step: object = step
        ) -> object:
            sent.append((name, tuple(transfers)))
            answer = await step(self, transfers)  # type: ignore[operator]
            if name == done and transfers:
                raise Killed
            return answer

        monkeypatch.setattr(Transfers, name, until)
    assert buy(script_redis, sale, LANES[0], 10) is Outcome.ACCEPTED
    assert buy(script_redis, sale, LANES[0], 9) is Outcome.UNITS_ELSEWHERE
    with pytest.raises(Killed):
        await work.step()
    monkeypatch.undo()
    monkeypatch.setattr(rebalancing, "KEPT_S", 0.0)
    in_transit = Stock.total(await stocks(script_client, sale))
    assert (in_transit.lent - in_transit.borrowed > 0) == (done == "lend")
    other, transfers = Rebalancing(script_client, sale), Transfers(script_client, sale)
    await other.step()
    assert not under_way(await transfers.records())
    while buy(script_redis, sale, LANES[0]) is Outcome.ACCEPTED:
        pass
    await other.step()
    before = await stocks(script_client, sale)
    for name, old in sent:
        await getattr(transfers, name)(list(old))
    after = await stocks(script_client, sale)
    assert [stock.pack()[:28] for stock in after] == [stock.pack()[:28] for stock in before]
    assert Stock.total(after).lent == Stock.total(after).borrowed


async def test_a_rebuilt_sale_is_not_touched_by_an_older_epoch(
    script_redis: redis.Redis, script_client: Redis, sale: SaleDefinition, work: Rebalancing
) -> None:
    assert buy(script_redis, sale, LANES[0], 10) is Outcome.ACCEPTED
    LaneClient(script_redis, LANES[1]).close(0, sale)
    before = await stocks(script_client, sale)
    assert await work.step() is False
    assert await stocks(script_client, sale) == before


async def test_a_sale_has_one_owner_and_another_takes_over(
    script_redis: redis.Redis, script_client: Redis, sale: SaleDefinition
) -> None:
    """Two directors; the one that owns the sale stops, the other one gathers the last units."""
    services = [Service(NAME, load_settings({})) for _ in range(2)]
    key = topology.worker_lease_key(f"{NAME}-{ids.short(sale.sale_id)}")

    async def is_owned() -> bool:
        return script_redis.exists(key) == 1

    async def sold_out() -> bool:
        return buy(script_redis, sale, LANES[2]) is Outcome.SOLD_OUT

    try:
        await SaleDocuments(script_client).announce(sale)
        for each in services:
            Director(script_client, lease_ms=2_000).start(each)
            await eventually(is_owned)
        token = script_redis.get(key)
        services[0].stopping.set()
        await services[0].background.finished()
        await eventually(is_owned)
        assert script_redis.get(key) != token
        await eventually(sold_out)
        assert sum(stock.reserved for stock in await stocks(script_client, sale)) == 40
    finally:
        for each in services:
            each.stopping.set()
            await each.background.finished()
    assert script_redis.exists(key) == 0


async def test_nothing_is_asked_without_an_open_sale_over_many_lanes(
    script_redis: redis.Redis, script_client: Redis
) -> None:
    """A sale of one lane, a sale to come, and one that is over: no command at all."""
    to_come = make_sale(lanes=LANES, starts_at_ms=4_000_000_000_000 - 1)
    over = make_sale(lanes=LANES, ends_at_ms=1_000_000_000_001)
    for each in (to_come, over):
        for lane in LANES:
            LaneClient(script_redis, lane).load(each, [Stock.fresh(1, lanes=4)])
    for each in (make_sale(), to_come, over):
        await SaleDocuments(script_client).announce(each)
    service = Service(NAME, load_settings({}))

    def asked() -> int:
        counts = script_redis.info("commandstats")
        return sum(count["calls"] for name, count in counts.items() if name not in ("cmdstat_info", "cmdstat_ping"))

    async def is_quiet() -> bool:
        before = asked()
        await asyncio.sleep(1.5)
        return asked() == before

    try:
        Director(script_client, lease_ms=2_000).start(service)
        await eventually(is_quiet)
    finally:
        service.stopping.set()
        await service.background.finished()


def test_a_lane_knows_no_bound_at_first(script_redis: redis.Redis, sale: SaleDefinition) -> None:
    stock = LaneClient(script_redis, LANES[0]).stock(sale)
    assert stock.elsewhere is not None and stock.elsewhere.left == LEFT_UNKNOWN
