"""Silent sockets of one address on a real edge: buyers of another address are served, and requests are never cut."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from devstack.servers import RedisServer
from tests.edge.wire import Connection
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

OTHER_ADDRESS = "127.0.0.2"
WAIT_S = 15.0  # half of the time for which Granian lets a silent socket be


@contextlib.contextmanager
def silent(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open sockets that send nothing."""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            each = stack.enter_context(socket.socket())
            each.settimeout(0)
            each.connect_ex(("127.0.0.1", port))
            sockets.append(each)
        yield sockets


def closed(sockets: list[socket.socket]) -> int:
    """How many of them the server has closed."""
    count = 0
    for each in sockets:
        try:
            count += each.recv(1) == b""
        except BlockingIOError:
            continue
        except ConnectionError:
            count += 1
    return count


def ask(port: int, source: str) -> bytes:
    """The status line of /livez for a new connection from this address."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S, source_address=(source, 0)) as buyer:
        buyer.sendall(b"GET /livez HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")
        return buyer.recv(64)


@pytest.mark.parametrize("count", [140, 1000])
def test_silent_sockets_of_one_address_keep_no_buyer_out(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, count: int
) -> None:
    edge = own_edge(redis_url=edge_redis.url, edge_connections_max="128")
    with silent(edge.port, count):
        for _ in range(5):
            assert ask(edge.port, OTHER_ADDRESS).startswith(b"HTTP/1.1 200")
    assert "idle_connections_closed" in edge.log_text


def test_an_address_keeps_its_share_and_others_keep_theirs(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer
) -> None:
    edge = own_edge(redis_url=edge_redis.url, edge_address_connections_max="64")
    with socket.create_connection(("127.0.0.1", edge.port), source_address=(OTHER_ADDRESS, 0)) as other:
        other.settimeout(0)
        with silent(edge.port, 100) as sockets:
            deadline = time.monotonic() + WAIT_S
            while (count := closed(sockets)) < 36 and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.6)  # two more looks
            assert count == closed(sockets) == 36
            assert closed([other]) == 0


def test_a_trusted_proxy_is_exempt(own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer) -> None:
    edge = own_edge(
        redis_url=edge_redis.url, edge_address_connections_max="16", trusted_proxies="127.0.0.1/32", edge_workers="1"
    )
    with silent(edge.port, 100) as sockets:
        time.sleep(1)
        assert closed(sockets) == 0


def test_a_request_in_progress_is_not_cut(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, buyers: Buyers, publisher: Publisher
) -> None:
    edge = own_edge(redis_url=edge_redis.url, edge_address_connections_max="16", request_deadline_ms="5000")
    sale = publisher.publish(stock=100)
    body = b'{"items": [{"sku": "SKU-1", "quantity": 1}]}'
    head = "".join(f"{name}: {value}\r\n" for name, value in buyers.headers().items())
    head = f"POST /v1/sales/{sale.sale_id}/orders HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    with Connection(edge.port) as buyer:
        buyer.send(head.encode() + body[:10])
        with silent(edge.port, 60) as sockets:
            deadline = time.monotonic() + WAIT_S
            while closed(sockets) < 44 and time.monotonic() < deadline:
                time.sleep(0.05)
            buyer.send(body[10:])
            assert buyer.receive().status == 202
