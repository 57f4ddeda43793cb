"""The direct door's own HTTP: framing, pipelining, half-closed and slow peers, bounds, typed answers, random bytes."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devstack.servers import RedisServer
from domain.sales import SaleDefinition
from tests.edge import concurrent, wire
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

pytestmark = pytest.mark.doors("direct")

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n"
STATUSES = {200, 202, 204, 400, 401, 404, 405, 408, 409, 413, 415, 422, 429, 503}
PIPELINED_MAX = 64
READ_MAX = 256 * 1024  # uvloop's buffer


@pytest.fixture
def sale(publisher: Publisher) -> SaleDefinition:
    return publisher.publish(stock=(1000, 0))


def everything(connection: wire.Connection) -> list[wire.Reply]:
    """All answers until the server closes."""
    answers = []
    with contextlib.suppress(wire.NoReply):
        while True:
            answers.append(connection.receive())
    return answers


def with_framing(order: bytes, *lines: bytes, body: bytes) -> bytes:
    """The order's head with other framing headers and body."""
    head = order.partition(b"\r\n\r\n")[0].split(b"\r\n")
    kept = [line for line in head if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*kept, *lines]) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: edge\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: \xc3\xb6\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\nName : value\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\nName: one\r\n two\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\nName: \x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\nNa\x01me: a\r\n\r\n",
        b"GET example.com/livez HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"CONNECT edge:443 HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\nExpect: miracles\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: edge\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_served_gets_a_typed_answer(edge: EdgeProcess, data: bytes) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(data)
        answer = connection.receive()
        assert (answer.status, answer.code) == (400, "malformed_request")
        assert "date" in answer.headers and connection.is_closed()


def test_a_refusal_survives_bytes_that_follow(edge: EdgeProcess) -> None:
    """A full close with unread bytes would be a reset, which destroys the answer on its way."""
    for _ in range(20):
        with wire.Connection(edge.port) as connection:
            connection.send(b"nonsense\r\n\r\n" + b"x" * 100_000)
            with contextlib.suppress(ConnectionError):
                connection.send(b"y" * 50_000)
            assert connection.receive().status == 400


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 10", b"Content-Length: 11"),
        (b"Content-Length: 44", b"Content-Length: 44"),
        (b"Content-Length: +44",),
        (b"Content-Length: 44, 44",),
        (b"Content-Length: 0x2c",),
        (b"Content-Length: 99999999999999999999",),
        (b"Content-Length: 44", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 44"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: identity, chunked",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: , chunked",),
        (b"Transfer-Encoding:", b"Connection: upgrade", b"Upgrade: h2c"),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding : chunked",),
        (b"Transfer-Encoding: \x0bchunked",),
        (b"X: y\nTransfer-Encoding: chunked",),
    ],
)
def test_doubtful_framing_is_refused_and_no_second_request_is_read(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, lines: tuple[bytes, ...]
) -> None:
    """A front server may read another end of the request than this one (request smuggling, RFC 9112, section 11.2)."""
    sale = publisher.publish(stock=10)
    inner = concurrent.order(sale, buyers.headers())
    body = b'{"items": [{"sku": "SKU-1", "quantity": 1}]}'
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    for payload in (body, chunked):
        with wire.Connection(edge.port) as connection:
            connection.send(with_framing(concurrent.order(sale, buyers.headers()), *lines, body=payload) + inner)
            answers = everything(connection)
        assert [answer.code for answer in answers][-1] in ("malformed_request", "body_too_large"), answers
        assert len(answers) == 1
    assert publisher.stock(sale).reserved == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"fffffffffffffffff\r\n",
        b"2\r\n{}\r\n0\r\nX-Trailer: a\r\n\r\n",
    ],
)
def test_doubtful_chunks_are_refused(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition, payload: bytes) -> None:
    order = with_framing(concurrent.order(sale, buyers.headers()), b"Transfer-Encoding: chunked", body=payload)
    with wire.Connection(edge.port) as connection:
        connection.send(order + LIVEZ)
        answers = everything(connection)
    assert [answer.code for answer in answers] in (["malformed_request"], ["body_too_large"])


@pytest.mark.parametrize("place", ["header", "extension", "chunks", "target"])
def test_a_request_without_an_end_is_cut(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition, place: str) -> None:
    """The parser collects a header's value and skips chunk extensions without a bound of its own."""
    head = concurrent.order(sale, buyers.headers()).partition(b"\r\n\r\n")[0]
    chunked = with_framing(head + b"\r\n\r\n", b"Transfer-Encoding: chunked", body=b"")
    begin, more = {
        "header": (head + b"\r\nX-Long: ", b"a" * 1024),
        "extension": (chunked + b"1;", b"a" * 1024),
        "chunks": (chunked, b"1\r\n \r\n" * 1000),
        "target": (b"GET /", b"a" * 1024),
    }[place]
    with wire.Connection(edge.port) as connection:
        connection.send(begin)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 4 * READ_MAX:
                connection.send(more)
                sent += len(more)
        assert connection.receive().status in (400, 413)
        assert connection.is_closed()


def test_pipelined_answers_keep_their_order(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition
) -> None:
    """Orders wait for Redis, refusals do not, and other routes are tasks: the answers still come in order."""
    expected, data = [], b""
    for number in range(60):
        kind = number % 4
        if kind == 0:
            data += concurrent.order(sale, buyers.headers())
        elif kind == 1:
            data += concurrent.order(sale, {**buyers.headers(), "Authorization": "Bearer x"})
        elif kind == 2:
            data += LIVEZ
        else:
            data += concurrent.order(sale, buyers.headers(), sku="SKU-2")
        expected.append({0: 202, 1: 401, 2: 200, 3: 409}[kind])
    with wire.Connection(edge.port) as connection:
        connection.send(data)
        assert [connection.receive().status for _ in expected] == expected
        connection.send(LIVEZ)
        assert connection.receive().status == 200
    assert publisher.stock(sale).reserved == 15


def test_too_many_pipelined_requests_end_the_connection(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition
) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(b"".join(concurrent.order(sale, buyers.headers()) for _ in range(PIPELINED_MAX + 10)))
        answers = everything(connection)
    assert [answer.status for answer in answers] == [202] * PIPELINED_MAX
    assert publisher.stock(sale).reserved == PIPELINED_MAX, "no order without an answer"


def test_requests_after_one_that_closes_are_not_served(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition
) -> None:
    last = concurrent.order(sale, {**buyers.headers(), "Connection": "close"})
    with wire.Connection(edge.port) as connection:
        connection.send(last + concurrent.order(sale, buyers.headers()))
        answers = everything(connection)
    assert [(answer.status, answer.closed) for answer in answers] == [(202, True)]
    assert publisher.stock(sale).reserved == 1


def test_the_first_answer_of_version_1_0_is_the_last_one(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition
) -> None:
    """The door closes connections of version 1.0, so it must not place a second order on one."""
    order = concurrent.order(sale, {**buyers.headers(), "Connection": "keep-alive"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    other = concurrent.order(sale, {**buyers.headers(), "Connection": "keep-alive"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    with wire.Connection(edge.port) as connection:
        connection.send(order + other)
        assert [(answer.status, answer.closed) for answer in everything(connection)] == [(202, True)]
    assert publisher.stock(sale).reserved == 1
    body = b'{"items": [{"sku": "SKU-1", "quantity": 1}]}'
    chunked = with_framing(other, b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert wire.ask(edge.port, chunked).code == "malformed_request", "version 1.0 has no chunks"
    assert publisher.stock(sale).reserved == 1


def test_no_order_loses_its_answer_to_a_request_that_closes(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition
) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(
            concurrent.order(sale, buyers.headers())
            + wire.request("GET", "ftp://edge/livez")
            + concurrent.order(sale, buyers.headers())
        )
        assert [answer.status for answer in everything(connection)] == [202, 400]
    assert publisher.stock(sale).reserved == 1


def test_many_requests_after_the_last_one_cost_no_answer(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition
) -> None:
    """A client that sends far more requests than the door serves still gets the answers of those that it serves."""
    data = b"".join(concurrent.order(sale, buyers.headers()) for _ in range(PIPELINED_MAX))
    with wire.Connection(edge.port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.send(data + LIVEZ * (READ_MAX // len(LIVEZ)) * 2)
        assert [answer.status for answer in everything(connection)] == [202] * PIPELINED_MAX
    assert publisher.stock(sale).reserved == PIPELINED_MAX


def test_an_unknown_method_is_not_taken_for_the_request_before_it(
    edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition
) -> None:
    refused = concurrent.order(sale, {**buyers.headers(), "Authorization": "Bearer x"})
    unknown = LIVEZ.replace(b"GET", b"BREW")
    assert wire.ask(edge.port, unknown).code == "method_not_allowed"
    with wire.Connection(edge.port) as connection:
        connection.send(refused + unknown)
        assert [answer.code for answer in everything(connection)] == ["token_invalid", "malformed_request"]


def test_a_half_closed_peer_gets_its_answers(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(concurrent.order(sale, buyers.headers()) + LIVEZ)
        connection.end()
        assert [answer.status for answer in everything(connection)] == [202, 200]


def test_a_head_that_breaks_off_gets_no_answer(edge: EdgeProcess) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(LIVEZ + LIVEZ[:20])
        assert connection.receive().status == 200
        connection.end()
        assert connection.is_closed()


def test_one_byte_at_a_time(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    with wire.Connection(edge.port) as connection:
        for byte in concurrent.order(sale, buyers.headers()):
            connection.send(bytes([byte]))
        assert connection.receive().status == 202


def test_versions_and_forms_of_http(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    for data, closes in (
        (b"GET /livez HTTP/1.0\r\n\r\n", True),
        (b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET http://edge/livez HTTP/1.1\r\nHost: edge\r\n\r\n", False),
        (b"\r\n" + LIVEZ, False),
        (b"GET /livez?a=b HTTP/1.1\r\nhOST:edge \t\r\n\r\n", False),
    ):
        with wire.Connection(edge.port) as connection:
            connection.send(data)
            answer = connection.receive()
            assert (answer.status, answer.closed) == (200, closes)
            if closes:
                assert connection.is_closed()
    absolute = concurrent.order(sale, buyers.headers()).replace(b"POST /", b"POST http://edge/")
    assert wire.ask(edge.port, absolute).status == 202
    spaced = concurrent.order(
        sale, {**buyers.headers(), "Idempotency-Key": "a key of its own".replace(" ", "-") + " \t"}
    )
    assert wire.ask(edge.port, spaced).status == 202


def test_an_upgrade_is_ignored(edge: EdgeProcess, buyers: Buyers, publisher: Publisher, sale: SaleDefinition) -> None:
    """Java's client offers HTTP/2 with its first request; the connection goes on with HTTP/1.1."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    get = wire.request("GET", "/livez", offer)
    order = concurrent.order(sale, {**buyers.headers(), **offer})
    with wire.Connection(edge.port) as connection:
        for data, expected in ((get, [200]), (order, [202]), (get + order + LIVEZ, [200, 202, 200])):
            connection.send(data)
            assert [connection.receive().status for _ in expected] == expected
    assert publisher.stock(sale).reserved == 1, "the same order"
    assert wire.ask(edge.port, get.replace(b"Host: edge", b"Host:")).status == 200, "an empty header is kept"


def test_continue_comes_before_the_body(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    order = concurrent.order(sale, {**buyers.headers(), "Expect": "100-continue"})
    head, _, body = order.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", edge.port), timeout=wire.WAIT_S) as raw:
        raw.sendall(head + b"\r\n\r\n")
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert raw.recv(100).startswith(b"HTTP/1.1 202 Accepted\r\n")
    with socket.create_connection(("127.0.0.1", edge.port), timeout=wire.WAIT_S) as raw:
        raw.sendall(order.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert raw.recv(100).startswith(b"HTTP/1.1 202 Accepted\r\n"), "version 1.0 has no interim answers"


def test_a_second_value_that_is_not_ascii_is_seen(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    """Granian hides it."""
    for name in ("Authorization", "Idempotency-Key", "Content-Type"):
        order = concurrent.order(sale, buyers.headers()).replace(b"Host: edge", f"Host: edge\r\n{name}: ö".encode(), 1)
        answer = wire.ask(edge.port, order)
        assert (answer.status, answer.code) == (400, "malformed_request")


def test_a_slow_head_is_answered_and_silence_is_not(edge: EdgeProcess) -> None:
    begun = time.monotonic()
    with wire.Connection(edge.port) as slow, wire.Connection(edge.port) as silent:
        slow.send(b"GET /livez HTTP/1.1\r\n")
        answer = slow.receive()
        assert (answer.status, answer.code, answer.closed) == (408, "request_timeout", True)
        with pytest.raises(wire.NoReply):
            silent.receive()
    assert time.monotonic() - begun >= 4.5, "the time for a head is 5 seconds"


def test_a_peer_that_does_not_read_is_no_burden(edge: EdgeProcess) -> None:
    """Its requests are not read either, so that its answers take a bounded memory; the connection ends in time."""
    document = b"GET /openapi.json HTTP/1.1\r\nHost: edge\r\n\r\n"
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(1.0)
        greedy.connect(("127.0.0.1", edge.port))
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < 64 * 1024 * 1024:
                sent += greedy.send(document * 60)
        assert sent < 64 * 1024 * 1024, "the door stops reading"
        assert wire.ask(edge.port, LIVEZ).status == 200


def test_more_connections_than_places_are_closed(own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer) -> None:
    """Each of them has a request in progress, so none gives way."""
    edge = own_edge(redis_url=edge_redis.url, edge_connections_max="128", edge_address_connections_max="128")
    head = LIVEZ[:-2]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(wire.Connection(edge.port)) for _ in range(128)]
        for each in held:
            each.send(head)
        time.sleep(0.2)
        with pytest.raises((wire.NoReply, ConnectionError)):
            wire.ask(edge.port, LIVEZ)
        for each in held:
            each.send(b"\r\n")
            assert each.receive().status == 200
    deadline = time.monotonic() + wire.WAIT_S
    while wire.ask(edge.port, LIVEZ).status != 200:
        assert time.monotonic() < deadline
    text = wire.ask(edge.port, LIVEZ.replace(b"livez", b"metrics")).body.decode()
    assert 'flashsale_edge_direct_connections_refused_total{worker="0"} 1.0' in text


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_random_damage_never_stops_the_door(edge: EdgeProcess, buyers: Buyers, publisher: Publisher, seed: int) -> None:
    """Valid requests with random damage, in random pieces: typed answers, and each accepted order is answered."""
    chance = random.Random(seed)
    sale = publisher.publish(stock=100_000)
    accepted = 0
    for _ in range(40):
        requests = [concurrent.order(sale, buyers.headers()) for _ in range(chance.randint(1, 4))]
        requests.insert(chance.randrange(4), chance.choice([b"", LIVEZ, wire.request("GET", "ftp://edge/")]))
        data = b"".join(requests)
        damaged = bytearray(data)
        for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
            at = chance.randrange(len(damaged))
            kind = chance.random()
            if kind < 0.4:
                damaged[at] = chance.randrange(256)
            elif kind < 0.6:
                del damaged[at : at + chance.randint(1, 30)]
            elif kind < 0.7:
                damaged[at:at] = damaged[at : at + chance.randint(1, 200)]
            elif kind < 0.85:
                damaged[at:at] = chance.choice(
                    [b"\r\n", b"\n", b"\x00", b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.0"]
                )
            else:
                at = damaged.find(b"\r\n", at) + 2
                damaged[at:at] = chance.choice(
                    [b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n"]
                )
        with wire.Connection(edge.port) as connection:
            at = 0
            with contextlib.suppress(ConnectionError):
                while at < len(damaged):
                    size = chance.choice([1, 7, 100, 10_000])
                    connection.send(bytes(damaged[at : at + size]))
                    at += size
                connection.end()
            for answer in everything(connection):
                assert answer.status in STATUSES, (seed, bytes(damaged))
                if answer.status >= 400:
                    assert answer.code
                accepted += answer.status == 202 and "idempotency-replayed" not in answer.headers
                if answer.status == 202:
                    assert json.loads(answer.body)["sale_id"] == str(sale.sale_id)
    assert publisher.stock(sale).reserved == accepted, f"seed {seed}"
    sys.stdout.write(f"seed {seed}: {accepted} accepted\n")
    assert wire.ask(edge.port, LIVEZ).status == 200
