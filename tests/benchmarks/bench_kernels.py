"""The compiled kernels and their naive references, in turn on the same input. Run by `python -m perf.bench`.

A group holds one kernel and its reference; `extra_info["requests"]` is the number of requests that one call handles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain import ids, topology
from domain.orders import OrderEntry, OrderLine, OrderStatus
from hotpath.tickets import Ticket
from hotpath.tokens import Claims
from hotpath.validation import parse_idempotency_key, parse_order
from tests.hotpath.making import NOW_MS, RESERVE_SHA, Peer, make_sale, make_ticket
from tests.hotpath.test_tokens import KEYS, NOW_S, RING, mint
from tests.reference import resp, tokens, validation

Benchmark = Any
BODY = b'{"items":[{"sku":"SKU-1","quantity":1},{"sku":"SKU-2","quantity":2}]}'
TOKEN = mint()
BATCH = 64
ISSUED: dict[str, Any] = {"issuer": "flashsale", "audience": "edge", "role": "buyer", "now_s": NOW_S}


def measure(benchmark: Benchmark, call: Callable[[], Any], *, requests: int = 1) -> Any:
    """Benchmark a call without arguments."""
    benchmark.extra_info["requests"] = requests
    return benchmark(call)


@pytest.mark.benchmark(group="validation")
def test_validation_compiled(benchmark: Benchmark) -> None:
    assert measure(benchmark, lambda: parse_order(BODY)) == [("SKU-1", 1), ("SKU-2", 2)]


@pytest.mark.benchmark(group="validation")
def test_validation_reference(benchmark: Benchmark) -> None:
    assert measure(benchmark, lambda: validation.parse_order(BODY))[0] == "order"


@pytest.mark.benchmark(group="idempotency key")
def test_key_compiled(benchmark: Benchmark) -> None:
    assert measure(benchmark, lambda: parse_idempotency_key('"0d5a8f6e-3d1f-4a55"'))


@pytest.mark.benchmark(group="idempotency key")
def test_key_reference(benchmark: Benchmark) -> None:
    assert measure(benchmark, lambda: validation.parse_key('"0d5a8f6e-3d1f-4a55"'))[0] == "key"


@pytest.mark.benchmark(group="token")
def test_token_compiled(benchmark: Benchmark) -> None:
    assert isinstance(measure(benchmark, lambda: RING.verify(TOKEN, NOW_S)), Claims)


@pytest.mark.benchmark(group="token")
def test_token_reference(benchmark: Benchmark) -> None:
    assert measure(benchmark, lambda: tokens.verify(TOKEN, KEYS, **ISSUED)) not in ("invalid", "expired")


@pytest.mark.benchmark(group="encode and decode")
def test_call_compiled(benchmark: Benchmark) -> None:
    """64 tickets through the batcher: queue, encode, decode, end."""
    peer, sale = Peer(batch_size_max=BATCH, queue_length_max=BATCH), make_sale()
    peer.connect()
    answer = resp.encode_reply([NOW_MS, *[0] * BATCH])
    batcher = peer.batcher

    def prepare() -> tuple[tuple[list[Ticket]], dict[str, Any]]:
        return ([make_ticket(sale, lines=[(0, 1), (1, 2)]) for _ in range(BATCH)],), {}

    def run(tickets: list[Ticket]) -> None:
        submit = batcher.submit
        for ticket in tickets:
            submit(ticket)
        batcher.output()
        batcher.receive(answer)
        batcher.settle()

    benchmark.extra_info["requests"] = BATCH
    benchmark.pedantic(run, setup=prepare, rounds=300, warmup_rounds=20)


@pytest.mark.benchmark(group="encode and decode")
def test_call_reference(benchmark: Benchmark) -> None:
    """The same call and reply by the naive codec."""
    sale_id = UUID(int=1)
    lines = (OrderLine(0, "SKU-1", 1, 1999), OrderLine(1, "SKU-2", 2, 5))
    answer = resp.encode_reply([NOW_MS, *[0] * BATCH])

    def entries() -> Iterator[tuple[int, OrderEntry]]:
        for number in range(BATCH):
            user = UUID(int=number)
            order = ids.order_id(unix_ms=NOW_MS, lane=0, bucket=topology.bucket_of_user(user), random=number)
            yield 0, OrderEntry(order, user, sale_id, "key", "EUR", lines, OrderStatus.RESERVED, 1, 3, 0, 0, 0)

    def run() -> None:
        words = resp.script_call(
            RESERVE_SHA, lane=0, interval_us=100_000, burst=20, stream_length_max=1000,
            sales=[resp.Sale(sale_id, 3, 1)], orders=list(entries()),
        )  # fmt: skip
        resp.encode_command(words)
        replies, _ = resp.decode(answer)
        assert len(replies) == 1

    measure(benchmark, run, requests=BATCH)


def _accepted() -> Ticket:
    peer, ticket = Peer(), make_ticket(make_sale(), lines=[(0, 1), (1, 2)])
    peer.connect()
    peer.batcher.submit(ticket)
    peer.batcher.receive(peer.calls()[0].accepted())
    return ticket


@pytest.mark.benchmark(group="answer")
def test_answer_compiled(benchmark: Benchmark) -> None:
    ticket = _accepted()
    assert measure(benchmark, ticket.answer_body)


@pytest.mark.benchmark(group="answer")
def test_answer_reference(benchmark: Benchmark) -> None:
    """The same document by `json`, as in `edge.presenting`."""
    document = json.loads(_accepted().answer_body())
    order_id, sale_id = UUID(document["order_id"]), UUID(document["sale_id"])

    def run() -> bytes:
        items = [
            {"sku": "SKU-1", "quantity": 1, "unit_price_minor": 1999},
            {"sku": "SKU-2", "quantity": 2, "unit_price_minor": 5},
        ]
        return json.dumps(
            {
                "order_id": str(order_id),
                "sale_id": str(sale_id),
                "status": "reserved",
                "items": items,
                "total_minor": sum(int(i["quantity"]) * int(i["unit_price_minor"]) for i in items),
                "currency": "EUR",
                "reserved_at": _timestamp(NOW_MS),
                "expires_at": _timestamp(NOW_MS + 600_000),
            },
            separators=(",", ":"),
        ).encode()

    assert measure(benchmark, run) != b""


def _timestamp(unix_ms: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
