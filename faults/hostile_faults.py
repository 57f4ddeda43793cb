"""Hostile or broken clients: slow heads, slow bodies, endless bodies, ambiguous requests, mass reconnects, retries."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import UUID

from faults.conditions import Needs, NotFired
from faults.history import Ending
from faults.scenario import Drill, Fault
from faults.wire import HEAD_BYTES_MAX, Answer, NotHttp, order_request, read_answer

SLOW_CLIENTS = 250
PLACES = 256
SILENT = 800
SLOW_S = 7.0  # longer than a body may take to arrive
ENDLESS_MB = 32
MEMORY_MB_MAX = 64
RECONNECTING = 1000
ROUNDS = 3
ANSWER_S_MAX = 10.0


@asynccontextmanager
async def _connection(drill: Drill) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = drill.door_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=HEAD_BYTES_MAX)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _order(drill: Drill, key: str) -> tuple[UUID, bytes, bytes]:
    """A buyer, and the head and the body of a valid order."""
    user, token = drill.rng.choice(drill.stage.users)
    body = json.dumps({"items": [{"sku": drill.skus[1], "quantity": 1}]}).encode()
    whole = order_request("edge", f"/v1/sales/{drill.sale_id}/orders", token=token, key=key, body=body)
    return user, whole[: -len(body)], body


async def _answer(reader: asyncio.StreamReader) -> Answer | None:
    """The answer; None if the connection ended without one."""
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            return await read_answer(reader)
    except (OSError, asyncio.IncompleteReadError, NotHttp):
        return None


def _kind(answer: Answer | None) -> str:
    if answer is None:
        return "closed"
    try:
        return str(json.loads(answer.body).get("code", answer.status))
    except ValueError:
        return f"{answer.status} untyped"


async def slow_heads(drill: Drill) -> str:
    """Send heads one byte at a time, without an end."""
    before, began = drill.pace(), time.monotonic()
    _, head, _ = _order(drill, "slow-head")
    held = 0

    async def dribble() -> None:
        nonlocal held
        with suppress(OSError):
            async with _connection(drill) as (_, writer):
                for place in range(int(SLOW_S / 0.5)):
                    writer.write(head[place : place + 1])
                    await writer.drain()
                    await asyncio.sleep(0.5)
                held += 1

    await asyncio.gather(*(dribble() for _ in range(SLOW_CLIENTS)))
    now = drill.goes_on(began, before)
    if held < SLOW_CLIENTS:
        raise NotFired(f"only {held} of {SLOW_CLIENTS} clients sent until the end")
    return f"{held} of {SLOW_CLIENTS} sent for {SLOW_S:.0f} s; buyers got {now:.0f} answers/s, {before:.0f}/s before"


async def silent_sockets(drill: Drill) -> str:
    """Hold more silent connections of one address than all workers have places, while buyers come from another one."""
    host, _, port = drill.door_url.removeprefix("http://").partition(":")
    before, began = drill.pace(), time.monotonic()
    opened: list[asyncio.StreamWriter] = []
    asked, answered = 0, 0
    try:
        for _ in range(SILENT // 100):
            made = await asyncio.gather(
                *(asyncio.open_connection(host, int(port), local_addr=("127.0.0.3", 0)) for _ in range(100)),
                return_exceptions=True,
            )
            opened += [made_one[1] for made_one in made if not isinstance(made_one, BaseException)]
            asked += 1
            async with _connection(drill) as (reader, writer):
                writer.write(f"GET /v1/sales/{drill.sale_id} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
                answer = await _answer(reader)
                answered += answer is not None and answer.status == 200
        now = drill.goes_on(began, before)
    finally:
        for writer in opened:
            writer.transport.abort()
    if answered < asked:
        drill.fail("E", f"{asked - answered} of {asked} new connections got no answer beside the silent ones")
    if len(opened) < SILENT:
        raise NotFired(f"only {len(opened)} connections were opened")
    return f"{len(opened)} silent connections of one address; {answered} new ones of another were answered, {now:.0f}/s"


async def slow_bodies(drill: Drill) -> str:
    """Send a whole head, then only the start of its body."""
    before, began = drill.pace(), time.monotonic()
    kinds: Counter[str] = Counter()

    async def hold_back(number: int) -> None:
        _, head, body = _order(drill, f"slow-body-{number}")
        async with _connection(drill) as (reader, writer):
            writer.write(head + body[:5])
            kinds[_kind(await _answer(reader))] += 1

    await asyncio.gather(*(hold_back(number) for number in range(SLOW_CLIENTS)), return_exceptions=True)
    drill.goes_on(began, before)
    if kinds["request_timeout"] != SLOW_CLIENTS:
        drill.fail("E", f"{SLOW_CLIENTS} incomplete bodies were answered {dict(kinds)}, not request_timeout")
    return f"{sum(kinds.values())} bodies stayed incomplete: {dict(kinds)}"


async def huge_bodies(drill: Drill) -> str:
    """Send a body with a length of a gigabyte, and one in chunks without an end."""
    workers = drill.stage.edge_workers()
    before_mb = _resident_mb(workers)
    _, head, _ = _order(drill, "huge")
    lines = [line for line in head.split(b"\r\n") if line and not line.startswith(b"Content-Length")]
    said = b"\r\n".join([*lines, b"Content-Length: 1073741824", b"", b""])
    chunked = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""])
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    kinds: Counter[str] = Counter()
    sent_mb = 0
    for start, piece in ((said, b" " * 0x10000), (chunked, chunk)) * 4:
        async with _connection(drill) as (reader, writer):
            answer = asyncio.create_task(_answer(reader))
            with suppress(OSError):
                writer.write(start)
                for _ in range(ENDLESS_MB * 16):
                    writer.write(piece)
                    await writer.drain()
                    sent_mb += 1
                    if answer.done():
                        break
            kinds[_kind(await answer)] += 1
    grown_mb = _resident_mb(workers) - before_mb
    if kinds["body_too_large"] + kinds["closed"] != sum(kinds.values()) or not kinds["body_too_large"]:
        drill.fail("E", f"endless bodies were answered {dict(kinds)}, not body_too_large")
    if grown_mb > MEMORY_MB_MAX:
        drill.fail("E", f"the edge grew by {grown_mb} MB over {sent_mb // 16} MB of bodies")
    return (
        f"{sum(kinds.values())} endless bodies: {dict(kinds)}; {sent_mb // 16} MB sent, the edge grew by {grown_mb} MB"
    )


def _resident_mb(pids: list[int]) -> int:
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) for pid in pids)
    return pages * 4096 // 2**20


async def smuggle(drill: Drill) -> str:
    """Send requests of ambiguous length: one reading sees a body, another reading sees a hidden second order."""
    kinds: Counter[str] = Counter()
    _, head, _ = _order(drill, "outer")
    lines = [line for line in head.split(b"\r\n") if line and not line.startswith(b"Content-Length")]
    number = 0
    for name, framing, before_hidden in (
        ("length and chunked", [b"Content-Length: %d", b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        ("chunked and length", [b"Transfer-Encoding: chunked", b"Content-Length: %d"], b"0\r\n\r\n"),
        ("two lengths", [b"Content-Length: 5", b"Content-Length: %d"], b"hello"),
        ("listed lengths", [b"Content-Length: 5, %d"], b"hello"),
        ("odd chunked", [b"Content-Length: %d", b"Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
        ("spaced chunked", [b"Content-Length: %d", b"Transfer-Encoding : chunked"], b"0\r\n\r\n"),
        ("vertical tab chunked", [b"Content-Length: %d", b"Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n"),
        ("chunked twice", [b"Content-Length: %d", b"Transfer-Encoding: chunked, identity"], b"0\r\n\r\n"),
        ("folded length", [b"X-A: b\r\n Content-Length: %d", b"Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        ("signed length", [b"Content-Length: +%d"], b""),
        ("negative length", [b"Content-Length: -1"], b""),
        ("no digits", [b"Content-Length: 0x10"], b""),
    ):
        number += 1
        user, hidden_head, hidden_body = _order(drill, f"smuggled-{number}")
        hidden = before_hidden + hidden_head + hidden_body
        framed = [part % len(hidden) if b"%d" in part else part for part in framing]
        async with _connection(drill) as (reader, writer):
            writer.write(b"\r\n".join([*lines, *framed, b"", b""]) + hidden)
            first = await _answer(reader)
            second = await _answer(reader) if first is not None else None
        kinds[_kind(first)] += 1
        if second is not None and second.status < 300:
            drill.fail("E", f"{name}: the hidden order was accepted as a request of its own")
            order_id = UUID(json.loads(second.body)["order_id"])
            drill.say(f"{name}: order {order_id} of {user}")
        if first is not None and first.status < 300:
            drill.fail("E", f"{name}: accepted")
    if not number:
        raise NotFired("nothing was sent")
    return f"{number} ambiguous requests: {dict(kinds)}"


async def reconnect_all(drill: Drill) -> str:
    """Connect a thousand clients at once, three times, as after a lost network."""
    statuses: Counter[int] = Counter()

    async def come() -> None:
        try:
            async with asyncio.timeout(ANSWER_S_MAX), _connection(drill) as (reader, writer):
                writer.write(f"GET /v1/sales/{drill.sale_id} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
                statuses[(await read_answer(reader)).status] += 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            statuses[0] += 1

    for _ in range(ROUNDS):
        await asyncio.gather(*(come() for _ in range(RECONNECTING)))
    if statuses[0] or any(status >= 500 for status in statuses):
        drill.fail("E", f"some clients got no answer or a 5xx: {dict(statuses)}")
    return f"{sum(statuses.values())} connections in {ROUNDS} waves, answers by status: {dict(statuses)}"


async def storm_of_retries(drill: Drill) -> str:
    """Repeat every order at once from many connections, for a part of them while Redis is stalled."""
    history, proxy = drill.buyers.history, drill.stage.proxy("edge")
    replays_before, held_before = sum(attempt.replayed for attempt in history.attempts()), proxy.counted["stalled"]
    wires = [drill.buyers.new_wire() for _ in range(8)]
    wanted = [request for request in history.requests if not request.misuse][-200:]
    for place, request in enumerate(wanted):
        if place == len(wanted) // 2:
            proxy.stall(stalled=True)
            asyncio.get_running_loop().call_later(0.7, proxy.stall, False)  # noqa: FBT003 - call_later takes no names
        await asyncio.gather(*(drill.buyers.ask(wire, request) for wire in wires))
    for wire in wires:
        wire.close()
    replays = sum(attempt.replayed for attempt in history.attempts()) - replays_before
    again = sum(attempt.ending is Ending.OK for request in wanted for attempt in request.attempts)
    if not replays or proxy.counted["stalled"] == held_before:
        raise NotFired(f"{replays} orders were replayed, {proxy.counted['stalled'] - held_before} writes delayed")
    return f"{len(wanted)} orders repeated eight times at once: {again} times the same order, {replays} replays"


FAULTS = [
    Fault("slowloris", "250 clients send heads byte by byte", "other clients are served as before", slow_heads),
    Fault(
        "edge-silent-sockets", f"{SILENT} silent connections of one address at an edge with {PLACES} places a worker",
        "the longest silent ones make room: buyers on new connections are answered", silent_sockets,
        needs=Needs(limits={"edge_connections_max": str(PLACES)}),
    ),
    Fault("slow-body", "250 clients send a head and no body", "request_timeout; other clients are served", slow_bodies),
    Fault(
        "huge-body", "bodies of a gigabyte, and in chunks without an end",
        "body_too_large, the connection closes, memory does not grow", huge_bodies,
    ),
    Fault(
        "request-smuggling", "requests of ambiguous length that hide another order",
        "refused, or read in one way and closed: the hidden order is never accepted", smuggle,
    ),
    Fault("thundering-reconnect", "a thousand clients connect at once, three times", "all are answered", reconnect_all),
    Fault(
        "buyer-retries-storm", "every order repeated eight times at once, also while Redis stalls",
        "one order per key", storm_of_retries,
    ),
]  # fmt: skip
