"""A sale in catalogue, Redis and shards, with relays and writers inside the test, to be lost and rebuilt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import psycopg
import redis
from pydantic import SecretStr

from domain import ids, topology
from domain.orders import OrderEntry
from domain.outcomes import Outcome
from domain.sales import SaleDefinition
from domain.topology import Topology
from runtime.process.service import Service
from runtime.process.settings import Settings
from tests.reservation.lane import LANE, make_request
from tests.workers.making import Maker
from tests.workers.selling import Market, open_market
from tests.workers.writing import Bench, eventually, rows
from workers.recovery.losses import LaneRecovery
from workers.recovery.rebuild.__main__ import rebuild
from workers.recovery.rebuild.report import Report
from workers.recovery.watch import Watch
from workers.relay.lanes import own_lane


def open_sale(
    bench: Bench,
    client: redis.Redis,
    rng: random.Random,
    *,
    units: int,
    hold_ms: int = 3_600_000,
    lanes: tuple[int, ...] = (LANE,),
) -> Market:
    """A sale as publishing makes it, its rows in the catalogue included; orders are in lane `LANE`."""
    market = open_market(bench, Maker(rng, UUID(int=0), lane=LANE), client, units=units, hold_ms=hold_ms, lanes=lanes)
    write_catalogue(bench.databases.catalogue_dsn, market.sale, units)
    return market


def write_catalogue(dsn: str, sale: SaleDefinition, units: int) -> None:
    """The rows of a published sale but for its ledger."""
    window = [datetime.fromtimestamp(at_ms / 1000, UTC) for at_ms in (sale.starts_at_ms, sale.ends_at_ms)]
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO sales (id, name, stage, starts_at, ends_at, hold_seconds, currency, lanes, loaded_epoch, created_by)"
            " VALUES (%s, %s, 'published', %s, %s, %s, %s, %s, 1, %s)",
            (sale.sale_id, sale.name, *window, sale.hold_ms // 1000, sale.currency, list(sale.lanes), UUID(int=1)),
        )
        for index, item in enumerate(sale.items):
            connection.execute(
                "INSERT INTO sale_items (sale_id, sku_index, sku, stock, price_minor, per_user_limit)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (sale.sale_id, index, item.sku, units, item.unit_price_minor, item.per_user_limit),
            )


def settings_of(bench: Bench, client: redis.Redis) -> Settings:
    """Settings for these servers."""
    url = f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"
    dsns = tuple(SecretStr(dsn) for dsn in bench.databases.shard_dsns)
    return Settings(
        redis_url=url, queue_url=url, catalogue_dsn=SecretStr(bench.databases.catalogue_dsn), shard_dsns=dsns,
        lease_ms=500, log_level="INFO",
    )  # fmt: skip


@asynccontextmanager
async def relaying(bench: Bench, settings: Settings) -> AsyncIterator[None]:
    """A relay of the lane until the block ends."""
    service = Service("test", settings)
    task = asyncio.create_task(
        own_lane(LANE, service=service, redis=bench.redis, queue=bench.queue, letters=bench.letters)
    )
    try:
        yield
    finally:
        service.stopping.set()
        await task


@asynccontextmanager
async def pipeline(bench: Bench, settings: Settings) -> AsyncIterator[None]:
    """Relay and writers of all shards."""
    async with bench.running(0, 1, 2, 3), relaying(bench, settings):
        yield


async def all_stored(bench: Bench, lane: int = LANE) -> None:
    """Return when every entry of the lane's sequence is in a shard."""

    async def stored() -> bool:
        seq = int(await bench.redis.hget(topology.lane_state_key(lane), "seq") or 0)
        query = "SELECT count(*) FROM order_transitions WHERE lane = %s"
        return sum(int(rows(dsn, query, lane)[0][0]) for dsn in bench.databases.shard_dsns) >= seq

    await eventually(stored)


def watch_of(bench: Bench) -> Watch:
    """A watch of these servers."""
    recovery = LaneRecovery(redis=bench.redis, catalogue=bench.catalogue, shards=bench.pools)
    return Watch(redis=bench.redis, recovery=recovery, cluster=Topology(), kept_s=3600)


async def quiet_watch(bench: Bench) -> Watch:
    """A watch that has seen the lanes stand still."""
    watch = watch_of(bench)
    for _ in range(2):
        await watch.look()
    return watch


async def rebuilt(market: Market, settings: Settings, *, force: bool = False) -> Report:
    """Rebuild inside the test; the market then believes the new epoch and version."""
    report = await rebuild(settings, market.sale.sale_id, force=force, wait_s=15)
    believe(market)
    return report


def believe(market: Market) -> None:
    """Read the document, as edges do."""
    document = market.redis.get(topology.sale_key(market.sale.sale_id))
    assert document is not None
    market.sale = SaleDefinition.from_document(orjson.loads(document))


def replay(market: Market, order: OrderEntry) -> UUID | None:
    """The order that a repeated request returns; None for any answer but a replay."""
    lines = [(line.sku_index, line.quantity) for line in order.lines]
    request = make_request(market.sale, order.user_id, order.idempotency_key, lines)
    ((answer,),) = (market.lane.reserve([request])[1],)
    return answer.record.order_id if answer.outcome is Outcome.REPLAYED and answer.record else None


def snapshot(client: redis.Redis) -> dict[bytes, bytes]:
    """Every key with its value, as an append-only file would restore them."""
    return {key: client.dump(key) or b"" for key in client.scan_iter(count=1000)}


def bring_back(client: redis.Redis, kept: dict[bytes, bytes]) -> None:
    """Redis as it was at the snapshot: everything later is torn off."""
    client.flushall()
    for key, value in kept.items():
        client.restore(key, 0, value)


def held(bench: Bench, sale_id: UUID) -> int:
    """Units that stored orders of the sale hold."""
    query = "SELECT coalesce(sum(quantity), 0) FROM audit_orders WHERE sale_id = %s AND status IN ('reserved', 'paid')"
    return sum(int(rows(dsn, query, sale_id)[0][0]) for dsn in bench.databases.shard_dsns)


def content(market: Market, users: Sequence[UUID]) -> dict[str, Any]:
    """The sale in the lane, without the parts that differ from epoch to epoch."""
    orders = {order.order_id: market.lane.order(order.order_id) for order in market.orders}
    records = {user_id: market.lane.user(market.sale.sale_id, user_id) for user_id in users}
    return {
        "orders": {order_id: order and replace(order, epoch=0) for order_id, order in orders.items()},
        "users": {user_id: user and (user.purchases, user.records) for user_id, user in records.items()},
        "stock": [market.lane.stock(market.sale, index) for index in range(len(market.sale.items))],
        "seq": market.lane.state()[b"seq"],
        "open": market.lane.state()[topology.definition_field(market.sale.sale_id).encode()][0],
        "marks": [name for name in market.lane.state() if name.startswith(b"b:")],
        "restocks": market.redis.hgetall(topology.restock_key(LANE, market.sale.sale_id)),
        "ttl": {ids.short(o.order_id): market.redis.ttl(topology.order_key(o.order_id)) > 0 for o in market.orders},
    }


def another_market(market: Market, bench: Bench, client: redis.Redis, *, units: int) -> Market:
    """A second sale on the same lane."""
    other = open_market(bench, market.maker, client, units=units)
    write_catalogue(bench.databases.catalogue_dsn, other.sale, units)
    return other
