"""SIGTERM under load: readiness fails first, no request fails on a keep-alive connection, then exit status 0."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable

import httpx

from devstack.servers import RedisServer
from tests.edge import concurrent, wire
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

CONNECTIONS = 20


async def buy_until_told_to_leave(port: int, requests: list[bytes], seen: Counter[str]) -> None:
    """Send one order after another on a keep-alive connection until an answer closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for request in requests:
            writer.write(request)
            answer = await concurrent.read_answer(reader)
            seen[str(answer.status)] += 1
            if answer.headers.get("connection") == "close":
                seen["told to leave"] += 1
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the requests did not last until the drain")
    except (asyncio.IncompleteReadError, ConnectionError):
        seen["failed"] += 1
    finally:
        writer.close()


async def test_a_drain_fails_no_request(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, buyers: Buyers, publisher: Publisher
) -> None:
    edge = own_edge(redis_url=edge_redis.url, drain_ms="10000", edge_workers="2")
    assert edge.process is not None
    sale = publisher.publish(stock=1_000_000)
    seen: Counter[str] = Counter()
    clients = [
        asyncio.create_task(buy_until_told_to_leave(edge.port, concurrent.orders_of_many(sale, buyers, 150), seen))
        for _ in range(CONNECTIONS)
    ]
    while seen["202"] < 5 * CONNECTIONS:  # noqa: ASYNC110 - counting is simpler than signalling
        await asyncio.sleep(0.01)
    deadline = time.monotonic() + 10
    # Created before the signal: loading its certificates takes longer than a drain may take.
    async with httpx.AsyncClient(verify=False) as client:  # noqa: S501 - plain HTTP
        edge.process.send_signal(signal.SIGTERM)
        # A new connection is still served, and its answer closes it.
        while (answer := await client.get(f"{edge.url}/readyz")).status_code == 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)
    assert answer.json()["missing"] == ["draining"] and answer.headers["connection"] == "close"
    await asyncio.gather(*clients)
    assert seen["failed"] == 0 and seen["told to leave"] == CONNECTIONS
    assert set(seen) <= {"202", "told to leave", "failed"}
    assert await asyncio.to_thread(edge.process.wait, 20) == 0
    assert publisher.stock(sale).reserved == seen["202"], "each accepted order was answered once"
    edge.process = None


def test_what_is_in_flight_is_finished(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, buyers: Buyers, publisher: Publisher
) -> None:
    """A body that is on its way at the signal, and takes longer than the drain waits for new requests."""
    edge = own_edge(redis_url=edge_redis.url)
    assert edge.process is not None
    sale = publisher.publish()
    request = concurrent.order(sale, buyers.headers())
    with wire.Connection(edge.port) as slow, wire.Connection(edge.port) as idle:
        idle.send(wire.request("GET", "/livez"))
        assert idle.receive().status == 200
        slow.send(request[:-10])
        time.sleep(0.1)
        edge.process.send_signal(signal.SIGTERM)
        assert idle.is_closed()
        slow.send(request[-10:])
        answer = slow.receive()
        assert answer.status == 202 and answer.closed
        assert edge.process.wait(20) == 0
    edge.process = None


def test_an_interrupt_from_the_terminal_drains_too(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer
) -> None:
    edge = own_edge(redis_url=edge_redis.url)
    assert edge.process is not None
    edge.process.send_signal(signal.SIGINT)
    assert edge.process.wait(20) == 0
    edge.process = None


def test_a_signal_while_redis_is_away(own_edge: Callable[..., EdgeProcess], own_redis: RedisServer) -> None:
    edge = own_edge(redis_url=own_redis.url)
    own_redis.kill()
    edge.wait_ready(status=503)
    assert edge.stop() == 0
