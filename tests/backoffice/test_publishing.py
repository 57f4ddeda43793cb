"""Publishing, changing and restocking, interrupted between any two steps: a repeat or the synchroniser completes them.

The services run step by step in this process on real PostgreSQL and Redis; an interruption is a step that is left out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis

from backoffice.catalogue.store import Products
from backoffice.sales import model
from backoffice.sales.lanes import SaleLanes
from backoffice.sales.model import Item, NewSale, Sale, SaleStateConflict, Stage
from backoffice.sales.service import SaleService
from backoffice.sales.store import Restock, Sales
from backoffice.sales.synchroniser import Synchroniser
from backoffice.stores import Stores
from backoffice.web.idempotency import KeyReused
from devstack.servers import RedisServer
from domain import ids, topology
from domain.sales import LaneSaleState, SaleDefinition, Stock, restock_shares
from reservation.lane import LaneForgot, Lanes
from reservation.reading import read_sale_lanes
from runtime.audit import Action
from runtime.process.settings import load_settings
from runtime.process.supervision import TaskSupervisor
from tests.fixtures.fix_databases import Databases

STAFF_ID = UUID(int=7)
NOW = timedelta(0)


@dataclass(slots=True)
class Parts:
    """The services of sales over real servers, without HTTP."""

    stores: Stores
    sales: Sales
    lanes: SaleLanes
    service: SaleService
    synchroniser: Synchroniser
    repaired: list[int]

    async def draft(self, *, stock: int = 10, lanes: int = 1) -> Sale:
        sku = f"SKU-{ids.short(ids.new_uuid7())}"
        fields: dict[str, Any] = {"name": "x", "description": "", "price_minor": 5, "currency": "EUR"}
        await Products(self.stores).create({**fields, "sku": sku, "attributes": {}, "active": True})
        new = NewSale(
            id=ids.new_uuid7(),
            name="Sale",
            starts_at=datetime(2020, 1, 1, tzinfo=UTC),
            ends_at=datetime(2099, 1, 1, tzinfo=UTC),
            hold_seconds=600,
            lanes=lanes,
            expected_buyers=None,
            items=(Item(sku, stock, 500, 2),),
            created_by=STAFF_ID,
        )
        await self.sales.create(new, lane_count=lanes)
        return await self.service.get(new.id)

    async def step(self) -> int:
        """One round of the synchroniser that treats everything as settled."""
        return await self.synchroniser.step(settled=NOW)

    async def stock(self, sale: Sale) -> Stock:
        (stock,) = await self.lanes.stock((await self.service.get(sale.id)).definition)
        return stock

    async def document(self, sale: Sale) -> SaleDefinition | None:
        raw = await self.stores.redis.get(topology.sale_key(sale.id))
        return None if raw is None else SaleDefinition.from_document(json.loads(raw))


@pytest.fixture
async def parts(databases: Databases, own_redis: RedisServer) -> AsyncIterator[Parts]:
    """On a Redis of the test's own, which the test may kill."""
    environ = {**databases.environ, "FLASHSALE_REDIS_URL": own_redis.url, "FLASHSALE_CACHE_URL": own_redis.url}
    stores = Stores.from_settings(load_settings(environ))
    sales, lanes = Sales(stores), SaleLanes(stores.redis)
    service = SaleService(stores, sales, lanes, kept=timedelta(days=1))
    repaired: list[int] = []
    async with stores.opened(TaskSupervisor()):
        yield Parts(stores, sales, lanes, service, Synchroniser(sales, lanes, service, repaired.append), repaired)


async def restart(parts: Parts, server: RedisServer) -> None:
    """Kill and start Redis, and drop the dead connections of the pool."""
    server.kill()
    server.start()
    await parts.stores.redis.connection_pool.disconnect()


async def cut_after(parts: Parts, sale: Sale, steps: int) -> None:
    """Run only the first steps of publishing."""
    if steps >= 1:
        assert await parts.service.start_loading(sale)
    if steps >= 2:
        await parts.service.load(await parts.service.get(sale.id))
    if steps >= 3:
        await parts.sales.mark_published(sale.id)
    if steps >= 4:
        await parts.lanes.define((await parts.service.get(sale.id)).definition)


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("healer", ["repeat", "synchroniser"])
async def test_cut_anywhere(parts: Parts, steps: int, healer: str) -> None:
    sale = await parts.draft()
    await cut_after(parts, sale, steps)
    # No edge knows the sale until its document exists.
    assert await parts.document(sale) is None
    if healer == "repeat":
        await parts.service.publish(sale.id)
    else:
        assert await parts.step() == (1 if steps else 0)  # a draft is not published by itself
        if steps == 0:
            return
    published = await parts.service.get(sale.id)
    assert published.stage is Stage.PUBLISHED
    assert await parts.stock(sale) == Stock.fresh(10)
    assert await parts.document(sale) == published.definition
    assert await parts.lanes.listed() == {sale.id}
    assert await parts.step() == 0


async def test_a_cut_sale_is_a_draft_that_cannot_change(parts: Parts) -> None:
    sale = await parts.draft()
    await cut_after(parts, sale, 1)
    loading = await parts.service.get(sale.id)
    assert loading.state(await parts.stores.now_ms()) == "draft"
    assert not await parts.sales.change_draft(replace(loading, name="other"))
    for rule in (model.paused, model.resumed, model.ended):
        with pytest.raises(SaleStateConflict):
            await parts.service.change(sale.id, rule, Action.SALE_CHANGE)


async def test_redis_dies_while_publishing(parts: Parts, own_redis: RedisServer) -> None:
    sale = await parts.draft()
    await cut_after(parts, sale, 1)
    own_redis.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        await parts.service.publish(sale.id)
    own_redis.start()
    await parts.stores.redis.connection_pool.disconnect()
    await parts.service.publish(sale.id)
    assert await parts.stock(sale) == Stock.fresh(10)


async def test_redis_loses_everything_before_the_sale_was_published(parts: Parts) -> None:
    """No edge knew the sale, so it has no orders and may be loaded again."""
    sale = await parts.draft()
    await cut_after(parts, sale, 2)
    await parts.stores.redis.flushall()
    await parts.service.publish(sale.id)
    assert await parts.stock(sale) == Stock.fresh(10)


async def test_redis_loses_everything_afterwards(parts: Parts) -> None:
    sale = await parts.draft()
    await parts.service.publish(sale.id)
    await parts.stores.redis.flushall()
    with pytest.raises(LaneForgot):
        await parts.service.publish(sale.id)
    assert await parts.step() == 0  # the document exists again; the lane needs a rebuild
    assert not await parts.stores.redis.exists(topology.lane_state_key(sale_lane(parts, sale)))
    assert await parts.document(sale) is not None


def sale_lane(parts: Parts, sale: Sale) -> int:
    return parts.stores.topology.lanes_of_sale(sale.id, count=1)[0]


async def test_loading_again_never_overwrites(parts: Parts) -> None:
    sale = await parts.draft()
    await cut_after(parts, sale, 2)
    key, field = topology.lane_state_key(sale_lane(parts, sale)), topology.stock_field(sale.id, 0)
    sold = replace(Stock.fresh(10), available=9, reserved=1)
    await parts.stores.redis.hset(key, field, sold.pack())
    await parts.service.publish(sale.id)
    assert await parts.stock(sale) == sold


async def test_many_publishers_from_any_cut(parts: Parts) -> None:
    for steps in range(4):
        sale = await parts.draft()
        await cut_after(parts, sale, steps)
        await asyncio.gather(*(parts.service.publish(sale.id) for _ in range(6)), parts.step())
        assert await parts.stock(sale) == Stock.fresh(10)


async def test_a_publisher_that_read_an_older_draft(parts: Parts) -> None:
    """The draft changes between reading and loading: the committed draft is loaded."""
    sale = await parts.draft(stock=10)
    newer = replace(sale, items=(replace(sale.items[0], stock=3),))
    assert await parts.sales.change_draft(newer)
    assert not await parts.service.start_loading(sale)
    await parts.service.publish(sale.id)
    assert await parts.stock(sale) == Stock.fresh(3)


@pytest.mark.parametrize("healer", ["repeat", "synchroniser"])
async def test_a_change_that_redis_did_not_hear_of(parts: Parts, own_redis: RedisServer, healer: str) -> None:
    sale = await parts.draft()
    published = await parts.service.publish(sale.id)
    assert await parts.sales.change_published(published.id, lambda sale: replace(sale, paused=True), Action.SALE_PAUSE)
    await restart(parts, own_redis)
    document = await parts.document(sale)
    assert document is not None
    assert document.state is LaneSaleState.RUNNING
    if healer == "repeat":
        await parts.service.change(sale.id, model.paused, Action.SALE_PAUSE)
    else:
        assert await parts.step() == 1
    document = await parts.document(sale)
    assert document is not None
    assert (document.state, document.version) == (LaneSaleState.PAUSED, published.version + 1)
    raw = await parts.stores.redis.hget(
        topology.lane_state_key(sale_lane(parts, sale)), topology.definition_field(sale.id)
    )
    assert raw == document.pack_for_lane()


async def test_an_older_document_never_replaces_a_newer_one(parts: Parts) -> None:
    sale = await parts.draft()
    first = await parts.service.publish(sale.id)
    second = await parts.service.change(sale.id, model.paused, Action.SALE_PAUSE)
    await asyncio.gather(*(parts.lanes.announce(first.definition) for _ in range(5)))
    assert await parts.document(sale) == second.definition
    await parts.stores.redis.set(topology.sale_key(sale.id), b"rubbish")
    assert await parts.step() == 1
    assert await parts.document(sale) == second.definition


async def test_a_published_sale_is_not_found_by_edges_twice(parts: Parts) -> None:
    sale = await parts.draft()
    await parts.service.publish(sale.id)
    await parts.stores.redis.srem(topology.SALES_KEY, str(sale.id))
    assert await parts.step() == 1
    assert await parts.lanes.listed() == {sale.id}


def ledger(databases: Databases, sale: Sale) -> int:
    with psycopg.connect(databases.catalogue_dsn) as connection:
        row = connection.execute("SELECT stock FROM stock_ledger WHERE sale_id = %s", (sale.id,)).fetchone()
    assert row is not None
    stock: int = row[0]
    return stock


@pytest.mark.parametrize("lane_has_it", [False, True])
@pytest.mark.parametrize("healer", ["repeat", "synchroniser"])
async def test_a_restock_cut_off(parts: Parts, databases: Databases, lane_has_it: bool, healer: str) -> None:
    sale = await parts.draft()
    sale = await parts.service.publish(sale.id)
    sku, restock = sale.items[0].sku, Restock(sale.id, "r-1", 0, 5)
    await parts.sales.add_restock(restock, sku=sku, created_by=STAFF_ID)
    if lane_has_it:
        await parts.lanes.restock(sale.definition, restock)
    if healer == "repeat":
        await parts.service.restock(sale.id, sku=sku, quantity=5, key="r-1", created_by=STAFF_ID)
    else:
        assert await parts.step() == 1
    assert (await parts.stock(sale)).available == ledger(databases, sale) == 15
    assert await parts.step() == 0


@pytest.mark.parametrize("reached", range(4))
async def test_a_restock_over_many_lanes_cut_off(parts: Parts, databases: Databases, reached: int) -> None:
    """Some lanes have their share; the synchroniser gives the others theirs, and no lane a second one."""
    sale = await parts.draft(lanes=3)
    sale = await parts.service.publish(sale.id)
    loaded = await read_sale_lanes(parts.stores.redis, sale.definition)
    assert [stock.available for lane in loaded for stock in lane.full_stock or ()] == [4, 3, 3]
    restock = Restock(sale.id, "r-1", 0, 5)
    await parts.sales.add_restock(restock, sku=sale.items[0].sku, created_by=STAFF_ID)
    first_lanes = replace(sale.definition, lanes=sale.lanes[:reached])
    shares = restock_shares("r-1", 5, lanes=3)
    for lane, share in zip(first_lanes.lanes, shares, strict=False):
        await Lanes(parts.stores.redis).restock(lane, sale.id, sku_index=0, quantity=share, key="r-1")
    assert await parts.step() == 1
    there = await read_sale_lanes(parts.stores.redis, sale.definition)
    units = [stock.available for lane in there for stock in lane.full_stock or ()]
    assert units == [had + share for had, share in zip([4, 3, 3], shares, strict=True)]
    assert sum(units) == ledger(databases, sale) == 15
    assert await parts.step() == 0


async def test_a_restock_of_a_sale_that_ended_meanwhile_still_arrives(parts: Parts, databases: Databases) -> None:
    """The ledger has the units, so Redis must get them as well."""
    sale = await parts.draft()
    sale = await parts.service.publish(sale.id)
    await parts.sales.add_restock(Restock(sale.id, "r", 0, 5), sku=sale.items[0].sku, created_by=STAFF_ID)
    await parts.service.change(sale.id, model.ended, Action.SALE_END)
    assert await parts.step() == 1
    assert (await parts.stock(sale)).available == ledger(databases, sale) == 15


async def test_a_key_means_one_restock(parts: Parts, databases: Databases) -> None:
    sale = await parts.draft()
    sale = await parts.service.publish(sale.id)
    sku = sale.items[0].sku

    async def restock(quantity: int) -> None:
        await parts.service.restock(sale.id, sku=sku, quantity=quantity, key="r", created_by=STAFF_ID)

    results = await asyncio.gather(*(restock(n % 2 + 1) for n in range(8)), return_exceptions=True)
    assert sum(result is None for result in results) == 4
    assert {type(result) for result in results if result is not None} == {KeyReused}
    assert (await parts.stock(sale)).available == ledger(databases, sale)


async def test_the_synchroniser_goes_on_after_faults(
    parts: Parts, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backoffice.sales.synchroniser.PERIOD_S", 0.05)
    monkeypatch.setattr("backoffice.sales.synchroniser.SETTLED", NOW)
    sale = await parts.draft()
    await parts.service.publish(sale.id)
    own_redis.kill()
    task = asyncio.create_task(parts.synchroniser.run(TaskSupervisor()))
    await asyncio.sleep(0.3)
    own_redis.start()
    await parts.stores.redis.connection_pool.disconnect()
    await parts.stores.redis.delete(topology.sale_key(sale.id))
    async with asyncio.timeout(20):
        # The round counts its repairs after it has put the document.
        while await parts.document(sale) is None or sum(parts.repaired) == 0:  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_migrations_refuse_what_must_not_be(databases: Databases, tmp_path: Path) -> None:
    """The constraints of the catalogue are a second check."""
    assert tmp_path
    insert = (
        "INSERT INTO sales (id, name, starts_at, ends_at, hold_seconds, currency, created_by, stage, loaded_epoch, lanes, ended) "
        "VALUES (gen_random_uuid(), 'x', %s, %s, %s, 'EUR', gen_random_uuid(), %s, %s, %s, %s)"
    )
    early, late = datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
    bad: list[tuple[Any, ...]] = [
        (late, early, 600, "draft", 0, None, False),
        (early, late, 0, "draft", 0, None, False),
        (early, late, 600, "draft", 1, None, False),
        (early, late, 600, "published", 0, [0], False),
        (early, late, 600, "published", 2, [0], False),
        (early, late, 600, "published", 1, None, False),
        (early, late, 600, "draft", 0, None, True),
        (early, late, 600, "open", 1, [0], False),
    ]
    with psycopg.connect(databases.catalogue_dsn, autocommit=True) as connection:
        for row in bad:
            with pytest.raises(psycopg.errors.CheckViolation):
                connection.execute(insert, row)
        connection.execute(insert, (early, late, 600, "published", 1, [0], True))
