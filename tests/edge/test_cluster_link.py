"""The order path on a real Redis Cluster: all lanes, a slot that moves under load, and a primary that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.exceptions import RedisError

from devstack.redis_cluster import RedisCluster
from devstack.servers import RedisServer
from domain import topology
from domain.sales import LaneSaleState, SaleDefinition, SaleItem, Stock
from edge.cluster_link import ClusterLink
from edge.lane_marks import LaneMarks
from edge.sale_directory import make_view
from hotpath.batcher import Batcher
from hotpath.counters import Verdict
from hotpath.sales import SaleView
from hotpath.tickets import Ticket
from reservation.lane import Lanes
from reservation.reading import read_sale, read_sequences
from reservation.scripts import LOOKUP, RESERVE
from runtime.redis.addresses import ClusterAddress
from runtime.redis.cluster import ClusterRedis
from runtime.redis.hash_slots import slot_of

LANES = 6
WAIT_S_MAX = 60.0
STOCK = 1_000_000


def make_link(redis_cluster: RedisCluster, client: ClusterRedis, *, deadline_ms: int, replicas: int = 0) -> ClusterLink:
    def make_batcher(wake: Callable[[], None], on_redirect: Callable[[int, str], None] | None = None) -> Batcher:
        return Batcher(
            reserve=(RESERVE.sha, RESERVE.source.encode()),
            lookup=(LOOKUP.sha, LOOKUP.source.encode()),
            emission_interval_us=1000,
            burst=1000,
            stream_length_max=1_000_000,
            batch_size_max=16,
            batches_in_flight_max=2,
            queue_length_max=1000,
            deadline_ms=deadline_ms,
            wake=wake,
            replicas=replicas,
            replica_wait_ms=deadline_ms // 2,
            on_redirect=on_redirect,
        )

    return ClusterLink(
        ClusterAddress.parse(redis_cluster.url),
        client,
        make_batcher,
        silence_s_max=2 * deadline_ms / 1000,
        on_sweep=lambda _: None,
        marks=LaneMarks(LANES),
    )


@contextlib.asynccontextmanager
async def running(link: ClusterLink) -> AsyncIterator[ClusterLink]:
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def publish(client: ClusterRedis, lanes: tuple[int, ...]) -> SaleDefinition:
    now_ms = int(time.time() * 1000)
    sale = SaleDefinition(
        uuid4(), "s", 1, 1, LaneSaleState.RUNNING, now_ms - 60_000, now_ms + 3_600_000, 60_000, "EUR", lanes,
        (SaleItem("SKU-1", 100, 0),),
    )  # fmt: skip
    for lane in lanes:
        await Lanes(client).load(lane, sale, [Stock.fresh(STOCK)])
    return sale


@dataclass
class Buyers:
    """Buyers that order without a pause, one order at a time each, with the verdict of every order."""

    link: ClusterLink
    view: SaleView
    verdicts: Counter[str] = field(default_factory=Counter)
    accepted: set[UUID] = field(default_factory=set)
    keys: Iterator[int] = field(default_factory=itertools.count)

    async def buy_for_ever(self) -> None:
        """As one user after another: a sale takes 1,000 orders of a user."""
        while True:
            user = os.urandom(16)
            for _ in range(500):
                await self.buy(user)

    async def buy(self, user: bytes) -> Ticket:
        ticket = Ticket(self.view, user, str(next(self.keys)), [(0, 1)])
        if self.link.batcher.submit(ticket):
            async with asyncio.timeout(WAIT_S_MAX):  # not `wait_for`, which may swallow the end of the buyers
                await ticket
        else:
            await asyncio.sleep(0.01)
        self.verdicts[Verdict(ticket.verdict).name] += 1
        if ticket.verdict == Verdict.ACCEPTED:
            self.accepted.add(UUID(bytes=ticket.order_id))
        return ticket

    async def until_accepted(self, more: int) -> None:
        wanted = len(self.accepted) + more
        async with asyncio.timeout(WAIT_S_MAX):
            while len(self.accepted) < wanted:  # noqa: ASYNC110 - waits for buyers
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def buying(buyers: Buyers, number: int = 12) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(buyers.buy_for_ever()) for _ in range(number)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result


async def in_streams(client: ClusterRedis, lanes: tuple[int, ...]) -> list[UUID]:
    """Ids of the orders in the lanes' streams."""
    found = []
    for lane in lanes:
        entries: Any = await client.xrange(topology.lane_stream_key(lane))
        found += [UUID(bytes=fields[b"e"][26:42]) for _, fields in entries]
    return found


async def check_stock(client: ClusterRedis, sale: SaleDefinition, orders: int) -> None:
    stocks = [(await read_sale(client, lane, sale)).full_stock for lane in sale.lanes]
    reserved = sum(stock[0].reserved for stock in stocks if stock is not None)
    available = sum(stock[0].available for stock in stocks if stock is not None)
    assert (reserved, available) == (orders, STOCK * len(sale.lanes) - orders)


async def test_orders_in_every_lane(redis_cluster: RedisCluster, cluster_client: ClusterRedis) -> None:
    lanes = tuple(range(LANES))
    sale = await publish(cluster_client, lanes)
    link = make_link(redis_cluster, cluster_client, deadline_ms=20_000)
    async with running(link):
        buyers = Buyers(link, make_view(sale))
        await asyncio.gather(*(buyers.buy(os.urandom(16)) for _ in range(300)))
    assert buyers.verdicts == {"ACCEPTED": 300}
    assert all((await read_sequences(cluster_client, lanes)).values())
    assert sorted(await in_streams(cluster_client, lanes)) == sorted(buyers.accepted)
    assert len({redis_cluster.owner_of(slot_of(topology.lane_state_key(lane))).port for lane in lanes}) > 1
    await check_stock(cluster_client, sale, 300)


async def test_a_slot_moves_under_load_without_a_lost_or_doubled_order(
    redis_cluster: RedisCluster, cluster_client: ClusterRedis
) -> None:
    """The moving lane's orders wait, the others go on; afterwards the link has a connection to the new owner."""
    moving = 0
    slot = slot_of(topology.lane_state_key(moving))
    source = redis_cluster.owner_of(slot)
    target = next(node for node in redis_cluster.current_primaries() if node is not source)
    others = tuple(
        lane for lane in range(1, LANES)
        if redis_cluster.owner_of(slot_of(topology.lane_state_key(lane))) is source
    )[:1]  # fmt: skip
    assert others, "no second lane at the node: choose other lanes"
    sale, other_sale = await publish(cluster_client, (moving,)), await publish(cluster_client, others)
    link = make_link(redis_cluster, cluster_client, deadline_ms=30_000)
    buyers, other_buyers = Buyers(link, make_view(sale)), Buyers(link, make_view(other_sale))
    async with running(link), buying(buyers), buying(other_buyers):
        await buyers.until_accepted(200)
        move = redis_cluster.move(slot, to=target)
        await asyncio.to_thread(move.begin)
        await asyncio.to_thread(move.move_keys, 50)
        await other_buyers.until_accepted(100)  # while the lane's orders wait
        await asyncio.to_thread(move.finish)
        await buyers.until_accepted(200)
        await other_buyers.until_accepted(50)
    assert redis_cluster.owner_of(slot) is target
    assert link.batcher.stats()["redirected"] > 0
    for one, lanes in ((buyers, (moving,)), (other_buyers, others)):
        assert set(one.verdicts) == {"ACCEPTED"}
        stored = await in_streams(cluster_client, lanes)
        assert len(stored) == len(set(stored))
        # Orders in flight when the buyers left may be stored as well.
        assert one.accepted <= set(stored) and len(stored) - len(one.accepted) <= 12
    await check_stock(cluster_client, sale, len(await in_streams(cluster_client, (moving,))))


@pytest.mark.parametrize("replicas", [1, 0])
async def test_a_killed_primary_is_replaced_by_its_replica(
    redis_cluster: RedisCluster, cluster_client: ClusterRedis, replicas: int
) -> None:
    """Other lanes go on; no answer but a typed one. With WAIT every accepted order is at the successor."""
    lane = 0
    slot = slot_of(topology.lane_state_key(lane))
    lost = redis_cluster.owner_of(slot)
    other = next(
        lane for lane in range(1, LANES)
        if redis_cluster.owner_of(slot_of(topology.lane_state_key(lane))) is not lost
    )  # fmt: skip
    sale, other_sale = await publish(cluster_client, (lane,)), await publish(cluster_client, (other,))
    link = make_link(redis_cluster, cluster_client, deadline_ms=3000, replicas=replicas)
    buyers, other_buyers = Buyers(link, make_view(sale)), Buyers(link, make_view(other_sale))
    try:
        async with running(link), buying(buyers), buying(other_buyers):
            await buyers.until_accepted(200)
            lost.kill()
            await other_buyers.until_accepted(100)
            successor = await _successor(redis_cluster, slot, lost)
            if replicas:
                # Without a replica every order is UNKNOWN. In this thread: a node ends with the thread that started it.
                lost.start()
            await buyers.until_accepted(100)
            await other_buyers.until_accepted(50)
    finally:
        if lost.process is None:
            lost.start()
    assert successor is not lost
    assert set(buyers.verdicts) <= {"ACCEPTED", "UNKNOWN", "UNAVAILABLE", "OVERLOADED", "STALE"}
    assert set(other_buyers.verdicts) <= {"ACCEPTED", "UNKNOWN", "UNAVAILABLE", "OVERLOADED"}
    stored = set(await in_streams(cluster_client, (lane,)))
    if replicas:
        assert buyers.accepted <= stored
    else:
        assert len(buyers.accepted - stored) < 200  # the last moments before the kill; the watch closes such a sale
    assert other_buyers.accepted <= set(await in_streams(cluster_client, (other,)))


async def _successor(redis_cluster: RedisCluster, slot: int, lost: RedisServer) -> RedisServer:
    async with asyncio.timeout(WAIT_S_MAX):
        while True:
            with contextlib.suppress(LookupError, RedisError):
                owner = await asyncio.to_thread(redis_cluster.owner_of, slot)
                if owner is not lost:
                    return owner
            await asyncio.sleep(0.1)
