"""The sale directory on a real Redis: one read for many requests, its bounds, and missed messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest
import redis

from devstack.servers import RedisServer
from domain import topology
from edge import sale_directory
from edge.sale_directory import DirectoryUnavailable, SaleDirectory
from runtime.process import tasks
from runtime.redis.client import redis_client as open_client
from tests.fixtures.fix_edge import Publisher


@pytest.fixture
def shop(redis_client: redis.Redis) -> Publisher:
    return Publisher(redis_client)


@pytest.fixture
async def directory(
    redis_server: RedisServer,
    redis_client: redis.Redis,  # noqa: ARG001 - emptied
) -> AsyncIterator[SaleDirectory]:
    client = open_client(redis_server.url)
    yield SaleDirectory(client)
    await client.aclose()


def commands(shop: Publisher, name: str) -> int:
    """How often Redis ran a command."""
    found = shop.redis.info("commandstats").get(f"cmdstat_{name}")
    return int(found["calls"]) if found else 0


async def test_many_callers_share_one_read(directory: SaleDirectory, shop: Publisher) -> None:
    sale = shop.publish()
    sale_id = str(sale.sale_id)
    assert directory.find(sale_id) is None
    before = commands(shop, "mget")
    views = await asyncio.gather(*(directory.load(sale_id) for _ in range(100)))
    assert commands(shop, "mget") == before + 1
    assert all(view is views[0] for view in views) and directory.find(sale_id) is views[0]
    known = directory.known(sale_id)
    assert known is not None and known.definition == sale and len(directory) == 1


async def test_different_sales_share_a_read_too(directory: SaleDirectory, shop: Publisher) -> None:
    sales = [shop.publish() for _ in range(10)]
    before = commands(shop, "mget")
    await asyncio.gather(*(directory.load(str(sale.sale_id)) for sale in sales))
    assert commands(shop, "mget") == before + 1


async def test_an_absent_sale_is_remembered_for_a_moment(
    directory: SaleDirectory, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sale_directory, "ABSENT_MAX", 3)
    absent = [str(uuid4()) for _ in range(4)]
    for sale_id in absent:
        assert await directory.load(sale_id) is None
    before = commands(shop, "mget")
    for sale_id in absent[1:]:
        assert await directory.load(sale_id) is None
    assert commands(shop, "mget") == before
    assert await directory.load(absent[0]) is None, "the oldest of more than three is forgotten"
    assert commands(shop, "mget") == before + 1
    assert await directory.load("no id at all") is None
    assert commands(shop, "mget") == before + 1


async def test_an_older_document_never_replaces_a_newer_one(directory: SaleDirectory, shop: Publisher) -> None:
    sale = shop.publish()
    newer = replace(sale, version=3, name="Newer")
    shop.redis.set(topology.sale_key(sale.sale_id), json.dumps(newer.as_document()))
    assert await directory.load(str(sale.sale_id))
    shop.redis.set(topology.sale_key(sale.sale_id), json.dumps(replace(sale, version=2).as_document()))
    view = await directory.refresh(str(sale.sale_id))
    assert view is not None and view.version == 3
    # Broken JSON is logged, and known sales stay.
    shop.redis.set(topology.sale_key(sale.sale_id), "{")
    assert await directory.refresh(str(sale.sale_id)) is view
    shop.redis.delete(topology.sale_key(sale.sale_id))
    assert await directory.refresh(str(sale.sale_id)) is None
    assert directory.find(str(sale.sale_id)) is not None, "a sale that Redis lost is still known"


async def test_a_document_with_wrong_values_harms_no_other_sale(directory: SaleDirectory, shop: Publisher) -> None:
    """It ended the task that reads: all who had asked with it waited for ever, also at each new connection."""
    good, damaged = shop.publish(), shop.publish()
    key = topology.sale_key(damaged.sale_id)
    shop.redis.set(key, json.dumps(damaged.as_document() | {"sale_id": 5, "currency": "EURO"}))
    async with asyncio.timeout(10):
        views = await asyncio.gather(*(directory.load(str(sale.sale_id)) for sale in (damaged, good)))
    assert views[0] is None and views[1] is not None
    following = asyncio.create_task(directory.follow())
    async with asyncio.timeout(10):
        while not directory.synced:  # noqa: ASYNC110 - the channel signals nothing
            await asyncio.sleep(0.01)
    await tasks.cancel(following)


async def test_an_id_in_capitals_is_no_second_sale(directory: SaleDirectory, shop: Publisher) -> None:
    sale = shop.publish(ends_in_s=-1)
    capitals = str(sale.sale_id).upper()
    view = await directory.load(capitals)
    shop.change(sale, ends_at_ms=sale.ends_at_ms + 1)
    newer = await directory.refresh(capitals)
    assert view is not None and newer is not None and newer.version == view.version + 1
    assert [known.view for known in directory] == [newer] and directory.find(str(sale.sale_id)) is newer
    assert directory.is_forgotten(capitals, sale.ends_at_ms + 2 * 86_400_000)


async def test_counts_of_refusals_go_on_under_a_new_version(directory: SaleDirectory, shop: Publisher) -> None:
    sale = shop.publish()
    first = await directory.load(str(sale.sale_id))
    shop.change(sale, ends_at_ms=sale.ends_at_ms + 1)
    second = await directory.refresh(str(sale.sale_id))
    assert first is not None and second is not None
    assert (first.version, second.version) == (1, 2) and first.tally is second.tally


async def test_the_sale_that_ended_first_makes_room(
    directory: SaleDirectory, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sale_directory, "SALES_MAX", 2)
    sales = [shop.publish(ends_in_s=seconds) for seconds in (100, 50, 200)]
    for sale in sales:
        await directory.load(str(sale.sale_id))
    assert [directory.find(str(sale.sale_id)) is not None for sale in sales] == [True, False, True]
    assert len(directory) == 2


async def test_too_many_reads_at_once_are_refused(directory: SaleDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sale_directory, "PENDING_MAX", 5)
    results = await asyncio.gather(*(directory.load(str(uuid4())) for _ in range(8)), return_exceptions=True)
    assert [result for result in results if result is None] == [None] * 5
    assert [type(result) for result in results if result is not None] == [DirectoryUnavailable] * 3


async def test_a_redis_that_is_away(own_redis: RedisServer) -> None:
    client = open_client(own_redis.url, timeout_s=1.0)
    directory = SaleDirectory(client)
    own_redis.kill()
    with pytest.raises(DirectoryUnavailable):
        await directory.load(str(uuid4()))
    own_redis.start()
    assert await directory.load(str(uuid4())) is None
    await client.aclose()


async def test_changes_missed_while_the_channel_was_down(directory: SaleDirectory, shop: Publisher) -> None:
    known, unread = shop.publish(), shop.publish()
    following = asyncio.create_task(directory.follow())
    await becomes(lambda: directory.synced)
    assert directory.find(str(unread.sale_id)) is not None, "published sales are read before the first request"
    # The connection is cut, and a change follows whose message is lost.
    assert shop.redis.client_kill_filter(_type="pubsub") >= 1
    newer = replace(known, version=2)
    shop.redis.set(topology.sale_key(known.sale_id), json.dumps(newer.as_document()))

    def version() -> int:
        view = directory.find(str(known.sale_id))
        assert view is not None
        return view.version

    await becomes(lambda: version() == 2)
    # The channel works again.
    shop.redis.set(topology.sale_key(known.sale_id), json.dumps(replace(known, version=3).as_document()))
    await becomes(lambda: directory.synced)
    shop.redis.publish(topology.SALES_CHANNEL, str(known.sale_id))
    await becomes(lambda: version() == 3)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def becomes(condition: object) -> None:
    """Wait until a condition holds."""
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.005)


async def test_a_document_that_cannot_be_kept_leaves_no_caller_waiting(
    directory: SaleDirectory, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw: it concerns the callers of this sale, not those of the sales read with it."""
    broken, well = shop.publish(), shop.publish()
    decode = sale_directory.decode_document

    def fail_for_one(document: bytes) -> object:
        definition = decode(document)
        if definition.sale_id == broken.sale_id:
            raise KeyError("a member that no version has")
        return definition

    monkeypatch.setattr(sale_directory, "decode_document", fail_for_one)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(
            *(directory.load(str(sale.sale_id)) for sale in (broken, well)), return_exceptions=True
        )
    assert isinstance(answers[0], DirectoryUnavailable)
    assert answers[1] is directory.find(str(well.sale_id)) is not None
