"""Ten thousand random bodies and header sets: each gets a typed answer other than 5xx, and no request hangs.

A Hypothesis example is the seed of many requests on keep-alive connections. A failure message contains the request.
"""

from __future__ import annotations

import json
import random
import string
import sys
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge import wire
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

EXAMPLES = 20
REQUESTS = 500
BODY_MAX = 6000  # some exceed the cap
_SERVER = frozenset({400, 414, 431})  # answers of the HTTP parser below the application, without a body
_TEXT = string.ascii_letters + string.digits + " \t!#$%&'()*+,-./:;<=>?@[]^_`{|}~\"\\"


class Generator:
    """Random requests. About one in four is a valid order; the others are nearly valid, or noise."""

    def __init__(self, seed: int, *, order_path: str, tokens: list[str]) -> None:
        self._random = random.Random(seed)
        self._order_path = order_path
        self._tokens = tokens

    def request(self) -> bytes:
        chance = self._random.random()
        method = "POST" if chance < 0.9 else self._pick(["GET", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "X"])
        path = self._order_path if self._random.random() < 0.9 else self._path()
        body = self._body()
        lines = [f"{method} {path} HTTP/1.1", "Host: edge", *self._headers()]
        if self._random.random() < 0.1:
            lines.append("Transfer-Encoding: chunked")
            payload = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in self._cut(body)) + b"0\r\n\r\n"
        else:
            lines.append(f"Content-Length: {len(body)}")
            payload = body
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + payload

    def _headers(self) -> list[str]:
        headers = {
            "Authorization": f"Bearer {self._pick(self._tokens)}",
            "Idempotency-Key": self._pick([f"{self._random.getrandbits(64):x}", '"quoted"', self._visible(70)]),
            "Content-Type": self._pick(["application/json", "application/json; charset=utf-8"]),
        }
        while self._random.random() < 0.4:
            name = self._pick(
                [*headers, "X-Any", "Content-Encoding", "Origin", "If-None-Match", "Expect", "Accept", "Cookie"]
            )
            value = self._pick(
                [
                    *(
                        "",
                        " ",
                        "\x80\xff",
                        "a" * 3000,
                        "gzip",
                        "*",
                        "Bearer",
                        "Bearer  ",
                        "Basic x",
                        "application/jsonp",
                    ),
                    self._visible(40),
                    self._token(),
                    self._noise(12).decode("latin-1").translate(dict.fromkeys(range(32))),
                ]
            )
            if name == "Expect" and "100" in value:
                continue  # the server would wait for the rest
            headers[name] = value
        for name in [name for name in headers if self._random.random() < 0.05]:
            del headers[name]
        lines = [f"{name}: {value}" for name, value in headers.items()]
        if self._random.random() < 0.05:
            lines.append(self._pick(lines) if lines else "X: y")
        self._random.shuffle(lines)
        return lines

    def _token(self) -> str:
        token = self._pick(self._tokens)
        place = self._random.randrange(len(token))
        return "Bearer " + token[:place] + self._pick(list(".-_=Aa0 ")) + token[place + self._random.randrange(2) :]

    def _body(self) -> bytes:
        make: Callable[[], bytes] = self._pick(
            [self._order, self._order, self._near_order, self._mutated, self._json, self._raw]
        )
        return make()[:BODY_MAX]

    def _order(self) -> bytes:
        skus = self._random.sample(["SKU-1", "SKU-2", "SKU-3"], self._random.randint(1, 3))
        items = [{"sku": sku, "quantity": self._random.randint(1, 3)} for sku in skus]
        return json.dumps({"items": items}, indent=self._pick([None, 1, "\t"])).encode()

    def _near_order(self) -> bytes:
        def line() -> Any:
            sku = self._pick(["SKU-1", "SKU-2", "NONE", "", 1, None, "\u00e9", "x" * 65, "a\x00b"])
            quantity = self._pick([1, 0, -1, 100, 101, 1.5, 10**30, "1", None, True, [], {}])
            item = {"sku": sku, "quantity": quantity}
            if self._random.random() < 0.2:
                item[self._pick(["price", "sku ", ""])] = 1
            return self._pick([item, item, item, 7, [], None])

        document: Any = {"items": [line() for _ in range(self._random.randrange(10))]}
        if self._random.random() < 0.2:
            document[self._pick(["items2", "coupon"])] = document["items"]
        return json.dumps(document, ensure_ascii=self._random.random() < 0.5).encode()

    def _mutated(self) -> bytes:
        body = bytearray(self._order())
        for _ in range(self._random.randint(1, 3)):
            place = self._random.randrange(len(body) + 1)
            body[place : place + self._random.randrange(3)] = self._noise(2)
        return bytes(body)

    def _json(self) -> bytes:
        def value(depth: int) -> Any:
            kind = self._random.randrange(8 if depth < 5 else 6)
            if kind == 6:
                return [value(depth + 1) for _ in range(self._random.randrange(4))]
            if kind == 7:
                return {self._visible(6): value(depth + 1) for _ in range(self._random.randrange(4))}
            return [
                None,
                True,
                self._random.random(),
                self._random.randrange(-(10**20), 10**20),
                self._visible(9),
                "\ud83d",
            ][kind]

        return json.dumps(value(0)).encode()

    def _raw(self) -> bytes:
        kind = self._random.randrange(4)
        if kind == 0:
            return self._noise(200)
        if kind == 1:
            return self._pick([b"[", b"{", b'{"items":', b'"', b"\\", b"0", b"-"]) * self._random.randrange(1, 1500)
        if kind == 2:
            return b" " * self._random.randrange(5000) + self._order()
        return b""

    def _path(self) -> str:
        segments = [
            "v1",
            "sales",
            "orders",
            "cancel",
            "livez",
            "readyz",
            "%2e%2e",
            "%00",
            "x" * 36,
            str(UUID(int=self._random.getrandbits(128))),
            "",
        ]
        path = "/" + "/".join(self._pick(segments) for _ in range(self._random.randint(1, 5)))
        return path + self._pick(["", "?", "?limit=x", "?cursor=%ff&limit=1", "?" + "a=b&" * 50])

    def _cut(self, body: bytes) -> list[bytes]:
        place = self._random.randrange(len(body) + 1)
        return [part for part in (body[:place], body[place:]) if part]

    def _visible(self, length_max: int) -> str:
        return "".join(self._random.choices(_TEXT, k=self._random.randrange(length_max)))

    def _noise(self, length_max: int) -> bytes:
        return self._random.randbytes(self._random.randrange(length_max + 1))

    def _pick(self, choices: list[Any]) -> Any:
        return self._random.choice(choices)


def assert_typed(reply: wire.Reply, request: bytes, *, head_only: bool) -> None:
    assert reply.status < 500, (reply, request)
    if reply.status in _SERVER and not reply.body and "content-type" not in reply.headers:
        assert reply.closed, (reply, request)
    elif reply.status >= 400 and not head_only:
        assert reply.code, (reply, request)
    else:
        assert reply.status in (200, 202, 204, 304) or head_only, (reply, request)


def test_random_requests(edge: EdgeProcess, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=(100_000, 1000, 50), limit=100)
    tokens = [buyers.token() for _ in range(200)]
    counts: dict[int, int] = {}

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    @given(seed=st.integers(0, 2**64 - 1))
    def send_many(seed: int) -> None:
        generator = Generator(seed, order_path=f"/v1/sales/{sale.sale_id}/orders", tokens=tokens)
        connection = wire.Connection(edge.port)
        for _ in range(REQUESTS):
            request = generator.request()
            head_only = request.startswith(b"HEAD")
            try:
                connection.send(request)
                reply = connection.receive(head_only=head_only)
            except (wire.NoReply, BrokenPipeError, ConnectionResetError):
                # The connection was closed after an earlier answer: send the request again on a new one.
                connection = wire.Connection(edge.port)
                connection.send(request)
                try:
                    reply = connection.receive(head_only=head_only)
                except wire.NoReply:
                    raise AssertionError(f"no answer to {request!r}") from None
            assert_typed(reply, request, head_only=head_only)
            counts[reply.status] = counts.get(reply.status, 0) + 1
            if reply.closed:
                connection.__exit__()
                connection = wire.Connection(edge.port)
        connection.__exit__()

    started = time.monotonic()
    send_many()
    sys.stdout.write(
        f"{sum(counts.values())} requests in {time.monotonic() - started:.1f} s: {dict(sorted(counts.items()))}\n"
    )
    assert sum(counts.values()) >= EXAMPLES * REQUESTS * 0.9
    for status in (202, 400, 401, 404, 409, 413, 415, 422):
        assert counts.get(status), f"the generator never provokes a {status}: {counts}"
    for index in range(3):
        assert publisher.stock(sale, index).is_balanced
    assert edge.wait_ready().status_code == 200
