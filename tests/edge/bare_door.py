"""The direct door in the test's own process, on uvloop, with an application that answers when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from edge.cors import Cors
from edge.direct_door import DirectDoor
from edge.order_path import fixed_answers
from hotpath.counters import Counters
from hotpath.order_request import OrderCore
from hotpath.rates import UserRates
from hotpath.tokens import KeyRing
from tests.hotpath.making import Peer

WAIT_S = 10.0
SWEEPS = 40  # so many sweeps look at every connection


def _never(*_: object) -> Any:
    raise AssertionError("these tests place no orders")


class BareDoor:
    """A door, and its requests that wait for an answer, by path."""

    def __init__(self, connections_max: int) -> None:
        self.waiting: dict[str, Any] = {}
        core = OrderCore(
            ring=KeyRing({"kid": bytes(32)}, issuer="flashsale"),
            batcher=Peer().batcher,
            counters=Counters(),
            fixed_answers=fixed_answers(),
            answer_with_argument=_never,
            answer_invalid=_never,
            slow_path=_never,
            report=_never,
            location_prefix="/v1/orders/",
            body_length_max=4096,
            body_deadline_ms=1000,
            rates=UserRates(bytearray(64), interval_us=1, burst=1),
            ceiling=UserRates(bytearray(64), interval_us=1, burst=1),
        )
        self.edge = DirectDoor(
            cast(Any, SimpleNamespace(core=core, find_sale=_never)),
            cast(Any, self),
            Cors([]),
            host="127.0.0.1",
            port=0,
            connections_max=connections_max,
            address_max=connections_max,
            trusted=[],
            refuses_orders=lambda: False,
        )
        self.door = self.edge._door

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """A request of the application."""
        self.waiting[scope.path] = protocol

    async def connect(self, address: str = "127.0.0.1") -> socket.socket:
        """A connection of a client, which reads and sends only when the test does."""
        client = socket.socket()
        client.setblocking(False)  # noqa: FBT003 - the only form
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(client, self.address)
        return client

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self.edge._server is not None
        host, port = self.edge._server.sockets[0].getsockname()
        return host, port

    async def ask(self, client: socket.socket, *paths: str, close: bool = False) -> None:
        """Send requests, and return when all of them wait for their answers."""
        lines = "Host: edge\r\n" + ("Connection: close\r\n" if close else "")
        text = "".join(f"GET {path} HTTP/1.1\r\n{lines}\r\n" for path in paths)
        await asyncio.get_running_loop().sock_sendall(client, text.encode())
        await self.arrival(*paths)

    async def arrival(self, *paths: str) -> None:
        """Return when all these requests wait for their answers."""
        async with asyncio.timeout(WAIT_S):
            while not self.waiting.keys() >= set(paths):  # noqa: ASYNC110 - counting is simpler than signalling
                await asyncio.sleep(0.001)

    def answer(self, path: str, body: bytes, *headers: tuple[str, str]) -> None:
        """Answer a request."""
        self.waiting.pop(path).response_bytes(200, list(headers), body)

    def pass_time(self, seconds: float) -> None:
        """Let every connection see a clock that is ahead."""
        for _ in range(SWEEPS):
            self.door.sweep(time.monotonic_ns() + int(seconds * 1e9))


async def everything(client: socket.socket) -> bytes:
    """All bytes until the door closes. Raises ConnectionError for a reset."""
    parts = []
    async with asyncio.timeout(WAIT_S):
        while part := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            parts.append(part)
    client.close()
    return b"".join(parts)


@contextlib.asynccontextmanager
async def bare_door(*, connections_max: int = 1000) -> AsyncIterator[BareDoor]:
    """A door that listens."""
    bare = BareDoor(connections_max)
    running = asyncio.create_task(bare.edge.run())
    while bare.edge._server is None:  # noqa: ASYNC110 - counting is simpler than signalling
        await asyncio.sleep(0.001)
    try:
        yield bare
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0.01)
    assert (bare.door.unanswered, bare.door.waiting_bytes, len(bare.door)) == (0, 0, 0)
