"""The watch and the rejecter as processes: ready, doing their work, stopped by SIGTERM; the lease of the rejecter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest
import redis

from devstack.children import free_port
from devstack.servers import RedisServer
from domain import topology
from domain.orders import OrderStatus
from domain.outcomes import Outcome
from tests.reservation.lane import LANE, make_request
from tests.workers.making import Maker
from tests.workers.rebuilding import open_sale, watch_of
from tests.workers.selling import open_market
from tests.workers.test_rejecting import Delivery, oversell
from tests.workers.worker_process import get, stop, until, worker_process
from tests.workers.writing import Bench, rows
from workers.recovery import watch as watch_module


async def within_time(condition: Callable[[], object]) -> None:
    """`until`, beside the event loop that the pools of the test need."""
    await asyncio.to_thread(until, condition)


@pytest.fixture
def environ(bench: Bench, redis_server: RedisServer) -> dict[str, str]:
    return {
        "REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url, "LEASE_MS": "500", "METRICS_PORT": str(free_port()),
        "CATALOGUE_DSN": bench.databases.catalogue_dsn, "SHARD_DSNS": ",".join(bench.databases.shard_dsns),
    }  # fmt: skip


async def test_the_watch_closes_a_lane_that_went_back(
    bench: Bench, environ: dict[str, str], seed: int, redis_client: redis.Redis
) -> None:
    market = open_sale(bench, redis_client, random.Random(seed), units=10)
    url = f"http://127.0.0.1:{environ['METRICS_PORT']}"
    market.buy(4)

    def seen() -> bool:
        query = "SELECT seen_seq FROM lane_watermark WHERE lane = %s"
        return rows(bench.databases.catalogue_dsn, query, LANE) == [(4,)]

    with worker_process("workers.recovery", environ) as process:
        await within_time(lambda: get(f"{url}/readyz")[0] == 200)
        await within_time(seen)
        redis_client.hset(topology.lane_state_key(LANE), "seq", 2)  # the newest two entries are torn off
        await within_time(lambda: f'flashsale_lanes_gone_back_total{{lane="{LANE}"}} 1.0' in get(f"{url}/metrics")[1])
        await within_time(
            lambda: f'flashsale_sale_closed{{sale="{market.sale.sale_id}"}} 1.0' in get(f"{url}/metrics")[1]
        )
        assert market.lane.outcome(make_request(market.sale, UUID(int=1), "k")) is Outcome.STALE
        assert market.lane.state()[b"seq"] == b"4"
        assert stop(process) == 0


async def test_the_watch_closes_a_lane_while_a_shard_is_away(
    bench: Bench, environ: dict[str, str], seed: int, redis_client: redis.Redis
) -> None:
    market = open_sale(bench, redis_client, random.Random(seed), units=10)
    market.buy(4)
    dsns = bench.databases.shard_dsns
    environ |= {"SHARD_DSNS": ",".join([*dsns[:2], "postgresql://nobody@127.0.0.1:9/none", *dsns[3:]])}
    url = f"http://127.0.0.1:{environ['METRICS_PORT']}"

    def seen() -> bool:
        query = "SELECT seen_seq FROM lane_watermark WHERE lane = %s"
        return rows(bench.databases.catalogue_dsn, query, LANE) == [(4,)]

    with worker_process("workers.recovery", environ) as process:
        await within_time(seen)
        status, text = get(f"{url}/readyz")
        assert status == 503 and "shard 2" in text
        redis_client.hset(topology.lane_state_key(LANE), "seq", 2)
        await within_time(lambda: f'flashsale_lanes_gone_back_total{{lane="{LANE}"}} 1.0' in get(f"{url}/metrics")[1])
        assert market.lane.outcome(make_request(market.sale, UUID(int=1), "k")) is Outcome.STALE
        assert market.lane.state()[b"seq"] == b"4"
        assert stop(process) == 0


async def test_the_watch_looks_at_all_sales_page_by_page(
    bench: Bench, seed: int, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read the 1,000 sales that end first: those that are over, while the one that is on went unwatched."""
    monkeypatch.setattr(watch_module, "SALES_PAGE", 2)
    market = open_sale(bench, redis_client, random.Random(seed), units=10)
    with psycopg.connect(bench.databases.catalogue_dsn, autocommit=True) as catalogue:
        columns = "name, stage, hold_seconds, currency, lane_count, lanes, epoch, loaded_epoch, version, created_by, starts_at"
        catalogue.execute("UPDATE sales SET starts_at = now() - interval '1 hour'")
        for minutes in (-50, -40, -30, -30, 5, 600, 600):
            catalogue.execute(
                f"INSERT INTO sales (id, ends_at, {columns}) SELECT gen_random_uuid(), now() + %s * interval '1 minute', "
                f"{columns} FROM sales WHERE id = %s",
                (minutes, market.sale.sale_id),
            )
    watch = watch_of(bench)
    redis_client.hdel(topology.lane_state_key(LANE), topology.definition_field(market.sale.sale_id))
    await watch.look()
    assert market.sale.sale_id in watch.closed and len(watch.closed) == 8
    assert watch.problem is None
    monkeypatch.setattr(watch_module, "SALES_MAX", 4)
    await watch.look()
    assert "not watched" in str(watch.problem)


async def test_the_rejecter_works_alone_under_its_lease(
    bench: Bench, environ: dict[str, str], maker: Maker, redis_client: redis.Redis
) -> None:
    market = open_market(bench, maker, redis_client, units=2)
    oversell(market, 1)
    market.buy(3)
    delivery = Delivery(market)
    await delivery.round()
    url = f"http://127.0.0.1:{environ['METRICS_PORT']}"
    with worker_process("workers.rejecter", environ) as process:
        await within_time(lambda: get(f"{url}/readyz")[0] == 200)
        await within_time(lambda: 'flashsale_role_held{role="rejecter"} 1.0' in get(f"{url}/metrics")[1])
        assert redis_client.exists(topology.worker_lease_key("rejecter"))
        await within_time(lambda: market.lane.stock(market.sale).rejected == 1)
        assert stop(process) == 0
    assert not redis_client.exists(topology.worker_lease_key("rejecter"))
    await delivery.round()
    assert delivery.statuses() == {OrderStatus.RESERVED: 2, OrderStatus.REJECTED: 1}
