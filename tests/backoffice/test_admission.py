"""Admission closes gaps of Robyn: unbounded and truncated bodies, slow clients, unknown paths, bad framing."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Network, ip_network
from typing import Any

import httpx
import pytest

from backoffice.web.admission.context import Bounds, Permit
from backoffice.web.admission.listener import Admission
from backoffice.web.messages import Stream
from domain.problems import Problem, ProblemDetails
from tests.fixtures.fix_backoffice import BackofficeProcess, Staff

MIB = 1024 * 1024


def exchange(port: int, *parts: bytes, half_close: bool = False, timeout: float = 15) -> bytes:
    """Send raw bytes; read until the answer is complete or the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        for part in parts:
            sock.sendall(part)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        while True:
            head, _, body = received.partition(b"\r\n\r\n")
            length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), None)
            if length is not None and b"100 Continue" not in head and len(body) >= int(length.split(b":")[1]):
                return received
            chunk = sock.recv(65536)
            if not chunk:
                return received
            received += chunk


def problem(raw: bytes) -> tuple[int, dict[str, Any], str]:
    """Status, document and head of a problem answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, raw
    document = json.loads(body)
    status = int(head.split(b" ")[1])
    assert document["status"] == status
    return status, document, head.decode().lower()


def request(method: str, path: str, headers: str = "", body: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}".encode()


def test_unknown_path_and_method(backoffice: BackofficeProcess) -> None:
    status, document, head = problem(exchange(backoffice.port, request("GET", "/nowhere")))
    assert (status, document["code"]) == (404, "not_found")
    assert "\r\ndate: " in head
    for method in ("PUT", "TRACE", "PROPFIND", "CONNECT", "get"):
        status, document, head = problem(exchange(backoffice.port, request(method, "/v1/products")))
        assert (status, document["code"]) == (405, "method_not_allowed")
        assert "allow: get, head, post" in head
    # Our page replaces the one of Robyn, which loads from another host.
    assert b"/static/docs.js" in exchange(backoffice.port, request("GET", "/docs"))


@pytest.mark.parametrize(
    "target",
    [
        "*",
        "//",
        "/v1/products/",
        "/v1//products",
        "/v1/products/../users/me",
        "/%2e%2e/etc/passwd",
        "/v1/sales/{sale_id}",
    ],
)
def test_odd_targets_are_not_found_or_refused(backoffice: BackofficeProcess, target: str) -> None:
    status, _, _ = problem(exchange(backoffice.port, request("GET", target)))
    assert status in (401, 404)


def test_absolute_form_and_odd_queries(backoffice: BackofficeProcess) -> None:
    for target in ("http://x/livez", "/livez?a=<>\"^`{|}'", "/livez?" + "a=%00&" * 100, "/livez?#"):
        assert exchange(backoffice.port, request("GET", target)).startswith(b"HTTP/1.1 200 "), target


def test_http_1_0_without_host(backoffice: BackofficeProcess) -> None:
    assert b"200 OK" in exchange(backoffice.port, b"GET /livez HTTP/1.0\r\n\r\n")


def test_head_has_no_body(backoffice: BackofficeProcess) -> None:
    for path in ("/livez", "/nowhere", "/v1/sales"):
        raw = exchange(backoffice.port, request("HEAD", path, "Connection: close\r\n"), half_close=True)
        assert raw.partition(b"\r\n\r\n")[2] == b"", path
    assert httpx.head(backoffice.url + "/livez").status_code == 200


def test_malformed_heads(backoffice: BackofficeProcess) -> None:
    for raw in (
        b"nonsense\r\n\r\n",
        b"GET /livez HTTP/3.0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",  # no Host
        b"GET /livez HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 65 + b"\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",  # TLS
    ):
        status, document, head = problem(exchange(backoffice.port, raw))
        assert (status, document["code"]) == (400, "malformed_request"), raw
        assert "connection: close" in head


def test_a_rejected_head_request_is_answered_without_a_body(backoffice: BackofficeProcess) -> None:
    raw = exchange(backoffice.port, request("HEAD", "/livez", "A: b\r\n" * 65))
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ") and body == b""


def test_body_cap(backoffice: BackofficeProcess, staff: Staff) -> None:
    declared = request("POST", "/v1/auth/login", "Content-Type: application/json\r\nContent-Length: 8193\r\n")
    status, document, head = problem(exchange(backoffice.port, declared))
    assert (status, document["code"]) == (413, "body_too_large")
    assert "connection: close" in head
    absurd = request("POST", "/v1/auth/login", "Content-Length: 99999999999999999999\r\n")
    assert problem(exchange(backoffice.port, absurd))[0] in (400, 413)
    chunk = f"{65536:x}\r\n".encode() + bytes(65536) + b"\r\n"
    chunked = request("POST", "/v1/auth/login", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
    status, _, _ = problem(exchange(backoffice.port, chunked, *[chunk] * 2))
    assert status == 413
    # A body of exactly the maximum is read and parsed.
    answer = staff.http.post("/v1/products", content=b" " * MIB, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


def test_truncated_bodies_do_not_end_the_process(backoffice: BackofficeProcess) -> None:
    # Without admission, each of these would abort the whole process of Robyn.
    for head, part in (
        ("Content-Length: 100\r\n", b'{"a": '),
        ("Transfer-Encoding: chunked\r\n", b"20\r\nabc"),
        ("Transfer-Encoding: chunked\r\n", b"zz\r\nabc\r\n"),
        ("Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 10\r\n", b"--x"),
    ):
        raw = exchange(backoffice.port, request("POST", "/v1/auth/login", head), part, half_close=True)
        assert problem(raw)[1]["code"] == "malformed_request"
        with socket.create_connection(("127.0.0.1", backoffice.port)) as sock:
            sock.sendall(request("POST", "/v1/auth/login", head) + part)
    assert httpx.get(backoffice.url + "/livez").status_code == 200


def test_content_types(backoffice: BackofficeProcess) -> None:
    url = backoffice.url + "/v1/auth/login"
    body = b'{"email": "a@b.example", "password": "x"}'
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "identity"},
        {"Content-Type": "multipart/form-data; boundary=x"},
    ):
        answer = httpx.post(url, content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), headers
    for media_type in ("application/json", "Application/JSON;charset=UTF-8", 'application/json; charset="utf-8"'):
        answer = httpx.post(url, content=body, headers={"Content-Type": media_type})
        assert answer.json()["code"] == "credentials_invalid"


def test_keep_alive_pipelining_and_continue(backoffice: BackofficeProcess) -> None:
    with socket.create_connection(("127.0.0.1", backoffice.port), timeout=10) as sock:
        sock.sendall(request("GET", "/livez") * 3 + request("GET", "/nowhere", "Connection: close\r\n"))
        received = b""
        while chunk := sock.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 ") == 3
    assert received.count(b"HTTP/1.1 404 ") == 1
    head = "Expect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    with socket.create_connection(("127.0.0.1", backoffice.port), timeout=10) as sock:
        sock.sendall(request("POST", "/v1/auth/login", head))
        assert sock.recv(1024).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"{}")
        assert sock.recv(65536).startswith(b"HTTP/1.1 422 ")


def test_forged_client_header_is_ignored(backoffice: BackofficeProcess) -> None:
    answer = httpx.get(backoffice.url + "/livez", headers={"X-Flashsale-Client": "secret:1.2.3.4"})
    assert answer.status_code == 200


def permit(method: str, path: str, authorization: str | None, _client: str) -> Permit:
    """GET and POST of `/`; the token of staff is "staff"."""
    if path != "/":
        return Permit(ProblemDetails(Problem.NOT_FOUND))
    if method not in ("GET", "POST"):
        return Permit(ProblemDetails(Problem.METHOD_NOT_ALLOWED, allow=("GET", "POST")))
    return Permit(None, MIB, is_staff=authorization == "staff")


@asynccontextmanager
async def admitting(
    bounds: Bounds,
    upstream: Callable[..., Any] | None = None,
    take_stream: Callable[[str], Stream | None] = lambda _: None,
    trusted_proxies: Sequence[IPv4Network] = (),
) -> AsyncIterator[tuple[int, Admission]]:
    """Admission alone, before a scripted upstream, or before a port where nothing listens."""
    server = await asyncio.start_server(upstream or _never, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    if upstream is None:
        server.close()
    admission = Admission(
        robyn=address,
        secret="s",
        permit=permit,
        take_stream=take_stream,
        bounds=bounds,
        trusted_proxies=trusted_proxies,
    )
    port = await admission.start("127.0.0.1", 0)
    yield port, admission
    await admission.drain(0.1)
    server.close()


async def _never(*_: object) -> None:
    raise AssertionError("no request must arrive here")


async def test_slow_clients_are_timed_out() -> None:
    async with admitting(Bounds(head_s_max=0.2, body_s_max=0.2, idle_s_max=0.4)) as (port, _):
        slow_head = await asyncio.to_thread(exchange, port, b"GET / HTT")
        assert problem(slow_head)[1]["code"] == "request_timeout"
        slow_body = await asyncio.to_thread(exchange, port, request("POST", "/", "Content-Length: 5\r\n"), b"ab")
        assert problem(slow_body)[1]["code"] == "request_timeout"
        idle = await asyncio.to_thread(exchange, port)
        assert idle == b""


async def test_upstream_that_is_gone_silent_or_breaks_off() -> None:
    async with admitting(Bounds()) as (port, _):
        raw = await asyncio.to_thread(exchange, port, request("GET", "/"))
        assert problem(raw)[1]["code"] == "internal_error"

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with admitting(Bounds(answer_s_max=0.2), silent) as (port, _):
        raw = await asyncio.to_thread(exchange, port, request("GET", "/"))
        assert problem(raw)[1]["code"] == "outcome_unknown"

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        writer.close()

    async with admitting(Bounds(), breaks) as (port, _):
        raw = await asyncio.to_thread(exchange, port, request("GET", "/"))
        assert raw.endswith(b"abc")  # and the connection closes, so the client sees that the answer is incomplete


async def test_bounds_on_connections_and_requests() -> None:
    held = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await held.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()

    async with admitting(Bounds(connections_max=2, requests_max=1), waits) as (port, _):
        first = asyncio.create_task(asyncio.to_thread(exchange, port, request("GET", "/", "Connection: close\r\n")))
        await asyncio.sleep(0.1)
        refused = await asyncio.to_thread(exchange, port, request("GET", "/"))
        status, document, head = problem(refused)
        assert (status, document["code"]) == (503, "overloaded")
        assert "retry-after: 1" in head
        _, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.1)
        turned_away = await asyncio.to_thread(exchange, port, request("GET", "/"))
        assert problem(turned_away)[1]["code"] == "overloaded"
        held.set()
        assert (await first).startswith(b"HTTP/1.1 204 ")
        idle_writer.close()


async def _ends_when_told(held: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    await held.wait()
    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    writer.close()


async def test_requests_whose_body_never_comes_keep_no_one_out() -> None:
    """260 of them locked out staff, who could not pause a sale, for as long as somebody liked."""
    bounds = Bounds(requests_max=4, client_requests_max=4, staff_requests_kept=1, body_s_max=60)
    async with admitting(bounds, _answers) as (port, admission):
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(12)]
        for sock in silent:
            sock.sendall(request("POST", "/", "Content-Length: 5\r\n"))
        await until(lambda: admission.requests == 3)
        for _ in range(3):
            raw = await asyncio.to_thread(exchange, port, request("GET", "/", "Connection: close\r\n"))
            assert raw.startswith(b"HTTP/1.1 204 ")
        displaced = await asyncio.to_thread(silent[0].recv, 65536)
        assert problem(displaced)[1]["code"] == "request_timeout"
        for sock in silent:
            sock.close()


async def test_places_of_busy_requests_are_bounded_by_client_and_kept_for_staff() -> None:
    held = asyncio.Event()
    bounds = Bounds(requests_max=4, client_requests_max=2, staff_requests_kept=1)
    networks = (ip_network("127.0.0.0/8"),)
    upstream = partial(_ends_when_told, held)

    async def busy(client: int, *, staff: bool = False) -> bytes:
        head = f"X-Forwarded-For: 198.51.100.{client}\r\nConnection: close\r\n"
        head += "Authorization: staff\r\n" * staff
        return await asyncio.to_thread(exchange, port, request("GET", "/", head))

    async with admitting(bounds, upstream, trusted_proxies=networks) as (port, admission):
        waiting = [asyncio.create_task(busy(client)) for client in (1, 1, 2)]
        await until(lambda: admission.requests == 3)
        assert problem(await busy(1))[1]["code"] == "overloaded", "this client has all that one may have"
        assert problem(await busy(3))[1]["code"] == "overloaded", "the last place is kept for staff"
        waiting.append(asyncio.create_task(busy(3, staff=True)))
        await until(lambda: admission.requests == 4)
        held.set()
        assert all(raw.startswith(b"HTTP/1.1 204 ") for raw in await asyncio.gather(*waiting))


async def test_silent_connections_keep_no_one_out() -> None:
    """1,030 of them took all connections. The one that has been silent longest makes room."""
    bounds = Bounds(connections_max=6, client_connections_max=4, idle_s_max=60)
    async with admitting(bounds, _answers) as (port, _):
        silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(4)]
        await asyncio.sleep(0.05)
        others = [
            socket.create_connection(("127.0.0.1", port), timeout=10, source_address=("127.0.0.2", 0)) for _ in range(2)
        ]
        for _ in range(3):
            raw = await asyncio.to_thread(exchange, port, request("GET", "/", "Connection: close\r\n"))
            assert raw.startswith(b"HTTP/1.1 204 ")
        assert silent[0].recv(1) == b"", "the one of the same address that was silent longest"
        for sock in (*silent[1:], *others):
            sock.sendall(request("GET", "/"))
            assert (await asyncio.to_thread(sock.recv, 65536)).startswith(b"HTTP/1.1 204 ")
        for sock in (*silent, *others):
            sock.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket has no event to wait for
            await asyncio.sleep(0.01)


def test_routes_and_tokens_come_before_bodies(backoffice: BackofficeProcess) -> None:
    """A body of a megabyte was read and parsed for a path that does not exist, and for callers without a token."""
    for method, path, code in (
        ("POST", "/nowhere", "not_found"),
        ("PUT", "/v1/sales", "method_not_allowed"),
        ("POST", "/v1/sales", "token_missing"),
        ("POST", "/v1/products/import", "token_missing"),
    ):
        raw = exchange(backoffice.port, request(method, path, f"Content-Length: {MIB}\r\n"))
        assert problem(raw)[1]["code"] == code
        raw = exchange(backoffice.port, request(method, path, f"Content-Length: {MIB}\r\nExpect: 100-continue\r\n"))
        assert problem(raw)[1]["code"] == code
        # A short body is read, and the connection goes on.
        with socket.create_connection(("127.0.0.1", backoffice.port), timeout=10) as sock:
            sock.sendall(request(method, path, "Content-Length: 2\r\n") + b"{}")
            sock.sendall(request("GET", "/livez", "Connection: close\r\n"))
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
        assert code.encode() in received and received.count(b"HTTP/1.1 200 ") == 1


def test_small_chunks_are_bounded(backoffice: BackofficeProcess, staff: Staff) -> None:
    """One-byte chunks cost six seconds of the event loop a megabyte."""
    head = f"Authorization: Bearer {staff.token}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    for count, status in ((200, 422), (300, 400)):
        body = b"1\r\n{\r\n" + b"1\r\n \r\n" * count + b"1\r\n}\r\n0\r\n\r\n"
        raw = exchange(backoffice.port, request("POST", "/v1/products", head), body)
        assert problem(raw)[0] == status
    large = json.dumps({"name": "x" * 900_000}).encode()
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in batched(large, 600)) + b"0\r\n\r\n"
    assert problem(exchange(backoffice.port, request("POST", "/v1/products", head), body))[0] == 422


def batched(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        try:
            await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize("kept", [True, False], ids=["on a kept connection", "on a new connection"])
async def test_a_request_that_arrived_before_the_drain_is_answered(kept: bool) -> None:
    async with admitting(Bounds(), _answers) as (port, admission):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            if kept:
                await asyncio.to_thread(sock.sendall, request("GET", "/"))
                assert (await asyncio.to_thread(sock.recv, 65536)).startswith(b"HTTP/1.1 204 ")
            # The kernel has the request, and the loop has had no turn yet to read it.
            sock.sendall(request("GET", "/"))
            await admission.drain(5)
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 204 ")
            assert b"connection: close" in answer.lower()
            assert sock.recv(1) == b""


async def test_a_request_that_arrives_just_after_the_drain_began_is_answered() -> None:
    async with admitting(Bounds(linger_s_max=5.0), _answers) as (port, admission):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            await asyncio.to_thread(sock.sendall, request("GET", "/"))
            assert (await asyncio.to_thread(sock.recv, 65536)).startswith(b"HTTP/1.1 204 ")
            draining = asyncio.create_task(admission.drain(10))
            await asyncio.sleep(0.05)
            sock.sendall(request("GET", "/"))
            await draining
            assert b"connection: close" in sock.recv(65536).lower()


async def test_a_problem_during_the_drain_announces_the_end() -> None:
    async with admitting(Bounds(), _answers) as (port, admission):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(request("GET", "/nowhere") + request("GET", "/nowhere"))
            await admission.drain(5)
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
    assert received.count(b"HTTP/1.1 404 ") == 1
    assert b"connection: close" in received.lower()


async def test_the_drain_ends_connections_without_a_request() -> None:
    async with admitting(Bounds(linger_s_max=0.1), _answers) as (port, admission):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as fresh:
            await asyncio.sleep(0.05)
            async with asyncio.timeout(5):
                await admission.drain(60)
            assert fresh.recv(1) == b""


async def test_a_stream_is_passed_on_piece_by_piece() -> None:
    go_on = asyncio.Event()

    async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await writer.drain()

    async with admitting(Bounds(), streams) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("GET", "/"))
        await reader.readuntil(b"one\r\n")
        go_on.set()
        assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"3\r\ntwo")
        writer.close()


@pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Content-Type", "Content-Encoding", "If-Match"])
def test_headers_that_may_be_given_once(backoffice: BackofficeProcess, name: str) -> None:
    raw = exchange(backoffice.port, request("GET", "/livez", f"{name}: a\r\n{name.upper()}: a\r\n"))
    status, document, head = problem(raw)
    assert (status, document["code"]) == (400, "malformed_request")
    assert "\r\nconnection: close" in head
