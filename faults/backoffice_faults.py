"""Hostile clients of the backoffice: silent connections, bodies that never come, bodies that are dear to read."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from uuid import uuid4

from faults.conditions import NotFired
from faults.scenario import Drill, Fault

SILENT = 1_100  # more connections than the backoffice has
UNFINISHED = 300  # more requests than it has places
CLIENTS = 2
ATTACK_S = 2.0
LIVEZ_P99_MS_MAX = 500.0  # far more than measured (25 ms), and far less than one unbounded body took (1,900 ms)
WORKS = 5  # things that staff do meanwhile
_HEAD = b"POST %b HTTP/1.1\r\nHost: backoffice\r\nContent-Type: application/json\r\n"
_MEMBERS = b"{" + b",".join(b'"m%d":0' % place for place in range(90_000)) + b"}"
_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 200_000
_BODIES = {
    "members to the login": _HEAD % b"/v1/auth/login" + b"Content-Length: %d\r\n\r\n" % len(_MEMBERS) + _MEMBERS,
    "members to no route": _HEAD % b"/nowhere" + b"Content-Length: %d\r\n\r\n" % len(_MEMBERS) + _MEMBERS,
    "chunks to the login": _HEAD % b"/v1/auth/login" + _CHUNKS,
    "chunks to no route": _HEAD % b"/nowhere" + _CHUNKS,
    "chunks without a token": _HEAD % b"/v1/products" + _CHUNKS,
}


def _address(drill: Drill) -> tuple[str, int]:
    host, _, port = drill.stage.stack.backoffice_url.removeprefix("http://").partition(":")
    return host, int(port)


async def silent_sockets(drill: Drill) -> str:
    """Hold more silent connections and unfinished requests than there are places, while staff work."""
    host, port = _address(drill)
    shop = await asyncio.to_thread(drill.stage.staff)
    opened = 0

    async def silent(stack: AsyncExitStack, said: bytes) -> None:
        nonlocal opened
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            stack.callback(writer.transport.abort)
            writer.write(said)
            opened += 1

    async with AsyncExitStack() as stack:
        for said, count in ((b"", SILENT), (_HEAD % b"/v1/auth/login" + b"Content-Length: 100\r\n\r\n", UNFINISHED)):
            for _ in range(count // 100):
                await asyncio.gather(*(silent(stack, said) for _ in range(100)))
        for place in range(WORKS):
            fresh = await asyncio.to_thread(drill.stage.staff)
            for staff in (shop, fresh):
                sku = f"SILENT-{uuid4().hex[:12]}"
                await asyncio.to_thread(partial(staff.create_product, sku=sku, name=f"Made {place}", price_minor=1))
    if opened < SILENT:
        raise NotFired(f"only {opened} connections were opened")
    return f"{opened} silent connections and unfinished requests; staff logged in {WORKS} times and worked"


async def hostile_bodies(drill: Drill) -> str:
    """Two clients send costly bodies at full speed, one kind after the other, while /livez is asked."""
    told = []
    for name, data in _BODIES.items():
        ends = time.monotonic() + ATTACK_S
        sent, times_ms = await asyncio.gather(
            asyncio.gather(*(_attack(drill, data, ends) for _ in range(CLIENTS))), _times_of_livez_ms(drill, name, ends)
        )
        if not any(sent):
            raise NotFired(f"{name}: no body was answered")
        p99_ms = sorted(times_ms)[int(len(times_ms) * 0.99) - 1]
        if p99_ms > LIVEZ_P99_MS_MAX:
            drill.fail("F", f"{name}: p99 of /livez was {p99_ms:.0f} ms")
        told.append(f"{name} {sum(sent)} ({p99_ms:.0f} ms)")
    return f"bodies sent, and p99 of /livez beside them: {', '.join(told)}"


async def _attack(drill: Drill, data: bytes, ends: float) -> int:
    """Send the request again and again until `ends`; the number of answers."""
    answered = 0
    while time.monotonic() < ends:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(*_address(drill))
            try:
                writer.write(data)
                await reader.readuntil(b"\r\n\r\n")
                answered += 1
            finally:
                writer.transport.abort()
    return answered


async def _times_of_livez_ms(drill: Drill, beside: str, ends: float) -> list[float]:
    times_ms: list[float] = []
    while time.monotonic() < ends:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*_address(drill))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: backoffice\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.transport.abort()
        if not answer.startswith(b"HTTP/1.1 200"):
            drill.fail("E", f"{beside}: /livez was answered {answer[:40]!r}")
        times_ms.append((time.monotonic() - began) * 1000)
        await asyncio.sleep(0.005)
    return times_ms


FAULTS = [
    Fault(
        "backoffice-silent-sockets", f"{SILENT} silent connections and {UNFINISHED} requests without their bodies",
        "the longest silent ones make room: staff log in and work", silent_sockets,
    ),
    Fault(
        "backoffice-hostile-bodies", "two clients send costly bodies to the backoffice at full speed",
        "refused by their heads or at a bound; /livez is answered at once", hostile_bodies,
    ),
]  # fmt: skip
