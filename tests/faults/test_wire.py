"""Interpretation of answers and of their defects; a draining or refusing edge is skipped."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest

from devstack.children import free_port
from domain.problems import Problem, ProblemDetails
from faults.history import Attempt, Ending, Told
from faults.wire import Answer, Wire, judge, order_request

PROBLEM_JSON = {"content-type": "application/problem+json"}


def judged(status: int, document: object, headers: dict[str, str] | None = None) -> Attempt:
    attempt = Attempt(0.0, 0.1, Ending.UNKNOWN)
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    judge(Answer(status, PROBLEM_JSON if headers is None else headers, body), attempt)
    return attempt


def test_an_accepted_order() -> None:
    order_id, sale_id = uuid4(), uuid4()
    order = {
        "order_id": str(order_id), "sale_id": str(sale_id), "status": "reserved",
        "items": [{"sku": "A", "quantity": 2, "unit_price_minor": 5}], "total_minor": 10, "currency": "EUR",
        "reserved_at": "2026-01-01T00:00:00.123Z", "expires_at": "2026-01-01T00:10:00.123Z",
    }  # fmt: skip
    location = {"location": f"/v1/orders/{order_id}"}
    attempt = judged(202, order, {"idempotency-replayed": "true", **location})
    assert (attempt.ending, attempt.order_id, attempt.replayed, attempt.fault) == (Ending.OK, order_id, True, "")
    assert attempt.told == Told(sale_id, "reserved", (("A", 2, 5),), 10, "EUR", 1767225600123, 1767225600123 + 600_000)
    assert judged(200, order, {}).fault == "", "a cancellation has no Location"
    assert judged(202, order, {}).fault and judged(202, order, {"location": "/v1/orders/x"}).fault
    for member in order:
        assert judged(202, {name: value for name, value in order.items() if name != member}, location).fault, member


@pytest.mark.parametrize("problem", list(Problem))
def test_every_problem_of_the_contract(problem: Problem) -> None:
    waits = {"retry-after": "1"} if problem.status in (429, 503) else {}
    attempt = judged(problem.status, ProblemDetails(problem).as_document(), PROBLEM_JSON | waits)
    unsure = problem in (Problem.OUTCOME_UNKNOWN, Problem.INTERNAL_ERROR)
    assert attempt.ending is (Ending.UNKNOWN if unsure else Ending.REFUSED)
    assert bool(attempt.fault) == (problem is Problem.INTERNAL_ERROR)


@pytest.mark.parametrize(
    ("status", "document", "headers"),
    [
        (202, {}, None),
        (202, b"not json", None),
        (409, {"code": "sold_out"}, {"content-type": "text/html"}),
        (500, {"code": "sold_out"}, None),
        (409, {"code": "no_such_code"}, None),
        (409, {"code": "sold_out", "type": "/problems/sold_out", "status": 410}, None),
        (409, {"code": "sold_out", "type": "/problems/ended", "status": 409}, None),
        (503, {"code": "overloaded", "type": "/problems/overloaded", "status": 503}, None),  # when to come again?
        (502, b"<html>", {}),
        (404, [], None),
    ],
)
def test_answers_that_no_contract_knows(status: int, document: object, headers: dict[str, str] | None) -> None:
    assert judged(status, document, headers).fault


async def _serve(answer: bytes) -> tuple[asyncio.Server, int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    return server, port


REQUEST = order_request("edge", "/", token="t", key="k", body=b"")


async def test_an_edge_that_refuses_the_connection_is_passed_over() -> None:
    body = json.dumps({"order_id": str(uuid4())}).encode()
    server, port = await _serve(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    async with server:
        wire = Wire([f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{port}"])
        assert (await wire.ask(REQUEST)).ending is Ending.OK
        wire.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "broken: IncompleteReadError"),
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\nhalf", "broken: IncompleteReadError"),
        (b"SSH-2.0\r\n\r\n", ""),
    ],
)
async def test_an_answer_that_breaks_off_leaves_the_outcome_unknown(answer: bytes, code: str) -> None:
    server, port = await _serve(answer)
    async with server:
        wire = Wire([f"http://127.0.0.1:{port}"])
        attempt = await wire.ask(REQUEST)
    assert (attempt.ending, attempt.code) == (Ending.UNKNOWN, code)
    assert bool(attempt.fault) == (code == "")
