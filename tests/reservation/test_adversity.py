"""Races, a full memory and a server that forgot its scripts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from devstack.servers import RedisServer
from domain import ids, topology
from domain.outcomes import Outcome, Transition
from domain.sales import SaleDefinition, Stock
from tests.reference.reservations import Answer, Request
from tests.reservation.lane import LANE, LaneClient, make_request, make_sale

BUYERS = 100


@pytest.fixture
def sale(lane: LaneClient) -> SaleDefinition:
    """One unit left of SKU 0, plenty of SKU 1."""
    sale = make_sale(limits=(0, 0))
    lane.load(sale, [Stock.fresh(1), Stock.fresh(1000)])
    return sale


def race(server: RedisServer, requests: list[Request]) -> list[Answer]:
    """Each request alone, all at once, each over a connection of its own."""
    barrier = Barrier(len(requests))

    def ask(request: Request) -> Answer:
        with redis.Redis(port=server.port) as client:
            client.ping()
            barrier.wait(30)
            return LaneClient(client).reserve([request])[1][0]

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


def test_a_hundred_race_for_the_last_unit(
    lane: LaneClient, sale: SaleDefinition, script_redis_server: RedisServer
) -> None:
    requests = [make_request(sale, ids.new_uuid7(), "key") for _ in range(BUYERS)]
    answers = race(script_redis_server, requests)
    assert sorted(answer.outcome for answer in answers) == [Outcome.ACCEPTED] + [Outcome.SOLD_OUT] * (BUYERS - 1)
    winner = requests[[answer.outcome for answer in answers].index(Outcome.ACCEPTED)].order
    assert lane.stock(sale) == Stock(0, 1, 0, 0, 1, 0, 0)
    assert [entry.order_id for entry in lane.stream().values()] == [winner.order_id]
    assert lane.redis.dbsize() == 4, "state, stream, the winner's hash and order"


def test_the_same_key_a_hundred_times_at_once_is_one_order(
    lane: LaneClient, sale: SaleDefinition, script_redis_server: RedisServer
) -> None:
    user = ids.new_uuid7()
    requests = [make_request(sale, user, "key", [(1, 3)]) for _ in range(BUYERS)]
    answers = race(script_redis_server, requests)
    assert sorted(answer.outcome for answer in answers) == [Outcome.ACCEPTED] + [Outcome.REPLAYED] * (BUYERS - 1)
    winner = requests[[answer.outcome for answer in answers].index(Outcome.ACCEPTED)].order
    assert {answer.record.order_id for answer in answers if answer.record} == {winner.order_id}
    assert lane.stock(sale, 1).reserved == 3 and len(lane.stream()) == 1


def fill_memory(client: redis.Redis) -> None:
    """Lower `maxmemory` below the memory in use."""
    client.config_set("maxmemory", 1)
    with pytest.raises(OutOfMemoryError):
        client.set("one more", "byte")


def test_a_full_memory_refuses_orders_and_lets_the_rest_drain(own_redis: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as client:
        lane, sale = LaneClient(client), make_sale()
        lane.load(sale, [Stock.fresh(10)])
        held = [make_request(sale, ids.new_uuid7(), "key") for _ in range(2)]
        assert [answer.outcome for answer in lane.reserve(held)[1]] == [Outcome.ACCEPTED] * 2
        client.set(topology.lane_lease_key(LANE), "1")
        fill_memory(client)
        before = lane.snapshot()
        refused: list[Callable[[], object]] = [
            lambda: lane.reserve([make_request(sale, ids.new_uuid7(), "key") for _ in range(3)]),
            lambda: lane.reserve(held[:1]),
            lambda: lane.restock(sale.sale_id, 0, 1, "key"),
            lambda: lane.load(make_sale(), [Stock.fresh(1)]),
        ]
        for ask in refused:
            with pytest.raises(ResponseError, match=r"allow-oom|OOM|maxmemory"):
                ask()
        assert lane.snapshot() == before
        assert lane.lookup(held[:1])[1][0].outcome is Outcome.REPLAYED
        assert lane.cancel(held[0].order)[0] is Transition.DONE
        assert lane.change("settle-5", held[1].order)[0] is Transition.DONE
        assert lane.define(make_sale(sale_id=sale.sale_id, version=2)) == 1
        assert lane.trim("1", 4) == 4
        assert lane.stock(sale) == Stock(9, 0, 1, 0, 10, 0, 0)


def test_a_batch_survives_a_crash_whole(own_redis: RedisServer) -> None:
    """An order answered under `appendfsync always` is there after kill -9, with every key."""
    with redis.Redis(port=own_redis.port) as client:
        lane, sale = LaneClient(client), make_sale()
        lane.load(sale, [Stock.fresh(100)])
        requests = [make_request(sale, ids.new_uuid7(), "key") for _ in range(64)]
        lane.reserve(requests)
        before = lane.snapshot()
    own_redis.kill()
    own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        lane = LaneClient(client)
        assert set(lane.snapshot()) == set(before)
        assert lane.stock(sale) == Stock(36, 64, 0, 0, 100, 0, 0)
        assert [entry.order_id for entry in lane.stream().values()] == [r.order.order_id for r in requests]
        # The restarted server has no script: the client sends the source again.
        assert {answer.outcome for answer in lane.reserve(requests)[1]} == {Outcome.REPLAYED}


def test_a_flushed_script_cache_is_refilled(lane: LaneClient, sale: SaleDefinition) -> None:
    first = make_request(sale, ids.new_uuid7(), "key")
    assert lane.outcome(first) is Outcome.ACCEPTED
    lane.redis.script_flush()
    assert lane.outcome(first) is Outcome.REPLAYED
