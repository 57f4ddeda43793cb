"""Cost of a deep look of the reconciler: every order, every version and every place of a sale.

    python -m perf.deep_look [--orders 1000000] [--save] [--json] [--gate]

Starts its own Redis and PostgreSQL, fills four shards, and looks once without rests. The baseline of the comparison of
places is the counting of places by the same ranges, in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psycopg
from pydantic import SecretStr
from redis.asyncio import Redis

from devstack.servers import PostgresServer, RedisServer
from domain import topology
from domain.sales import Stock
from perf.results import Figure, Target, add_options, conclude
from reservation.documents import SaleDocuments
from reservation.lane import Lanes
from runtime.dead_letters import PostgresDeadLetters
from runtime.postgres.databases import Pool
from runtime.postgres.pool import postgres_pool
from runtime.redis.client import redis_client
from tests.fixtures.fix_databases import Databases, migrated_databases
from tests.reservation.lane import LANE, make_sale
from tests.workers.making import stock
from workers.reconciler.deep import DeepLooks
from workers.reconciler.looking import Looking
from workers.reconciler.progress import CHUNK, LaneProgress
from workers.reconciler.reading import Reading

SHARDS = 4
METHOD = (
    "One lane's orders spread evenly over four databases of one PostgreSQL, each with one version. One pass of the "
    "deep looks without rests: every order and version of a snapshot in slices, then every place of the lane, compared "
    "as sets. Baseline: `count(*)` of the same ranges of places. All on this machine."
)
_ORDERS = """
    INSERT INTO orders
    SELECT
        gen_random_uuid(), gen_random_uuid(), %(sale)s, 1, 'key-' || n, 0, 1, 1, 'EUR', 1999,
        '[{"sku": "SKU-0", "quantity": 1, "unit_price_minor": 1999}]', now(), now(), now(), %(lane)s, true
    FROM generate_series(1, %(count)s) AS n
"""
_PLACES = """
    INSERT INTO order_transitions
    SELECT id, 1, 0, now(), %(lane)s, 1 + %(shard)s + 4 * (row_number() OVER () - 1) FROM orders
"""
_QUOTA = "INSERT INTO quota VALUES (%(sale)s, 'SKU-0', %(count)s, 1, %(count)s)"
_GRANT = "INSERT INTO shard_grant VALUES (%(sale)s, 'SKU-0', %(shard)s, %(count)s, 1)"
_COUNT = "SELECT count(*) FROM order_transitions WHERE lane = %s AND lane_seq > %s AND lane_seq <= %s"


async def measure(databases: Databases, redis_url: str, *, orders: int) -> dict[str, Any]:
    """Fill, look once, and count the same places. The verdict of the look proves that it read everything."""
    assert orders % SHARDS == 0
    async with AsyncExitStack() as stack:
        client = redis_client(redis_url)
        stack.push_async_callback(client.aclose)
        sale = make_sale(sale_id=uuid4())
        stock(databases, sale.sale_id, {"SKU-0": orders})
        await SaleDocuments(client).announce(sale)
        await Lanes(client).load(LANE, sale, [Stock.fresh(orders)])
        reserved = Stock(0, orders, 0, 0, orders, 0, 0).pack()
        fields: dict[str, bytes | int] = {topology.stock_field(sale.sale_id, 0): reserved, "seq": orders}
        await cast(Any, client.hset(topology.lane_state_key(LANE), mapping=cast(Any, fields)))
        for shard, dsn in enumerate(databases.shard_dsns):
            values = {"sale": sale.sale_id, "lane": LANE, "shard": shard, "count": orders // SHARDS}
            with psycopg.connect(dsn, autocommit=True) as connection:
                for statement in (_ORDERS, _PLACES, _QUOTA, "ANALYZE"):
                    connection.execute(statement.encode(), values if statement != "ANALYZE" else None)
            with psycopg.connect(databases.catalogue_dsn) as connection:
                connection.execute(_GRANT, values)
        with psycopg.connect(databases.catalogue_dsn) as connection:
            connection.execute("UPDATE stock_ledger SET granted = stock")
        pools = [
            await stack.enter_async_context(postgres_pool(SecretStr(dsn), size_max=4))
            for dsn in (databases.catalogue_dsn, *databases.shard_dsns)
        ]
        return await _look(client, pools[0], pools[1:], orders)


async def _look(client: Redis, catalogue: Pool, shards: list[Pool], orders: int) -> dict[str, Any]:
    progress: dict[int, LaneProgress] = {}
    letters = PostgresDeadLetters(catalogue, letters_max=10)
    reading = Reading(redis=client, catalogue=catalogue, shards=shards, letters=letters)
    deep = DeepLooks(reading.apart(), progress, every_s=0.0, share_max=1.0)
    looking = Looking(reading, deep, progress=progress, kept_s=3600)
    sales = await looking.sales()
    began = time.perf_counter()
    await looking.follow(sales)
    followed_s = time.perf_counter() - began
    cpu_before, began = time.process_time(), time.perf_counter()
    await deep.run_pass(sales)
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_before
    (verdict,) = await looking.look()
    if not verdict.is_proved:
        raise RuntimeError(f"the look is not green: {verdict}")
    began = time.perf_counter()
    counted = 0
    for after in range(0, orders, CHUNK):
        upto = min(orders, after + CHUNK)
        answers = await asyncio.gather(*(_count(pool, after, upto) for pool in shards))
        counted += sum(answers)
    counted_s = time.perf_counter() - began
    assert counted == orders
    return {
        "orders": orders, "pass_s": took_s, "pass_cpu_s": cpu_s, "slices": deep.slices, "places_s": followed_s,
        "counting_s": counted_s,
    }  # fmt: skip


async def _count(pool: Pool, after: int, upto: int) -> int:
    async with pool.connection() as connection:
        row = await (await connection.execute(_COUNT, (LANE, after, upto))).fetchone()
    assert row is not None
    return int(row[0])


def as_text(result: dict[str, Any]) -> list[str]:
    """The figure for people."""
    return [
        f"{result['orders']:,} orders: a pass of {result['slices']} slices in {result['pass_s']:.2f} s, of which "
        f"{result['pass_cpu_s']:.2f} s of the reconciler's processor time",
        f"places as sets in {result['places_s']:.2f} s, as counts in {result['counting_s']:.2f} s",
    ]


def main() -> int:
    """Measure, print, save on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1_000_000, help="a multiple of four")
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        redis, postgres = RedisServer(Path(folder) / "redis"), PostgresServer(Path(folder) / "postgres")
        try:
            redis.start()
            postgres.start()
            result = asyncio.run(measure(migrated_databases(postgres), redis.url, orders=options.orders))
        finally:
            postgres.destroy()
            redis.destroy()
    per_million = result["pass_s"] / result["orders"] * 1e6
    targets = [
        Target("deep look at a million orders", per_million, "s", most=60.0, goal=15.0),
        Target("places as sets to places as counts", result["places_s"] / result["counting_s"], "times", most=10.0),
    ]
    return conclude(Figure("deep_look", METHOD, targets, result), options, as_text(result))


if __name__ == "__main__":
    sys.exit(main())
