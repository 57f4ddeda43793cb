"""Behaviour of every route: unknown paths, methods, HEAD, OPTIONS, CORS, the OpenAPI document, internal errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from devstack.servers import RedisServer
from domain.problems import Problem, ProblemDetails
from edge import openapi
from edge.app import EdgeApplication
from edge.cors import Cors
from edge.problems import refuse, render
from edge.routing import Request, Route, Router
from edge.worker import routes
from tests.edge import wire
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

PATHS = [(path, method) for method, path in openapi.CODES]
SHOP = "https://shop.example"


def concrete(path: str) -> str:
    return re.sub(r"\{[a-z_]+\}", "0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee", path)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/v1",
            "/v1/sales",
            "/v1/sales/",
            "/v1/orders/",
            "/v1/orders/x/y",
            "/v1/orders//cancel",
            "/livez/",
            "/LIVEZ",
        ),
        *(
            "/v1/sales/x/orders/y",
            "/v1/orders/x/payments",
            "/v1/payments",
            "/docs",
            "//livez",
            "/%ff",
            "/../livez",
        ),
    ],
)
def test_unknown_paths(edge: EdgeProcess, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS", "BREW"):
        answer = wire.ask(edge.port, wire.request(method, path))
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize(("path", "method"), PATHS)
def test_wrong_methods(edge: EdgeProcess, path: str, method: str) -> None:
    allowed = {"get": "GET, HEAD, OPTIONS", "post": "POST, OPTIONS"}[method]
    for wrong in ("PUT", "DELETE", "PATCH", "TRACE", "BREW", "POST" if method == "get" else "GET"):
        answer = wire.ask(edge.port, wire.request(wrong, concrete(path), body=b"" if wrong == "POST" else None))
        assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method_not_allowed", allowed)
    answer = wire.ask(edge.port, wire.request("OPTIONS", concrete(path)))
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")
    assert not [name for name in answer.headers if name.startswith("access-control")], "no origin is configured"


@pytest.mark.doors("granian")
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"a" * 65_534 + b" HTTP/1.1\r\nHost: edge\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nHost: edge\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_the_parsers_own_answers_are_those_that_the_documents_name(
    edge: EdgeProcess, client: httpx.Client, data: bytes, status: int
) -> None:
    with wire.Connection(edge.port) as connection:
        connection.send(data)
        answer = connection.receive()
        assert (answer.status, answer.body) == (status, b"") and connection.is_closed()
    assert str(status) in client.get("/openapi.json").json()["info"]["description"]


def test_head_is_get_without_its_body(edge: EdgeProcess, publisher: Publisher, buyers: Buyers) -> None:
    sale = publisher.publish()
    own = {"Authorization": f"Bearer {buyers.token()}"}
    for path in (
        "/livez",
        "/readyz",
        "/openapi.json",
        f"/v1/sales/{sale.sale_id}",
        "/v1/sales/none",
        "/v1/orders",
        "/none",
    ):
        with wire.Connection(edge.port) as connection:
            connection.send(wire.request("GET", path, own) + wire.request("HEAD", path, own))
            get, head = connection.receive(), connection.receive(head_only=True)
            # The answer has no body: the connection continues with the next answer.
            connection.send(wire.request("GET", "/livez"))
            assert connection.receive().status == 200
        assert head.status == get.status
        assert {**head.headers, "date": ""} == {**get.headers, "date": ""}


def test_a_body_where_none_is_taken_is_not_read(edge: EdgeProcess, buyers: Buyers) -> None:
    announced = {"Content-Length": "1000000000", "Authorization": f"Bearer {buyers.token()}"}
    order_id = "0199aaaa-bbbb-8001-8ddd-eeeeeeeeeeee"
    for method, path, status in (
        ("GET", "/livez", 200),
        ("POST", f"/v1/orders/{order_id}/cancel", 404),
        ("POST", "/none", 404),
    ):
        with wire.Connection(edge.port) as connection:
            connection.send(wire.request(method, path, announced) + b"x" * 100)
            assert connection.receive().status == status
            assert connection.is_closed()


@pytest.fixture(scope="module")
def cors_edge(
    edge_redis: RedisServer, buyers: Buyers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EdgeProcess]:
    settings = {
        "redis_url": edge_redis.url,
        "token_keys_file": str(buyers.keys_file),
        "cors_origins": f"{SHOP}, https://other.example",
    }
    process = EdgeProcess(settings, tmp_path_factory.mktemp("cors") / "edge.log")
    process.start()
    yield process
    process.stop()


def test_cors(cors_edge: EdgeProcess, publisher: Publisher, buyers: Buyers) -> None:
    sale = publisher.publish()
    orders = f"/v1/sales/{sale.sale_id}/orders"
    with httpx.Client(base_url=cors_edge.url) as client:
        preflight = client.options(orders, headers={"Origin": SHOP, "Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == SHOP
        assert preflight.headers["access-control-allow-methods"] == "POST, OPTIONS"
        allowed = {name.strip() for name in preflight.headers["access-control-allow-headers"].split(",")}
        assert allowed == {"Authorization", "Idempotency-Key", "Content-Type"}
        body = {"items": [{"sku": "SKU-1", "quantity": 1}]}
        answers = [
            client.post(orders, headers={**buyers.headers(), "Origin": SHOP}, json=body),
            client.post(orders, headers={"Origin": SHOP}, json=body),  # a problem, also readable by the page
            client.get(f"/v1/sales/{sale.sale_id}", headers={"Origin": SHOP}),
            client.get("/none", headers={"Origin": SHOP}),
            client.put("/livez", headers={"Origin": SHOP}),
        ]
        assert [answer.status_code for answer in answers] == [202, 401, 200, 404, 405]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == SHOP and answer.headers["vary"] == "Origin"
            exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
            assert exposed == {"Location", "Retry-After", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy"}
        # Not from a page: answered by the fast path, without CORS headers.
        answer = client.post(orders, headers=buyers.headers(), json=body)
        assert answer.status_code == 202 and "vary" not in answer.headers
        for origin in ({"Origin": "https://evil.example"}, {}):
            answer = client.options(orders, headers=origin)
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert answer.headers["vary"] == "Origin"


def test_the_openapi_document_names_what_the_router_serves(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}

    class Parts:
        """Replaces the services whose methods are handlers."""

        def __getattr__(self, name: str) -> Any:
            return name

    parts: Any = Parts()
    served = {
        (r.method, r.template) for r in routes(orders=parts, payments=parts, sales=parts, health=parts, metrics=parts)
    }
    assert described == served


def test_the_openapi_document_is_whole(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references == set(schemas), "each schema is used, and none is missing"
    for path, item in document["paths"].items():
        for method, operation in item.items():
            names = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
            assert names == set(re.findall(r"\{(\w+)\}", path)), (method, path)
            for problem in (*openapi.CODES[method, path], *openapi.ANYWHERE):
                assert f"`{problem.value}`" in operation["responses"][str(problem.status)]["description"]


def test_every_code_of_the_edge_is_described() -> None:
    """Only codes of the backoffice are missing from the operations."""
    described = {code for codes in openapi.CODES.values() for code in codes} | set(openapi.ANYWHERE)
    elsewhere = {
        *(Problem.CREDENTIALS_INVALID, Problem.PRODUCT_NOT_FOUND, Problem.USER_NOT_FOUND),
        *(Problem.SALE_STATE_CONFLICT, Problem.EMAIL_TAKEN, Problem.SKU_TAKEN),
        *(Problem.PRECONDITION_FAILED, Problem.PRECONDITION_REQUIRED),
    }
    assert described == set(Problem) - elsewhere


def test_problem_answers() -> None:
    for problem in Problem:
        status, headers, body = refuse(problem)
        names = dict(headers)
        assert status == problem.status and names["content-type"] == "application/problem+json" and body
        assert ("www-authenticate" in names) == (status == 401)
        assert ("retry-after" in names) == (status == 503)
        assert (names.get("connection") == "close") == (status in (408, 413))
        particular = render(ProblemDetails(problem, allow=("GET", "HEAD")))
        assert sorted(particular[1]) == sorted([*headers, ("allow", "GET, HEAD")]) and particular[2] == body


class _Scope:
    method, path, query_string = "GET", "/fails", ""
    headers: dict[str, str] = {}  # noqa: RUF012


class _Recorder:
    def __init__(self) -> None:
        self.answers: list[Any] = []

    def response_bytes(self, *answer: Any) -> None:
        self.answers.append(answer)


async def test_a_failing_handler_is_an_internal_error() -> None:
    """No request can provoke this problem, so the test adds a handler with a bug."""

    async def fails(request: Request) -> Any:
        raise RuntimeError(f"a secret of {request.path}")

    never: Callable[..., Any] = lambda *_: None  # noqa: E731
    application = EdgeApplication(
        router=Router([Route("GET", "/fails", fails)]),
        order_exchange=never,
        refuses_orders=lambda: False,
        cors=Cors(()),
        drain_ms=0,
        on_start=never,
        on_stop=never,
        on_drain=never,
    )
    recorder: Any = _Recorder()
    scope: Any = _Scope()
    await application.__rsgi__(scope, recorder)
    ((status, headers, body),) = recorder.answers
    assert status == 500 and ("content-type", "application/problem+json") in headers
    assert b'"code":"internal_error"' in body and b"secret" not in body
    assert application.in_flight == 0
