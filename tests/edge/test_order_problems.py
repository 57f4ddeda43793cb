"""Every refusal of POST /v1/sales/{id}/orders over a real socket: its status, code and headers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from devstack.servers import RedisServer
from domain import topology
from domain.sales import LaneSaleState, SaleDefinition, Stock
from tests.edge import wire
from tests.fixtures.fix_edge import ISSUER, Buyers, EdgeProcess, Publisher

ONE: dict[str, Any] = {"items": [{"sku": "SKU-1", "quantity": 1}]}


@pytest.fixture
def sale(publisher: Publisher) -> SaleDefinition:
    return publisher.publish()


def path(sale: SaleDefinition) -> str:
    return f"/v1/sales/{sale.sale_id}/orders"


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert (document["status"], document["code"], document["type"]) == (status, code, f"/problems/{code}")
    return document


def test_an_order_is_accepted(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=(5, 5))
    body = {"items": [{"sku": "SKU-2", "quantity": 2}, {"sku": "SKU-1", "quantity": 1}]}
    answer = client.post(path(sale), headers=buyers.headers(), json=body)
    assert answer.status_code == 202, answer.text
    order = answer.json()
    assert answer.headers["location"] == f"/v1/orders/{order['order_id']}"
    assert "idempotency-replayed" not in answer.headers
    assert list(order) == [
        *("order_id", "sale_id", "status", "items", "total_minor", "currency", "reserved_at", "expires_at")
    ]
    assert order["sale_id"] == str(sale.sale_id) and order["status"] == "reserved"
    assert order["items"] == [
        {"sku": "SKU-2", "quantity": 2, "unit_price_minor": 1999},
        {"sku": "SKU-1", "quantity": 1, "unit_price_minor": 1999},
    ]
    assert (order["total_minor"], order["currency"]) == (5997, "EUR")
    assert publisher.stock(sale, 0).available == 4 and publisher.stock(sale, 1).available == 3


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"[1,", b"\xef\xbb\xbf{}", b"{'items': []}",
        b'{"items":[{"sku":"SKU-1","quantity":1}]} x',
        b'{"items":[{"sku":"\xff","quantity":1}]}',
        b'{"items":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"items":[{"sku":"SKU-1","quantity":01}]}',
    ],
)  # fmt: skip
def test_malformed_json(client: httpx.Client, buyers: Buyers, sale: SaleDefinition, body: bytes) -> None:
    assert_problem(client.post(path(sale), headers=buyers.headers(), content=body), 400, "malformed_request")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ({}, "/items"),
        ({"items": {}}, "/items"),
        ({"items": []}, "/items"),
        ({"items": [ONE["items"][0]] * 9}, "/items"),
        ({"items": [7]}, "/items/0"),
        ({"items": [{"sku": "SKU-1"}]}, "/items/0/quantity"),
        ({"items": [{"quantity": 1}]}, "/items/0/sku"),
        ({"items": [{"sku": 1, "quantity": 1}]}, "/items/0/sku"),
        ({"items": [{"sku": "", "quantity": 1}]}, "/items/0/sku"),
        ({"items": [{"sku": "a b", "quantity": 1}]}, "/items/0/sku"),
        ({"items": [{"sku": "x" * 65, "quantity": 1}]}, "/items/0/sku"),
        ({"items": [{"sku": "SKU-1", "quantity": 0}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": 101}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": -1}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": 1.0}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": "1"}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": True}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": None}]}, "/items/0/quantity"),
        ({"items": [{"sku": "SKU-1", "quantity": 1}, {"sku": "SKU-1", "quantity": 2}]}, "/items/1/sku"),
        ({"items": [{"sku": "SKU-1", "quantity": 1, "price": 1}]}, "/items/0/price"),
        ({**ONE, "coupon": "X"}, "/coupon"),
    ],
)
def test_invalid_orders(client: httpx.Client, buyers: Buyers, sale: SaleDefinition, body: Any, pointer: str) -> None:
    document = assert_problem(client.post(path(sale), headers=buyers.headers(), json=body), 422, "validation_failed")
    assert pointer in [error["pointer"] for error in document["errors"]]
    assert all(error["detail"] for error in document["errors"])


def test_a_number_with_an_exponent_is_invalid(client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    body = b'{"items":[{"sku":"SKU-1","quantity":1e1}]}'
    assert_problem(client.post(path(sale), headers=buyers.headers(), content=body), 422, "validation_failed")


def test_oversized_bodies(edge: EdgeProcess, client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    exactly = json.dumps(ONE).encode().ljust(4096)
    assert client.post(path(sale), headers=buyers.headers(), content=exactly).status_code == 202
    assert_problem(client.post(path(sale), headers=buyers.headers(), content=exactly + b" "), 413, "body_too_large")
    # A long body is refused by its announced length, and the connection closes because the body was not read.
    head = wire.request("POST", path(sale), {**buyers.headers(), "Content-Length": "1000000000"})
    with wire.Connection(edge.port) as connection:
        connection.send(head)
        assert connection.receive().code == "body_too_large"
        assert connection.is_closed()
    # Chunked: without a length.
    head = wire.request("POST", path(sale), {**buyers.headers(), "Transfer-Encoding": "chunked"})
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    with wire.Connection(edge.port) as connection:
        connection.send(head + chunk * 2)
        assert connection.receive().code == "body_too_large"
        assert connection.is_closed()


def test_chunked_bodies_are_accepted(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    head = wire.request("POST", path(sale), {**buyers.headers(), "Transfer-Encoding": "chunked"})
    body = json.dumps(ONE).encode()
    first, second = body[:10], body[10:]
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(first), first, len(second), second)
    assert wire.ask(edge.port, head + chunks).status == 202


def test_truncated_bodies(edge: EdgeProcess, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish()
    body = json.dumps(ONE).encode()
    # Complete JSON, but fewer bytes than announced.
    head = wire.request("POST", path(sale), {**buyers.headers(), "Content-Length": str(len(body) + 1)})
    assert wire.ask(edge.port, head + body, end=True).code == "malformed_request"
    assert publisher.stock(sale).reserved == 0


@pytest.mark.parametrize(
    "ending",
    [b"", b"0", b"0\r\n", b"5\r\nab", b"\r\n", b"zz\r\n", b"-1\r\n\r\n"],
)
def test_chunked_bodies_that_break_off(edge: EdgeProcess, buyers: Buyers, publisher: Publisher, ending: bytes) -> None:
    """Each body holds complete JSON, but ends without its last chunk."""
    sale = publisher.publish()
    body = json.dumps(ONE).encode()
    head = wire.request("POST", path(sale), {**buyers.headers(), "Transfer-Encoding": "chunked"})
    for pause_s in (0.0, 0.05):
        with wire.Connection(edge.port) as connection:
            connection.send(head + b"%x\r\n%b\r\n" % (len(body), body))
            time.sleep(pause_s)
            connection.send(ending)
            connection.end()
            assert connection.receive().code == "malformed_request"
    assert publisher.stock(sale).reserved == 0


def test_trailers_are_refused(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    head = wire.request("POST", path(sale), {**buyers.headers(), "Transfer-Encoding": "chunked"})
    body = _chunked(json.dumps(ONE).encode()).removesuffix(b"\r\n") + b"Trailer: x\r\n\r\n"
    assert wire.ask(edge.port, head + body).code == "malformed_request"


def test_a_chunked_body_of_a_client_that_is_gone(edge: EdgeProcess, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish()
    body = json.dumps(ONE).encode()
    head = wire.request("POST", path(sale), {**buyers.headers(), "Transfer-Encoding": "chunked"})
    for _ in range(12):
        with wire.Connection(edge.port) as connection:
            connection.send(head + b"%x\r\n%b\r\n" % (len(body), body))
    # The edge has processed them all when it answers a later, complete one.
    assert wire.ask(edge.port, head.replace(b"Idempotency-Key: ", b"Idempotency-Key: z") + _chunked(body)).status == 202
    time.sleep(0.2)
    assert publisher.stock(sale).reserved == 1


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Content-Type"])
def test_headers_that_may_be_given_once(edge: EdgeProcess, buyers: Buyers, publisher: Publisher, name: str) -> None:
    sale = publisher.publish()
    headers = buyers.headers()
    head, _, _ = wire.request("POST", path(sale), headers).partition(b"\r\n\r\n")
    body = json.dumps(ONE).encode()
    for value in (headers[name], "another", ""):
        for again in (f"{name}: {value}", f"{name.lower()}: {value}"):
            data = b"\r\n".join([head, again.encode(), b"Content-Length: %d" % len(body), b"", body])
            assert wire.ask(edge.port, data).code == "malformed_request", again
    assert publisher.stock(sale).reserved == 0


@pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Content-Type"])
def test_a_value_that_is_not_ascii_before_another(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher, name: str
) -> None:
    """Granian hides such a value: the second one passed, while another reader may use the first."""
    sale = publisher.publish()
    body = json.dumps(ONE).encode()
    lines = [f"POST {path(sale)} HTTP/1.1", "Host: edge", f"{name}: \xe9"]
    lines += [f"{header}: {value}" for header, value in buyers.headers().items()]
    data = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body
    assert wire.ask(edge.port, data).code == "malformed_request"
    assert publisher.stock(sale).reserved == 0


@pytest.mark.parametrize("other", ["Bearer other", "\xe9"])
def test_a_second_token_on_the_other_routes(edge: EdgeProcess, buyers: Buyers, other: str) -> None:
    lines = ["GET /v1/orders HTTP/1.1", "Host: edge", f"Authorization: {other}"]
    lines += [f"Authorization: Bearer {buyers.token()}", "", ""]
    assert wire.ask(edge.port, "\r\n".join(lines).encode("latin-1")).code == "malformed_request"


def test_slow_bodies(edge: EdgeProcess, buyers: Buyers, sale: SaleDefinition) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(wire.request("POST", path(sale), {**buyers.headers(), "Content-Length": "46"}) + b'{"items')
        assert connection.receive().code == "request_timeout"
        assert connection.is_closed()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "identity"},
    ],
)
def test_media_types(client: httpx.Client, buyers: Buyers, sale: SaleDefinition, headers: dict[str, str]) -> None:
    content = json.dumps(ONE).encode()
    answer = client.post(path(sale), headers={**buyers.headers(), **headers}, content=content)
    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json;charset=utf-8", "Application/JSON; charset=UTF-8"])
def test_json_with_its_charset_is_fine(
    client: httpx.Client, buyers: Buyers, sale: SaleDefinition, content_type: str
) -> None:
    headers = {**buyers.headers(), "Content-Type": content_type}
    assert client.post(path(sale), headers=headers, content=json.dumps(ONE).encode()).status_code == 202


def test_idempotency_keys(edge: EdgeProcess, client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    headers = buyers.headers()
    del headers["Idempotency-Key"]
    assert_problem(client.post(path(sale), headers=headers, json=ONE), 400, "idempotency_key_missing")
    empty = {**headers, "Idempotency-Key": '""'}
    assert_problem(client.post(path(sale), headers=empty, json=ONE), 400, "idempotency_key_missing")
    body = json.dumps(ONE).encode()
    for key in ("x" * 65, "a b", "\xe9", '"a'):
        answer = wire.ask(edge.port, wire.request("POST", path(sale), {**headers, "Idempotency-Key": key}, body))
        assert answer.code == "malformed_request", key
    first = client.post(path(sale), headers={**headers, "Idempotency-Key": "abc"}, json=ONE)
    quoted = client.post(path(sale), headers={**headers, "Idempotency-Key": '"abc"'}, json=ONE)
    assert (first.status_code, quoted.status_code) == (202, 202)
    assert quoted.content == first.content and quoted.headers["idempotency-replayed"] == "true"


def test_a_repeated_key(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=(5, 5))
    headers = buyers.headers()
    lines = [{"sku": "SKU-1", "quantity": 1}, {"sku": "SKU-2", "quantity": 1}]
    first = client.post(path(sale), headers=headers, json={"items": lines})
    again = client.post(path(sale), headers=headers, json={"items": lines[::-1]})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.content == first.content and again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = client.post(path(sale), headers=headers, json={"items": lines[:1]})
    assert_problem(other, 422, "idempotency_key_reused")
    assert publisher.stock(sale).reserved == 1


def test_token_missing(client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    headers = buyers.headers()
    for authorization in (None, "Basic abc"):
        changed = {k: v for k, v in headers.items() if k != "Authorization"}
        if authorization:
            changed["Authorization"] = authorization
        answer = client.post(path(sale), headers=changed, json=ONE)
        assert_problem(answer, 401, "token_missing")
        assert answer.headers["www-authenticate"] == 'Bearer realm="flashsale"'


def _unsigned(token: str) -> str:
    """The same claims with `alg: none`."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # HS384 with our key is refused as well
def test_tokens_that_are_not_valid(client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    now = int(time.time())
    key = buyers.keys.keys[buyers.keys.active]
    kid = {"kid": buyers.keys.active}
    claims = {"sub": str(uuid4()), "iss": ISSUER, "aud": "edge", "roles": ["buyer"], "iat": now, "exp": now + 900}
    good = jwt.encode(claims, key, algorithm="HS256", headers=kid)
    assert client.post(path(sale), headers=buyers.headers() | {"Authorization": f"Bearer {good}"}, json=ONE).is_success

    def with_claims(**changes: Any) -> str:
        changed = {k: v for k, v in {**claims, **changes}.items() if v is not None}
        return jwt.encode(changed, key, algorithm="HS256", headers=kid)

    staff = Ed25519PrivateKey.generate()
    bad = {
        "no token": "abc",
        "forged signature": good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB"),
        "another key": jwt.encode(claims, b"x" * 32, algorithm="HS256", headers=kid),
        "alg none": _unsigned(good),
        "another algorithm": jwt.encode(claims, key, algorithm="HS384", headers=kid),
        "unknown kid": jwt.encode(claims, key, algorithm="HS256", headers={"kid": "unknown"}),
        "no kid": jwt.encode(claims, key, algorithm="HS256"),
        "staff": jwt.encode({**claims, "aud": "backoffice", "roles": ["staff"]}, staff, algorithm="EdDSA", headers=kid),
        "wrong audience": with_claims(aud="backoffice"),
        "wrong issuer": with_claims(iss="someone"),
        "no role": with_claims(roles=["staff"]),
        "no user": with_claims(sub="me"),
        "no end": with_claims(exp=None),
    }
    for name, token in bad.items():
        answer = client.post(path(sale), headers=buyers.headers() | {"Authorization": f"Bearer {token}"}, json=ONE)
        assert answer.status_code == 401, name
        assert_problem(answer, 401, "token_invalid")
        assert (
            answer.headers["www-authenticate"]
            == 'Bearer realm="flashsale", error="invalid_token", error_description="The access token is not valid"'
        )
        # The other routes verify in the same way.
        assert client.get("/v1/orders", headers={"Authorization": f"Bearer {token}"}).json()["code"] == "token_invalid"


def test_token_expired(client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    token = buyers.token(ttl_s=60, now_s=int(time.time()) - 61)
    answer = client.post(path(sale), headers=buyers.headers() | {"Authorization": f"Bearer {token}"}, json=ONE)
    assert_problem(answer, 401, "token_expired")
    assert (
        answer.headers["www-authenticate"]
        == 'Bearer realm="flashsale", error="invalid_token", error_description="The access token has expired"'
    )


def test_unknown_sales(client: httpx.Client, buyers: Buyers) -> None:
    for sale_id in (str(uuid4()), "nonsense", "0" * 36, "%00", "g" * 36):
        answer = client.post(f"/v1/sales/{sale_id}/orders", headers=buyers.headers(), json=ONE)
        assert_problem(answer, 404, "sale_not_found")


def test_an_id_in_capitals_is_the_same_sale(client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    answer = client.post(f"/v1/sales/{str(sale.sale_id).upper()}/orders", headers=buyers.headers(), json=ONE)
    assert answer.status_code == 202 and answer.json()["sale_id"] == str(sale.sale_id)


def test_unknown_skus(client: httpx.Client, buyers: Buyers, sale: SaleDefinition) -> None:
    answer = client.post(path(sale), headers=buyers.headers(), json={"items": [{"sku": "NONE", "quantity": 1}]})
    assert_problem(answer, 404, "sku_not_found")


def test_sales_that_are_not_open(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    later = publisher.publish(starts_in_s=120)
    answer = client.post(path(later), headers=buyers.headers(), json=ONE)
    assert_problem(answer, 409, "sale_not_open")
    assert 110 <= int(answer.headers["retry-after"]) <= 120
    paused = publisher.publish(state=LaneSaleState.PAUSED)
    answer = client.post(path(paused), headers=buyers.headers(), json=ONE)
    assert_problem(answer, 409, "sale_not_open")
    assert "retry-after" not in answer.headers
    over = publisher.publish(starts_in_s=-60, ends_in_s=-1)
    assert_problem(client.post(path(over), headers=buyers.headers(), json=ONE), 410, "sale_ended")
    ended = publisher.publish(state=LaneSaleState.ENDED)
    assert_problem(client.post(path(ended), headers=buyers.headers(), json=ONE), 410, "sale_ended")


def test_a_change_is_seen_by_the_next_request(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish()
    assert client.post(path(sale), headers=buyers.headers(), json=ONE).status_code == 202
    sale = publisher.change(sale, state=LaneSaleState.PAUSED)
    assert_problem(client.post(path(sale), headers=buyers.headers(), json=ONE), 409, "sale_not_open")
    sale = publisher.change(sale, state=LaneSaleState.RUNNING)
    assert client.post(path(sale), headers=buyers.headers(), json=ONE).status_code == 202
    sale = publisher.change(sale, state=LaneSaleState.ENDED)
    assert_problem(client.post(path(sale), headers=buyers.headers(), json=ONE), 410, "sale_ended")


def test_a_sale_that_redis_lost_is_unavailable(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish()
    publisher.redis.hdel(topology.lane_state_key(sale.lanes[0]), topology.definition_field(sale.sale_id))
    answer = client.post(path(sale), headers=buyers.headers(), json=ONE)
    assert_problem(answer, 503, "dependency_unavailable")
    assert answer.headers["retry-after"]


def test_sold_out_and_purchase_limits(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=(3, 100), limit=2)
    two = {"items": [{"sku": "SKU-1", "quantity": 2}]}
    buyer = uuid4()
    assert client.post(path(sale), headers=buyers.headers(buyer), json=two).status_code == 202
    assert_problem(client.post(path(sale), headers=buyers.headers(buyer), json=ONE), 409, "purchase_limit_exceeded")
    # All or nothing: the second line has stock, the first has only one unit.
    both = {"items": [{"sku": "SKU-2", "quantity": 1}, {"sku": "SKU-1", "quantity": 2}]}
    assert_problem(client.post(path(sale), headers=buyers.headers(), json=both), 409, "sold_out")
    assert publisher.stock(sale, 1).available == 100
    assert client.post(path(sale), headers=buyers.headers(), json=ONE).status_code == 202
    for _ in range(3):
        assert_problem(client.post(path(sale), headers=buyers.headers(), json=ONE), 409, "sold_out")
    assert (publisher.stock(sale).available, publisher.stock(sale).reserved) == (0, 3)


def test_units_in_other_lanes(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    """Buyers of an empty lane are told to try again; sold out only when the lane knows that no unit is left."""
    sale = publisher.publish(stock=3, lanes=2)
    lucky, other = (buyer_of(sale, lane) for lane in sale.lanes)
    two = {"items": [{"sku": "SKU-1", "quantity": 2}]}
    assert client.post(path(sale), headers=buyers.headers(lucky), json=two).status_code == 202
    lane = topology.lane_state_key(sale.lanes[1])
    for left, sold_out in ((255, False), (1, False), (0, True), (1, False)):
        answer = publisher.tell_left(sale, sale.lanes[1], left)
        assert answer == 1
        for _ in range(2):
            answer = client.post(path(sale), headers=buyers.headers(other), json=ONE)
            if sold_out:
                assert_problem(answer, 409, "sold_out")
                continue
            told = assert_problem(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1" and "on their way" in told["detail"]
            stock = Stock.unpack(publisher.redis.hget(lane, topology.stock_field(sale.sale_id, 0)) or b"")
            assert stock.elsewhere is not None and stock.elsewhere.wanted == 1
        if left == 1:
            # A bound of one: an order of two is sold out, in any lane.
            for buyer in (lucky, other):
                publisher.tell_left(sale, sale.lanes[0], left)
                answer = client.post(path(sale), headers=buyers.headers(buyer), json=two)
                assert_problem(answer, 409, "sold_out")
    assert client.post(path(sale), headers=buyers.headers(lucky), json=ONE).status_code == 202


def buyer_of(sale: SaleDefinition, lane: int) -> UUID:
    """A buyer whose orders are taken in this lane."""
    return next(user for user in iter(uuid4, None) if topology.home_lane(user, sale.lanes) == lane)


def test_the_rate_limit(client: httpx.Client, buyers: Buyers, publisher: Publisher) -> None:
    sale = publisher.publish(stock=1000)
    buyer = uuid4()
    answers = [client.post(path(sale), headers=buyers.headers(buyer), json=ONE) for _ in range(60)]
    refused = [answer for answer in answers if answer.status_code != 202]
    assert 0 < len(refused) <= 40, "20 at once, then 10 a second"
    for answer in refused:
        assert_problem(answer, 429, "rate_limited")
        wait_s = int(answer.headers["retry-after"])
        assert wait_s >= 1
        assert answer.headers["ratelimit"] == f'"orders";r=0;t={wait_s}'
        assert answer.headers["ratelimit-policy"] == '"orders";q=20;w=2'
    assert client.post(path(sale), headers=buyers.headers(), json=ONE).status_code == 202, "others are not limited"


def wait_for_all_workers(edge: EdgeProcess, buyers: Buyers) -> None:
    """The edge is ready with its first worker; the others refuse orders until they are."""
    good = 0
    deadline = time.monotonic() + 20
    while good < 20 and time.monotonic() < deadline:
        answer = httpx.post(f"{edge.url}/v1/sales/{uuid4()}/orders", headers=buyers.headers(uuid4()), json=ONE)
        good = 0 if answer.status_code == 503 else good + 1
    assert good == 20


def test_refused_requests_and_other_sales_count_for_the_rate(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, buyers: Buyers, publisher: Publisher
) -> None:
    """Ten order requests a second and user, says the contract: only accepted ones of one sale counted."""
    edge = own_edge(redis_url=edge_redis.url, user_rate="1", user_burst="5", edge_workers="2")
    wait_for_all_workers(edge, buyers)
    sales = [publisher.publish(stock=10), publisher.publish(stock=0), publisher.publish(starts_in_s=3600)]
    user, other = uuid4(), uuid4()
    statuses: list[int] = []
    unknown = f"/v1/sales/{uuid4()}/orders"
    asked = [(path(sale), ONE) for sale in sales] + [(unknown, ONE), (path(sales[0]), {"items": []}), (unknown, ONE)]
    for where, body in asked:
        # A connection for each request: the workers share the rates.
        answer = httpx.post(f"{edge.url}{where}", headers=buyers.headers(user), json=body)
        statuses.append(answer.status_code)
    assert statuses == [202, 409, 409, 404, 422, 429]
    assert answer.json()["code"] == "rate_limited" and int(answer.headers["retry-after"]) >= 1
    assert httpx.post(f"{edge.url}{path(sales[0])}", headers=buyers.headers(other), json=ONE).status_code == 202


def test_above_the_rate_a_repeated_request_gets_its_answer(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, buyers: Buyers, publisher: Publisher
) -> None:
    edge = own_edge(redis_url=edge_redis.url, user_rate="1", user_burst="5")
    sale, user = publisher.publish(stock=100), uuid4()
    url, first = f"{edge.url}{path(sale)}", buyers.headers(user)
    with httpx.Client() as http:
        answers = [http.post(url, headers=first, json=ONE) for _ in range(30)]
        assert {(answer.status_code, answer.content) for answer in answers} == {(202, answers[0].content)}
        assert_problem(http.post(url, headers=buyers.headers(user), json=ONE), 429, "rate_limited")
        many = [http.post(url, headers=first, json=ONE).status_code for _ in range(60)]
    assert many.count(429) >= 10, "ten times the rate is the ceiling"
    assert publisher.stock(sale).reserved == 1
