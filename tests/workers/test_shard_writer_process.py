"""The real process: killed at random points it loses and repeats nothing, and SIGTERM ends it cleanly."""

from __future__ import annotations

import asyncio

from devstack.servers import RedisServer, free_port
from domain.orders import OrderStatus, encode_value
from domain.topology import order_key
from tests.workers.making import Maker, later, stock
from tests.workers.worker_process import get, stop, until, worker_process
from tests.workers.writing import Bench, event_ids, eventually, guard_of, statuses

MODULE = "workers.shard_writer"


async def test_kills_at_random_points_lose_and_repeat_nothing(
    bench: Bench, maker: Maker, redis_server: RedisServer
) -> None:
    count = 1200
    stock(bench.databases, maker.sale_id, {"SKU-1": count})
    orders = [maker.order(shard=index % 4) for index in range(count)]
    cancelled = {order.order_id for order in orders[::7]}
    for order in orders:
        await bench.redis.set(order_key(order.order_id), encode_value(order))
    for shard in range(4):
        mine = orders[shard::4]
        entries = [maker.numbered(order) for order in mine]
        entries += [maker.numbered(later(o, OrderStatus.CANCELLED)) for o in mine if o.order_id in cancelled]
        for start in range(0, len(entries), 7):
            await bench.publish(entries[start : start + 7], shard=shard)
    settings = {
        "REDIS_URL": redis_server.url, "QUEUE_URL": redis_server.url, "WRITER_BATCH_MAX": "20",
        "CATALOGUE_DSN": bench.databases.catalogue_dsn, "SHARD_DSNS": ",".join(bench.databases.shard_dsns),
    }  # fmt: skip

    for stored_before_kill in sorted(maker.rng.sample(range(20, count // 2), 2)):
        with worker_process(MODULE, settings) as process:

            async def far_enough(enough: int = stored_before_kill) -> bool:
                return len(statuses(bench.databases)) >= enough

            await eventually(far_enough)
            await asyncio.sleep(maker.rng.random() * 0.02)
            process.kill()
    with worker_process(MODULE, settings) as process:
        for shard in range(4):
            await bench.drained(shard)
        assert stop(process) == 0

    assert statuses(bench.databases) == {
        order.order_id: (2, 2) if order.order_id in cancelled else (0, 1) for order in orders
    }
    events = event_ids(bench.databases)
    assert len(events) == len(set(events)) == count + len(cancelled)
    for shard in range(4):
        for _ in range(3):
            await bench.sweep(shard).sweep()
    guard = guard_of(bench.databases, maker.sale_id)
    left = count - len(cancelled)
    assert guard["ledger"] == (count, left)
    assert sum(sold for _, sold in guard["quotas"].values()) == sum(guard["totals"].values()) == left
    for order in orders:
        assert (await bench.redis.ttl(order_key(order.order_id)) > 0) == (order.order_id in cancelled)


async def test_starts_before_redis_and_serves_when_it_is_there(bench: Bench, own_redis: RedisServer) -> None:
    own_redis.stop()
    port = free_port()
    settings = {
        "REDIS_URL": own_redis.url, "QUEUE_URL": own_redis.url, "METRICS_PORT": str(port),
        "CATALOGUE_DSN": bench.databases.catalogue_dsn, "SHARD_DSNS": ",".join(bench.databases.shard_dsns),
    }  # fmt: skip
    with worker_process(MODULE, settings) as process:
        await asyncio.to_thread(until, lambda: get(f"http://127.0.0.1:{port}/livez")[0] == 200)
        own_redis.start()
        await asyncio.to_thread(until, lambda: get(f"http://127.0.0.1:{port}/readyz")[0] == 200)
        assert await asyncio.to_thread(stop, process) == 0


async def test_shard_databases_must_be_as_many_as_shards(bench: Bench, redis_server: RedisServer) -> None:
    settings = {
        "REDIS_URL": redis_server.url, "CATALOGUE_DSN": bench.databases.catalogue_dsn,
        "SHARD_DSNS": ",".join(bench.databases.shard_dsns[:3]),
    }  # fmt: skip
    with worker_process(MODULE, settings) as process:
        assert process.wait(30) == 1
