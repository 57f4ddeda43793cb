"""Redis is killed during requests and restarted: each request is answered in time, and the answers are true."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import redis

from devstack.servers import RedisServer
from domain import topology
from domain.sales import LaneSaleState
from reservation.scripts import CLOSE
from tests.edge.concurrent import Answer, ask, ask_all, order, orders_of_many
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

DEADLINE_MS = 1500
TYPED = {202, 503, 504}


async def test_a_restart_under_orders(
    own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers
) -> None:
    """No order that was answered 202 is lost. An unknown outcome is known after a repeat with the same key."""
    publisher = Publisher(redis.Redis(port=own_redis.port))
    sale = publisher.publish(stock=100_000)
    edge = own_edge(redis_url=own_redis.url, request_deadline_ms=str(DEADLINE_MS))
    requests = orders_of_many(sale, buyers, 400)
    answers: dict[bytes, Answer] = {}

    async def buy(share: list[bytes]) -> None:
        for request in share:
            answers[request] = await ask(edge.port, request)
            await asyncio.sleep(0.01)

    shares = [asyncio.create_task(buy(requests[n::20])) for n in range(20)]
    while len(answers) < 60:  # noqa: ASYNC110 - counting is simpler than signalling
        await asyncio.sleep(0.01)
    await asyncio.to_thread(own_redis.kill)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(own_redis.start)
    await asyncio.gather(*shares)

    statuses = Counter(answer.status for answer in answers.values())
    assert set(statuses) <= TYPED and statuses[202] > 60, statuses
    unsettled = [request for request, answer in answers.items() if answer.status != 202]
    for request in unsettled:
        assert answers[request].json["code"] in ("dependency_unavailable", "overloaded", "outcome_unknown")
        again = await ask(edge.port, request)
        assert again.status == 202, again
        answers[request] = again
    order_ids = {answer.json["order_id"] for answer in answers.values()}
    assert len(order_ids) == len(requests)
    for order_id in order_ids:
        assert publisher.redis.exists(topology.order_key(UUID(order_id)))
    stock = publisher.stock(sale)
    assert stock.reserved == len(requests) and stock.is_balanced
    assert edge.wait_ready().status_code == 200


async def test_every_route_is_typed_and_in_time_while_redis_is_away(
    own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers
) -> None:
    publisher = Publisher(redis.Redis(port=own_redis.port))
    sale, unread = publisher.publish(), publisher.publish()
    edge = own_edge(redis_url=own_redis.url, request_deadline_ms="500")
    buyer = uuid4()
    own = {"Authorization": f"Bearer {buyers.token(buyer)}"}
    placed = await ask(edge.port, order(sale, buyers.headers(buyer)))
    own_redis.kill()
    async with httpx.AsyncClient(base_url=edge.url, timeout=10) as client:
        order_path = f"/v1/orders/{placed.json['order_id']}"
        body = {"items": [{"sku": "SKU-1", "quantity": 1}]}
        answers = await asyncio.gather(
            client.post(f"/v1/sales/{sale.sale_id}/orders", headers=buyers.headers(), json=body),
            client.post(f"/v1/sales/{uuid4()}/orders", headers=buyers.headers(), json=body),
            client.get(f"/v1/sales/{unread.sale_id}"),
            client.get(order_path, headers=own),
            client.get("/v1/orders", headers=own),
            client.post(f"{order_path}/cancel", headers=own),
        )
        for answer in answers:
            assert answer.status_code in (503, 504), answer.request.url
            code = answer.json()["code"]
            assert code in ("dependency_unavailable", "overloaded", "outcome_unknown"), answer.request.url
        assert (await client.get("/livez")).status_code == 200
        own_redis.start()
        # Everything recovers without intervention, subscriptions included.
        await asyncio.to_thread(edge.wait_ready)
        assert (await client.get(order_path, headers=own)).json()["order_id"] == placed.json["order_id"]
        cancelled = await client.post(f"{order_path}/cancel", headers=own)
        assert cancelled.json()["status"] == "cancelled"
        changed = publisher.change(sale, state=LaneSaleState.PAUSED)
        deadline = time.monotonic() + 10
        while (await client.get(f"/v1/sales/{changed.sale_id}")).json()["state"] != "paused":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_a_redis_that_hangs(own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers) -> None:
    """Sent orders have an unknown outcome. Orders that waited, or found the queue full, were not executed."""
    publisher = Publisher(redis.Redis(port=own_redis.port))
    sale = publisher.publish(stock=1000)
    edge = own_edge(
        redis_url=own_redis.url,
        request_deadline_ms="700",
        batches_in_flight_max="1",
        batch_size_max="1",
        edge_queue_length_max="10",
    )
    assert (await ask(edge.port, order(sale, buyers.headers()))).status == 202
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        requests = orders_of_many(sale, buyers, 30)
        answers = dict(zip(requests, await ask_all(edge.port, requests), strict=True))
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    codes = Counter(answer.json["code"] for answer in answers.values())
    assert set(codes) == {"outcome_unknown", "overloaded"}, codes
    assert codes["outcome_unknown"] >= 1 and codes["overloaded"] >= 19
    assert {answer.status for answer in answers.values()} == {503, 504}
    # Each buyer repeats the request with the same key and learns the outcome: one order each.
    for request in answers:
        again = await ask(edge.port, request)
        assert again.status == 202, again
    assert publisher.stock(sale).reserved == 31


@contextmanager
def gone_back(server: RedisServer, kept: Path) -> Iterator[None]:
    """Kill Redis at the end, and restart it with the append-only file that it had at the beginning."""
    files = server.folder / "appendonlydir"
    shutil.copytree(files, kept)
    yield
    server.kill()
    shutil.rmtree(files)
    shutil.copytree(kept, files)
    server.start()


@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_redis_that_went_back_gets_no_order_before_it_was_closed(
    own_edge: Callable[..., EdgeProcess], own_redis: RedisServer, buyers: Buyers, tmp_path: Path, is_closed: bool
) -> None:
    """The edge knows how far the lane had come. It waits for the lane to be closed, but only for a limited time."""
    publisher = Publisher(redis.Redis(port=own_redis.port))
    sale = publisher.publish(stock=1000)
    edge = own_edge(redis_url=own_redis.url, request_deadline_ms="500")
    requests = orders_of_many(sale, buyers, 100)
    assert {answer.status for answer in await ask_all(edge.port, requests[:20])} == {202}
    with gone_back(own_redis, tmp_path / "kept"):
        for request in requests[20:60]:  # enough requests for the edge to look at the lanes meanwhile
            assert (await ask(edge.port, request)).status == 202
            await asyncio.sleep(0.02)
    lane = sale.lanes[0]
    answers = await ask_all(edge.port, requests[60:80])
    assert {(answer.status, answer.json["code"]) for answer in answers} == {(503, "dependency_unavailable")}
    assert int(publisher.redis.hget(topology.lane_state_key(lane), "seq")) == 20
    if is_closed:
        keys = (topology.lane_state_key(lane), topology.lane_stream_key(lane))
        assert publisher.redis.eval(CLOSE.source, 2, *keys, 60, "", 0, "")[:2] == [1, 20]
        answers = await ask_all(edge.port, requests[80:])
        assert {(answer.status, answer.json["code"]) for answer in answers} == {(503, "dependency_unavailable")}
        assert publisher.stock(sale).reserved == 20
        return
    deadline = time.monotonic() + 10
    while (await ask(edge.port, requests[80])).status != 202:
        assert time.monotonic() < deadline
    assert publisher.stock(sale).reserved == 21
