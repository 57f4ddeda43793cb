"""Rebuilds and the watch beside entries that a rebuild must not take for losses or for orders of its sale."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from uuid import UUID

import pytest
import redis

from domain import ids, topology
from domain.messages import encode_orders
from domain.orders import encode_entry
from domain.sales import Stock
from domain.topology import bucket_of_user, order_queue
from runtime.dead_letters import NewLetter
from runtime.process.settings import Settings
from runtime.queue import FailureKind
from tests.reservation.lane import LANE
from tests.workers.rebuilding import (
    all_stored,
    open_sale,
    pipeline,
    quiet_watch,
    rebuilt,
    settings_of,
    watch_of,
)
from tests.workers.selling import Market
from tests.workers.test_rebuild import verdict_of
from tests.workers.writing import Bench, rows


@pytest.fixture
def settings(bench: Bench, redis_client: redis.Redis) -> Settings:
    return settings_of(bench, redis_client)


@pytest.fixture
def market(bench: Bench, seed: int, redis_client: redis.Redis) -> Market:
    return open_sale(bench, redis_client, random.Random(seed), units=10)


async def test_a_forced_rebuild_before_the_first_entry_is_no_loss(
    bench: Bench, market: Market, settings: Settings
) -> None:
    """The watch saw the lane closed for the rebuild, without a sequence, and recorded a loss of unknown extent."""
    watch = watch_of(bench)
    async with pipeline(bench, settings):
        rebuilding = asyncio.create_task(rebuilt(market, settings, force=True))
        while not rebuilding.done():
            await watch.look()
            await asyncio.sleep(0.01)
        await rebuilding
        await watch.look()
        assert rows(bench.databases.catalogue_dsn, "SELECT count(*) FROM lane_losses") == [(0,)]
        assert not watch.closed
        market.buy(3)
        await all_stored(bench)
    verdict = await verdict_of(bench, market)
    assert (verdict.a, verdict.b, verdict.detail) == (True, True, ())


async def test_a_lane_that_forgot_its_sale_before_the_first_entry_is_a_loss(
    bench: Bench, market: Market, settings: Settings
) -> None:
    """The case next to the one above: nothing is known of a lane without its sale."""
    market.redis.flushall()
    await watch_of(bench).look()
    assert rows(bench.databases.catalogue_dsn, "SELECT lane, found_seq, floor_seq FROM lane_losses") == [(LANE, 0, 0)]
    async with pipeline(bench, settings):
        await rebuilt(market, settings)
    assert (await verdict_of(bench, market)).b is None


async def test_a_far_place_in_a_malformed_message_closes_no_lane(bench: Bench, market: Market) -> None:
    far = 1_000_000
    watch = await quiet_watch(bench)
    market.buy(2)
    await market.store()
    body = encode_orders(LANE, [(far, b"this is no order")])
    await bench.queue.publish(order_queue(0), body, message_id="far")
    async with bench.running(0):
        await bench.drained(0)
    noted = "SELECT lane_seq, entry IS NULL, octet_length(identity) FROM dead_lettered"
    assert rows(bench.databases.shard_dsns[0], noted) == [(far, True, 32)]
    assert (await bench.letters.count()) == {order_queue(0): 1}
    watch = watch_of(bench)  # one that starts now compares every lane with the floors
    await watch.look()
    assert not watch.closed
    assert market.redis.hget(topology.lane_state_key(LANE), "seq") == b"2"


async def test_the_place_of_a_refused_order_is_a_floor(bench: Bench, market: Market) -> None:
    """A valid order in the dead letters has its place from Redis: that place is never given again."""
    (first,) = market.buy(1, shard=0)
    await market.store()
    twin = replace(first, order_id=market.maker.order(user_id=first.user_id).order_id)  # the key is taken
    twin = replace(twin, order_id=_id_in_lane(LANE, first.user_id, market))
    body = encode_orders(LANE, [(7, encode_entry(twin))])
    await bench.queue.publish(order_queue(0), body, message_id="twin")
    async with bench.running(0):
        await bench.drained(0)
    noted = "SELECT lane_seq, order_id, sale_id FROM dead_lettered"
    assert rows(bench.databases.shard_dsns[0], noted) == [(7, twin.order_id, market.sale.sale_id)]
    watch = watch_of(bench)
    await watch.look()
    assert market.redis.hget(topology.lane_state_key(LANE), "seq") == b"7"


def _id_in_lane(lane: int, user_id: UUID, market: Market) -> UUID:
    return ids.order_id(
        unix_ms=1_790_000_000_000, lane=lane, bucket=bucket_of_user(user_id), random=market.maker.rng.getrandbits(52)
    )


@pytest.mark.parametrize("stranger", ["lane", "item", "malformed"])
async def test_a_dead_letter_of_another_lane_or_item_does_not_stop_a_rebuild(
    bench: Bench, market: Market, settings: Settings, stranger: str
) -> None:
    """Each rebuild tried to restore it in a lane that was not under the rebuild, and failed."""
    async with pipeline(bench, settings):
        (order,) = market.buy(1, shard=1)
        await all_stored(bench)
        other = market.maker.user(1)
        lane = LANE + 1 if stranger == "lane" else LANE
        letter = replace(order, order_id=_id_in_lane(lane, other, market), user_id=other, idempotency_key="stranger")
        if stranger == "item":
            letter = replace(letter, lines=(replace(letter.lines[0], sku_index=7, sku="SKU-7"),))
        entries = [(99, b"?" if stranger == "malformed" else encode_entry(letter))]
        await bench.letters.add(
            NewLetter(
                queue=order_queue(1), message_id="stranger", body=encode_orders(lane, entries),
                kind=FailureKind.UNROUTABLE, reason="planted",
            )
        )  # fmt: skip
        report = await rebuilt(market, settings, force=True)
    assert (report.dead_letters, report.tally.orders) == (0, {"reserved": 1})
    assert market.lane.stock(market.sale) == Stock(9, 1, 0, 0, 10, 0, 0)
