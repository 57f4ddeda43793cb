"""The load driver against an edge with planned failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perf.driver.histogram import percentiles_ms, sparse
from perf.driver.loop import bucket_index, bucket_start_us

_REASONS = {202: "Accepted", 409: "Conflict", 503: "Service Unavailable", 504: "Gateway Timeout"}


class PlannedEdge:
    """Accepts `stock` orders, one per key. Some first requests get 503, 504, a cut connection, half an answer."""

    def __init__(self, stock: int) -> None:
        self.stock = stock
        self.accepted: dict[str, str] = {}
        self.bodies: dict[str, set[str]] = {}
        self.asked: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                key = re.search(r"Idempotency-Key: (\S+)", head)
                assert length and key
                body = await reader.readexactly(int(length[1]))
                self.bodies.setdefault(key[1], set()).add(head + body.decode())
                self.asked[key[1]] += 1
                if not await self._answer(writer, key[1]):
                    break
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, key: str) -> bool:
        place = int(key.rsplit("-", 1)[1])
        first = self.asked[key] == 1
        if first and place % 10 == 3:
            self._send(writer, 503, {"code": "overloaded"})
            return True
        replayed = key in self.accepted
        if not replayed and len(self.accepted) == self.stock:
            self._send(writer, 409, {"type": "/problems/sold_out", "code": "sold_out"})
            return True
        self.accepted.setdefault(key, f"{place:08d}-0000-8000-8000-000000000000")
        if first and place % 10 == 5:  # the order is accepted, the answer is lost
            return False
        if first and place % 10 == 6:
            self._send(writer, 504, {"code": "outcome_unknown"})
            return True
        extra = "idempotency-replayed: true\r\n" if replayed else ""
        document = {"order_id": self.accepted[key], "status": "reserved"}
        if first and place % 10 == 7:  # an answer cut in the middle
            self._send(writer, 202, document, extra, cut=10)
            return False
        self._send(writer, 202, document, extra)
        await writer.drain()
        return True

    @staticmethod
    def _send(
        writer: asyncio.StreamWriter, status: int, document: dict[str, Any], extra: str = "", cut: int = 0
    ) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        answer = head.encode() + body
        writer.write(answer[: len(answer) - cut])


@pytest.fixture
async def planned_edge() -> AsyncIterator[tuple[PlannedEdge, int]]:
    edge = PlannedEdge(stock=200)
    server = await asyncio.start_server(edge.serve, "127.0.0.1", 0)
    yield edge, server.sockets[0].getsockname()[1]
    server.close()


async def _drive(tmp_path: Path, port: int, *, stop_at_refused: int) -> dict[str, Any]:
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"user-{place}\ttoken-{place}\n" for place in range(17)), encoding="ascii")
    driver = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perf.driver", "--url", f"http://127.0.0.1:{port}", "--sale", "the-sale", "--sku", "A",
        "--sku", "B", "--tokens", str(tokens), "--orders", str(tmp_path / "orders"), "--connections", "8",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert driver.stdin and driver.stdout
    try:
        async for line in driver.stdout:
            counted: dict[str, Any] = json.loads(line)
            if counted.get("final"):
                assert await driver.wait() == 0
                return counted
            if counted["refused"] >= stop_at_refused and not driver.stdin.is_closing():
                driver.stdin.write(b"stop\n")
                await driver.stdin.drain()
    finally:
        if driver.returncode is None:
            os.kill(driver.pid, signal.SIGKILL)
            await driver.wait()
    raise AssertionError("the driver ended without its last line")


async def test_driver_counts_repeats_and_records(planned_edge: tuple[PlannedEdge, int], tmp_path: Path) -> None:
    edge, port = planned_edge
    result = await _drive(tmp_path, port, stop_at_refused=50)

    assert result["accepted"] == len(edge.accepted) == 200
    assert result["given_up"] == result["unanswered"] == 0
    recorded = [line.split("\t") for line in (tmp_path / "orders").read_text(encoding="ascii").splitlines()]
    assert sorted(order for order, _, _ in recorded) == sorted(edge.accepted.values())

    answers = {(status, code): count for status, code, count in result["answers"]}
    assert answers[202, ""] == 200
    assert answers[409, "sold_out"] == result["refused"]
    assert answers[503, "overloaded"] > 0 and answers[504, "outcome_unknown"] > 0
    assert result["replayed"] > 0 and result["transport_errors"] > 0
    assert (
        result["retries"] == result["transport_errors"] + answers[503, "overloaded"] + answers[504, "outcome_unknown"]
    )
    assert sum(result["accepted_per_100ms"]) == 200
    assert sum(result["refused_per_100ms"]) == result["refused"]


async def test_repeated_request_has_the_same_bytes_and_its_users_token(
    planned_edge: tuple[PlannedEdge, int], tmp_path: Path
) -> None:
    edge, port = planned_edge
    await _drive(tmp_path, port, stop_at_refused=1)
    assert max(edge.asked.values()) > 1
    assert {len(requests) for requests in edge.bodies.values()} == {1}
    for key, (request,) in edge.bodies.items():
        place = int(key.rsplit("-", 1)[1])
        assert f"Authorization: Bearer token-{place % 17}\r\n" in request
        assert request.startswith("POST /v1/sales/the-sale/orders HTTP/1.1\r\n")


def test_buckets_are_in_order_and_right_within_two_percent() -> None:
    for latency_us in [*range(300), 999, 1_000, 65_535, 65_536, 1_234_567, 60_000_000]:
        start = bucket_start_us(bucket_index(latency_us))
        assert start <= latency_us <= start * 1.016 + 1
    starts = [bucket_start_us(bucket) for bucket in range(bucket_index(10_000_000))]
    assert starts == sorted(starts)


def test_percentiles_of_known_latencies() -> None:
    counts = [0] * 5000
    for latency_us in range(1, 101):
        counts[bucket_index(latency_us)] += 1
    assert percentiles_ms(sparse(counts)) == {"p50": 0.05, "p95": 0.095, "p99": 0.099, "p99.9": 0.1, "max": 0.1}
    assert percentiles_ms(sparse([0] * 10)) == {}
