"""The sale directory on a real Redis: one read for many requests, its bounds, and missed messages."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import redis

from devstack.servers import RedisServer
from domain import topology
from edge import sale_directory
from edge.order_path import fixed_answers
from edge.sale_directory import DirectoryUnavailable, SaleDirectory
from hotpath.counters import Counters, Verdict
from hotpath.exchange import Exchange
from hotpath.order_request import OrderCore
from hotpath.rates import UserRates
from hotpath.sales import SaleView
from hotpath.tokens import KeyRing
from runtime.process import tasks
from runtime.redis.client import redis_client as open_client
from tests.fixtures.fix_edge import Publisher
from tests.hotpath.making import Peer


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
    assert len(directory) == 1 and directory.find(str(sale.sale_id)) is newer
    assert directory.is_forgotten(capitals, sale.ends_at_ms + 2 * 86_400_000)


async def test_counts_of_refusals_go_on_under_a_new_version(directory: SaleDirectory, shop: Publisher) -> None:
    sale = shop.publish()
    first = await directory.load(str(sale.sale_id))
    shop.change(sale, ends_at_ms=sale.ends_at_ms + 1)
    second = await directory.refresh(str(sale.sale_id))
    assert first is not None and second is not None
    assert (first.version, second.version) == (1, 2) and first.tally is second.tally


async def test_sales_that_are_over_make_room_first(
    directory: SaleDirectory, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sale_directory, "SALES_MAX", 3)
    windows = ((-60, 20), (-60, 9), (-60, -3), (-60, -5), (-60, 500))
    soon, sooner, over, over_first, last = sales = [
        shop.publish(starts_in_s=starts, ends_in_s=ends) for starts, ends in windows
    ]
    for sale in sales:
        await directory.load(str(sale.sale_id))
    assert [directory.find(str(sale.sale_id)) is not None for sale in sales] == [True, True, False, False, True]
    assert len(directory) == 3 and {soon, sooner, last}.isdisjoint({over, over_first})


async def test_without_one_that_is_over_the_longest_unused_makes_room(
    directory: SaleDirectory, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sale that is on ended first of all, and was dropped at each look at another one."""
    monkeypatch.setattr(sale_directory, "SALES_MAX", 3)
    on, *others = [shop.publish(ends_in_s=seconds) for seconds in (60, 1000, 2000, 3000, 4000)]
    view = await directory.load(str(on.sale_id))
    for sale in others:
        assert view is not None
        count_one(view)  # an order path uses the view, without a call of the directory
        directory.tallies()
        await directory.load(str(sale.sale_id))
    assert directory.find(str(on.sale_id)) is view
    assert [directory.find(str(sale.sale_id)) is not None for sale in others] == [False, False, True, True]


async def test_the_counts_of_a_dropped_sale_are_written(
    directory: SaleDirectory, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sale_directory, "SALES_MAX", 1)
    dropped, kept = shop.publish(ends_in_s=-1), shop.publish()
    view = await directory.load(str(dropped.sale_id))
    assert view is not None
    count_one(view)
    await directory.load(str(kept.sale_id))
    assert directory.find(str(dropped.sale_id)) is None
    counts = {sale_id: tally.take() for sale_id, tally in directory.tallies()}
    assert counts[str(dropped.sale_id)] == {Verdict.TOKEN_MISSING: 1}
    assert str(dropped.sale_id) not in dict(directory.tallies())


async def test_lists_ask_the_sales_that_are_on_and_in_use(directory: SaleDirectory, shop: Publisher) -> None:
    over, first, second = [shop.publish(ends_in_s=seconds) for seconds in (-1, 100, 200)]
    for sale in (first, second, over):
        await directory.load(str(sale.sale_id))
    await directory.load(str(first.sale_id))
    ordered = [sale.sale_id for sale in directory.by_use(int(time.time() * 1000))]
    assert ordered == [first.sale_id, second.sale_id, over.sale_id]


class _Unsigned:
    """A request without headers, and its answers."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.headers = self

    def get_all(self, _: str) -> list[str]:
        return []

    def response_bytes(self, status: int, _headers: object, _body: bytes) -> None:
        self.statuses.append(status)


def _never(*_: object) -> Any:
    raise AssertionError("a request without a token gets a fixed answer")


def count_one(view: SaleView) -> None:
    """Let the compiled order path answer a request of the sale: one without a token."""
    core = OrderCore(
        ring=KeyRing({"kid": bytes(32)}, issuer="flashsale"),
        batcher=Peer().batcher,
        counters=Counters(),
        fixed_answers=fixed_answers(),
        answer_with_argument=_never,
        answer_invalid=_never,
        slow_path=_never,
        report=_never,
        location_prefix="/v1/orders/",
        body_length_max=4096,
        body_deadline_ms=1000,
        rates=UserRates(bytearray(64), interval_us=1, burst=1),
        ceiling=UserRates(bytearray(64), interval_us=1, burst=1),
    )
    request = _Unsigned()
    with pytest.raises(StopIteration):
        next(Exchange(core, request, request, "", view))  # type: ignore[call-overload]
    assert request.statuses == [401]


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
