"""Payments told by the provider while orders run: the whole stack on the same cores.

    python -m perf.webhooks [--rate 2000] [--order-rate 2000] [--seconds 10] [--save] [--json] [--gate]

Orders are placed first. Then their events arrive on a schedule, signed as the simulated provider signs them, while new
orders arrive on a schedule of their own. An event's latency counts from when it was due to its 200, waiting for a
connection included. Afterwards the payments are recounted in the shards: each event is one captured row.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import psycopg
import uvloop

from perf.load import Load
from perf.results import Figure, Target, add_options, conclude, progress
from perf.whole_stack import WholeStack, whole_stack

USERS = 50_000
PRICE_MINOR = 1999
CONNECTIONS = 64  # of orders
EVENT_CONNECTIONS = 256  # fewer would bound the rate: each carries one event at a time, as a provider sends them
P99_MS_MAX = 50.0
RATE_SHARE_MIN = 0.99  # of the schedule: events that were answered 200 within it
FINISH_S_MAX = 20.0
METHOD = (
    "Whole embedded stack, load generators and servers on the same cores. Events of payments at the Granian door, open "
    "loop over 256 connections: event i is due i / rate seconds after the start; latency from when it was due to its "
    "200. Orders run meanwhile at the direct door, open loop. Every event pays an order of its own; recounted in the shards."
)


class NotAnswered(Exception):
    """Events had no answer, or not 200; the message counts them."""


def main() -> int:
    options = _options()
    with progress() as say, whole_stack(say, users=USERS) as stack:
        result = measure(stack, say, rate=options.rate, order_rate=options.order_rate, seconds=options.seconds)
    targets = [
        Target("p99 from when an event was due", result["latency_ms"]["p99"], "ms", most=P99_MS_MAX),
        Target("events answered 200 in time", result["in_time"] / result["due"], "of 1", least=RATE_SHARE_MIN),
        Target("captured rows", result["captured"] / result["due"], "of 1", least=1.0, most=1.0),
    ]
    return conclude(Figure("webhooks", METHOD, targets, result), options, as_text(result))


def measure(
    stack: WholeStack, say: Callable[[str], None], *, rate: float, order_rate: float, seconds: float
) -> dict[str, Any]:
    """Place orders, then pay them while others are placed."""
    count = round(rate * seconds)
    say(f"placing {count:,} orders")
    order_ids = place(stack, count)
    say(f"{rate:,.0f} events and {order_rate:,.0f} orders a second for {seconds:.0f} s")
    cpu_before = stack.cpu_us()
    with Load(stack.aim, "beside", seconds, CONNECTIONS, order_rate) as load:
        told = uvloop.run(tell(stack.stack.edge_url, stack.stack.payment_secret, order_ids, rate=rate))
        orders = load.finish(stop=False)
    cpu_after = stack.cpu_us()
    latencies = sorted(told.latencies_ms)
    return {
        "due": count,
        "in_time": sum(done <= seconds + P99_MS_MAX / 1000 for done in told.done_s),
        "latency_ms": {
            name: latencies[min(len(latencies) - 1, int(share * len(latencies)))]
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
        },
        "captured": captured(stack, order_ids),
        "orders": {"accepted": orders["accepted"], "due": orders["open_loop"]["orders"]},
        "cpu_us_an_event": {name: (cpu_after[name] - cpu_before.get(name, 0)) / count for name in cpu_after},
    }


def place(stack: WholeStack, count: int) -> list[UUID]:
    """Accepted orders, at least `count` of them; the first `count`."""
    with tempfile.NamedTemporaryFile() as file:
        with Load(stack.aim, "paid", 120.0, orders=Path(file.name)) as load:
            while load.counted["accepted"] < count:
                time.sleep(0.1)
            load.finish()
        lines = Path(file.name).read_text(encoding="ascii").splitlines()
    return [UUID(line.split()[0]) for line in lines[:count]]


@dataclass(slots=True)
class Told:
    """Answers 200: latencies, and the times since the start."""

    latencies_ms: list[float] = field(default_factory=list)
    done_s: list[float] = field(default_factory=list)
    refused: int = 0


class _Connection(asyncio.Protocol):
    """One request at a time over a kept connection."""

    def __init__(self, answered: Callable[[_Connection], None]) -> None:
        self._answered = answered
        self.is_good = False  # the last answer
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self.due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self.is_good = False
        self._answered(self)

    def send(self, request: bytes, due_s: float) -> None:
        assert self._transport is not None
        self.due_s = due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(body) >= length:
            self._buffer = b""
            self.is_good = head.startswith(b"HTTP/1.1 200")
            self._answered(self)


async def tell(url: str, secret: str, order_ids: Sequence[UUID], *, rate: float) -> Told:
    """Send the events of these orders on schedule. Raises NotAnswered unless each is answered 200."""
    loop = asyncio.get_running_loop()
    told, idle, waiting = Told(), deque[_Connection](), deque[tuple[bytes, float]]()
    all_answered = asyncio.Event()

    def answered(connection: _Connection) -> None:
        if all_answered.is_set():
            return  # the connection closes at the end
        now_s = loop.time() - start_s
        if connection.is_good:
            told.latencies_ms.append((now_s - connection.due_s) * 1000)
            told.done_s.append(now_s)
        else:
            told.refused += 1
        if waiting:
            connection.send(*waiting.popleft())
        else:
            idle.append(connection)
        if len(told.done_s) + told.refused == len(order_ids):
            all_answered.set()

    parts = urlsplit(url)
    for _ in range(EVENT_CONNECTIONS):
        _, connection = await loop.create_connection(
            lambda: _Connection(answered), parts.hostname or "", parts.port or 80
        )
        idle.append(connection)
    # Signed before the start, within the tolerance of the signature's time: this process shares the cores.
    requests = [signed_request(parts.netloc, secret, order_id) for order_id in order_ids]
    start_s = loop.time()
    for place, request in enumerate(requests):
        due_s = place / rate
        if (wait_s := due_s - (loop.time() - start_s)) > 0:
            await asyncio.sleep(wait_s)
        if idle:
            idle.popleft().send(request, due_s)
        else:
            waiting.append((request, due_s))
    try:
        async with asyncio.timeout(FINISH_S_MAX):
            await all_answered.wait()
    except TimeoutError:
        raise NotAnswered(f"{len(told.done_s)} of {len(order_ids)} events were answered 200") from None
    if told.refused:
        raise NotAnswered(f"{told.refused} of {len(order_ids)} events were not answered 200")
    return told


def signed_request(host: str, secret: str, order_id: UUID) -> bytes:
    """The request of an event that pays the order."""
    event = {
        "event_id": f"perf-{order_id}", "type": "payment.succeeded", "order_id": str(order_id),
        "amount_minor": PRICE_MINOR, "currency": "EUR",
    }  # fmt: skip
    body, stamp = json.dumps(event).encode(), str(int(time.time()))
    mac = hmac.digest(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hex()
    head = (
        f"POST /v1/payments/webhook HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Payment-Signature: t={stamp},v1={mac}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def captured(stack: WholeStack, order_ids: Sequence[UUID]) -> int:
    """Captured rows of these events, in all shards."""
    events = [f"perf-{order_id}" for order_id in order_ids]
    query = "SELECT count(*) FROM payments WHERE state = 'captured' AND event_id = ANY(%s)"
    found = 0
    for dsn in stack.stack.shard_dsns:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute(query, (events,)).fetchone()
            found += row[0] if row else 0
    return found


def as_text(result: dict[str, Any]) -> list[str]:
    """Latencies, the recount, and the orders beside."""
    latency = ", ".join(f"{name} {value:.1f}" for name, value in result["latency_ms"].items())
    costs = sorted(result["cpu_us_an_event"].items(), key=lambda cost: -cost[1])[:5]
    return [
        f"{result['in_time']:,} of {result['due']:,} events answered 200 in time; {result['captured']:,} rows captured",
        f"latency ms, from when due: {latency}",
        f"orders beside: {result['orders']['accepted']:,} of {result['orders']['due']:,} accepted",
        "CPU us an event, orders beside included: " + ", ".join(f"{name} {cost:.0f}" for name, cost in costs),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.webhooks", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=2000.0, help="events due a second")
    parser.add_argument("--order-rate", type=float, default=2000.0, help="orders due a second beside them")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of both schedules")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
