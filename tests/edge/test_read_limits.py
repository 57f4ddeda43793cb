"""Reads have a rate for each user, few places and bounded scans, so that a crowd of readers delays no order."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis
from redis.asyncio import Redis

from devstack.servers import RedisServer
from domain import ids, topology
from edge import metrics
from edge.metrics import Metrics, SnapshotFolder
from edge.order_store import RECORDS_READ_MAX, OrderStore
from edge.orders import LISTS_RUNNING_MAX, LISTS_WAITING_MAX
from edge.read_limits import Places, PlacesTaken, ReadRate
from edge.routing import Request
from tests.edge import wire
from tests.edge.concurrent import ask_all, orders_of_many
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import TOPOLOGY, Buyers, EdgeProcess, Publisher


def test_rate_of_one_user() -> None:
    now_s = [100.0]
    rate = ReadRate(per_s=10, burst=3, now_s=lambda: now_s[0])
    user, other = uuid4(), uuid4()
    assert [rate.take(user) for _ in range(5)] == [0, 0, 0, 100, 100]
    assert rate.take(other) == 0
    now_s[0] += 0.101
    assert rate.take(user) == 0
    assert rate.take(user) > 0
    now_s[0] += 10
    assert [rate.take(user) for _ in range(4)] == [0, 0, 0, 100]


def test_full_table_forgets_the_least_recent_reader() -> None:
    rate = ReadRate(per_s=1, burst=1, users_max=2, now_s=lambda: 100.0)
    first, second, third = uuid4(), uuid4(), uuid4()
    assert rate.take(first) == rate.take(second) == 0
    assert rate.take(first) > 0  # now the second one read longest ago
    assert rate.take(third) == 0
    assert len(rate) == 2
    assert rate.take(first) > 0
    assert rate.take(second) == 0


async def test_places_are_few_and_so_are_those_who_wait() -> None:
    places = Places(running_max=1, waiting_max=1, wait_s_max=60)
    leave = asyncio.Event()

    async def read() -> None:
        async with places.place():
            await leave.wait()

    running, waiting = asyncio.create_task(read()), asyncio.create_task(read())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(PlacesTaken):
        await read()
    leave.set()
    await asyncio.gather(running, waiting)
    await read()


async def test_waiting_for_a_place_has_a_bound() -> None:
    places = Places(running_max=1, waiting_max=1, wait_s_max=0.01)
    async with places.place():
        for _ in range(2):  # the first one gave its place in the queue back
            with pytest.raises(PlacesTaken):
                async with places.place():
                    raise AssertionError


def test_user_who_reads_too_fast_is_limited_and_alone(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, migrated: Databases, buyers: Buyers
) -> None:
    edge = own_edge(
        redis_url=edge_redis.url, shard_dsns=",".join(migrated.shard_dsns), user_read_rate="1", user_read_burst="3"
    )
    fast, other = ({"Authorization": f"Bearer {buyers.token()}"} for _ in range(2))
    order_id = ids.order_id(unix_ms=1_800_000_000_000, lane=1, bucket=1, random=secrets.randbits(62))
    with httpx.Client(base_url=edge.url) as client:
        assert client.get("/v1/orders", headers=fast).status_code == 200
        assert client.get(f"/v1/orders/{order_id}", headers=fast).status_code == 404
        assert client.post(f"/v1/orders/{order_id}/cancel", headers=fast).status_code == 404
        for method, path in (
            ("GET", "/v1/orders"),
            ("GET", f"/v1/orders/{order_id}"),
            ("POST", f"/v1/orders/{order_id}/cancel"),
        ):
            refused = client.request(method, path, headers=fast)
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["ratelimit"] == '"reads";r=0;t=1'
            assert refused.headers["ratelimit-policy"] == '"reads";q=3;w=3'
        assert client.get("/v1/orders", headers=other).status_code == 200


async def test_a_crowd_of_readers_is_refused_and_orders_are_not(
    own_edge: Callable[..., EdgeProcess], migrated: Databases, buyers: Buyers, tmp_path: Path
) -> None:
    """Redis pauses, so that no list ends while the crowd arrives."""
    server = RedisServer(tmp_path)
    server.start()
    try:
        edge = own_edge(redis_url=server.url, shard_dsns=",".join(migrated.shard_dsns))
        with redis.Redis(port=server.port) as control:
            sale = Publisher(control).publish(stock=10)
            crowd = [
                wire.request("GET", "/v1/orders", {"Authorization": f"Bearer {buyers.token()}"}) for _ in range(200)
            ]
            control.execute_command("CLIENT", "PAUSE", 700, "ALL")
        answers = await ask_all(edge.port, [*crowd, *orders_of_many(sale, buyers, 10)])
        assert [answer.status for answer in answers[200:]] == [202] * 10
        lists = answers[:200]
        refused = [answer for answer in lists if answer.status != 200]
        assert len(lists) - len(refused) <= LISTS_RUNNING_MAX + LISTS_WAITING_MAX
        assert {answer.json["code"] for answer in refused} == {"overloaded"}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        ready = await asyncio.to_thread(httpx.get, f"{edge.url}/readyz")
        assert ready.status_code == 200
    finally:
        server.stop()


async def test_a_list_reads_a_bounded_number_of_records(edge_redis: RedisServer, publisher: Publisher) -> None:
    """Six sales of a thousand records each: the first two are read, each at once."""
    user = uuid4()
    sales = [publisher.publish() for _ in range(6)]
    for sale in sales:
        key = topology.user_key(topology.home_lane(user, sale.lanes), sale.sale_id, user)
        records = {str(n).encode(): uuid4().bytes + bytes(7) for n in range(1000)}
        publisher.redis.hset(key, mapping=records)  # type: ignore[arg-type]
    client = Redis(port=edge_redis.port)
    store = OrderStore(client, [], TOPOLOGY)
    publisher.redis.config_resetstat()
    await store.held_page(user, sales, before=UUID(int=(1 << 128) - 1), limit=21)
    await client.aclose()
    stats: dict[str, Any] = publisher.redis.info("commandstats")
    assert RECORDS_READ_MAX == 2000
    assert stats["cmdstat_hscan"]["calls"] <= 4  # a rehash in progress may take a second call


async def test_scrapes_share_one_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    now_s = [50.0]

    def compute(_: object) -> bytes:
        nonlocal computed
        computed += 1
        return b"text"

    monkeypatch.setattr(Metrics, "_compute", compute)
    scraped = Metrics(SnapshotFolder(tmp_path, 0), 0, dict, now_s=lambda: now_s[0])
    request = Request("GET", "/metrics", "", {}, {}, ())  # type: ignore[arg-type]
    answers = [await scraped.get(request) for _ in range(metrics.SCRAPES_MAX + 2)]
    assert [status for status, _, _ in answers] == [200] * metrics.SCRAPES_MAX + [503] * 2
    assert dict(answers[-1][1])["retry-after"] == "1"
    assert computed == 1
    now_s[0] += metrics.FRESH_S
    assert (await scraped.get(request))[0] == 200
    assert computed == 2
