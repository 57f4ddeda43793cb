"""The direct door of one worker: its listener, its deadlines, and requests other than orders as RSGI requests.

`hotpath.direct` reads and answers HTTP/1.1. This module shows the application the same scope and protocol as Granian
does, so that both doors have one application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import structlog
from httptools import HttpRequestParser

from domain.problems import Problem
from edge.addresses import Connection, Network
from edge.app import EdgeApplication
from edge.cors import Cors
from edge.order_path import OrderPath
from edge.places import ClientOf, Places
from edge.problems import refuse
from hotpath.direct import TRUNCATED, Door
from hotpath.direct import Answer as DirectAnswer
from hotpath.direct import Connection as DirectConnection
from hotpath.direct_order import DirectOrder
from runtime.process.supervision import Beat, no_beat
from runtime.process.tasks import until_tick

_log = structlog.get_logger("edge.direct_door")

BACKLOG_MAX: Final = 65_535
HEAD_MS: Final = 5_000  # for the request line and the headers
IDLE_MS: Final = 75_000  # between requests
WRITE_MS: Final = 10_000  # for a peer that does not read its answers
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024  # answers of a worker that wait for their turn or for such a peer
SWEEP_S: Final = 0.025
IDLE_SWEEP_S: Final = 0.25  # without connections; every deadline is seconds long
DATE_S: Final = 0.5
FINISH_S_MAX: Final = 4.0  # at the stop; the main process kills a worker a second later

_REFUSALS: Final = {
    TRUNCATED: refuse(Problem.MALFORMED_REQUEST, "The body ended early"),
    400: refuse(Problem.MALFORMED_REQUEST, "The request is not valid HTTP/1.1"),
    408: refuse(Problem.REQUEST_TIMEOUT),
    413: refuse(Problem.BODY_TOO_LARGE),
    414: refuse(Problem.MALFORMED_REQUEST, "The request target is too long"),
    417: refuse(Problem.MALFORMED_REQUEST, "The only expectation that this service meets is 100-continue"),
    431: refuse(Problem.MALFORMED_REQUEST, "The headers are too long"),
}


class DirectHeaders:
    """Headers as Granian shows them: names in lower case; `get_all` leaves out values that are not ASCII."""

    __slots__ = ("_values",)

    def __init__(self, flat: Sequence[bytes]) -> None:
        """`flat` is name, value, name, value ..."""
        self._values: dict[str, list[bytes]] = {}
        pairs = iter(flat)
        for name, value in zip(pairs, pairs, strict=True):
            self._values.setdefault(name.decode("latin-1").lower(), []).append(value)

    def __contains__(self, name: str) -> bool:
        """Whether there is such a header."""
        return name in self._values

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first value if it is ASCII, or the default."""
        values = self._values.get(name)
        return values[0].decode("ascii") if values and values[0].isascii() else default

    def get_all(self, name: str) -> list[str]:
        """All values that are ASCII."""
        return [value.decode("ascii") for value in self._values.get(name, ()) if value.isascii()]


class DirectScope:
    """A request as RSGI describes it."""

    __slots__ = ("headers", "method", "path", "query_string")

    def __init__(self, method: bytes, target: bytes, headers: Sequence[bytes]) -> None:
        path, _, query = target.partition(b"?")
        self.method = method.decode("ascii")
        self.path = unquote_to_bytes(path).decode("utf-8", "replace")
        self.query_string = query.decode("latin-1")
        self.headers = DirectHeaders(headers)


class DirectDoor:
    """The listener of one worker and its connections."""

    def __init__(
        self, order_path: OrderPath, application: EdgeApplication, cors: Cors, *, host: str, port: int,
        connections_max: int, address_max: int, trusted: Sequence[Network], refuses_orders: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._application = application
        self._host, self._port = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.places = Places(
            _DoorConnections(lambda: self._door),
            address_max=address_max,
            connections_max=connections_max,
            trusted=trusted,
        )
        self._order_path = order_path
        self._door = Door(
            core=order_path.core,
            make_parser=HttpRequestParser,
            find_sale=order_path.find_sale,
            refuses_orders=refuses_orders,
            serve=self._serve,
            refusal=_REFUSALS.__getitem__,
            run_slow_path=self._run_slow_path,
            make_room=self.places.make_room,
            with_origins=cors.is_active,
            connections_max=connections_max,
            head_ms=HEAD_MS,
            idle_ms=IDLE_MS,
            write_ms=WRITE_MS,
            waiting_bytes_max=WAITING_BYTES_MAX,
        )

    async def run(self, beat: Beat = no_beat) -> None:
        """Listen, and enforce the deadlines. Cancel to stop."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._door.connection, self._host, self._port, reuse_port=True, backlog=BACKLOG_MAX
        )
        try:
            date_until_ns = 0.0
            while True:
                beat()
                now_ns = time.monotonic_ns()
                if now_ns >= date_until_ns:
                    self._door.set_date(formatdate(usegmt=True).encode("ascii"))
                    date_until_ns = now_ns + DATE_S * 1e9
                self._door.sweep(now_ns)
                await asyncio.sleep(SWEEP_S if len(self._door) else until_tick(IDLE_SWEEP_S))
        finally:
            self._server.close()
            self._door.close()
            for task in self._tasks:
                task.cancel()

    def drain(self) -> None:
        """From now on each answer closes its connection."""
        self._door.drain()

    async def finish(self) -> None:
        """Take no more connections, close the idle ones, and wait until the others have read their answers."""
        self._door.drain()
        if self._server is not None:
            self._server.close()
        deadline = time.monotonic() + FINISH_S_MAX
        while True:
            now_ns = time.monotonic_ns()
            for connection in self._door:
                connection.displace(now_ns)
            if not (self._door.unanswered or self._door.waiting_bytes) or time.monotonic() > deadline:
                return
            await asyncio.sleep(SWEEP_S)

    @property
    def unanswered(self) -> int:
        """Requests on their way."""
        return self._door.unanswered

    def snapshot(self) -> dict[str, int]:
        """The door's part of the worker's metrics."""
        door = self._door
        return {
            "connections": len(door),
            "accepted": door.accepted,
            "refused": door.refused,
            "malformed": door.malformed,
            "unread": door.unread,
            "displaced": self.places.displaced,
        }

    def _serve(self, answer: DirectAnswer, method: bytes, target: bytes, headers: Sequence[bytes]) -> None:
        """Serve a request other than a usual order."""
        path = _path_of(target)
        if path is None:
            status, answer_headers, body = refuse(Problem.MALFORMED_REQUEST, "The request target is not a path")
            answer.response_bytes(status, [*answer_headers, ("connection", "close")], body)
            return
        self._start(self._answer(DirectScope(method, path, headers), answer))

    async def _answer(self, scope: DirectScope, answer: DirectAnswer) -> None:
        await self._application.__rsgi__(scope, answer)

    def _run_slow_path(self, order: DirectOrder, reason: int) -> None:
        self._start(self._finish(order, reason))

    async def _finish(self, order: DirectOrder, reason: int) -> None:
        try:
            await self._order_path.slow_path(order, reason)
        except Exception as error:
            order.give_up(error)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _DoorConnections:
    """The connections of the door, for the table of places."""

    def __init__(self, door: Callable[[], Door]) -> None:
        self._door = door
        self._chosen: list[DirectConnection] = []

    def at_most(self) -> int:
        """Their number."""
        return len(self._door())

    def each(self, client: ClientOf) -> Iterator[Connection]:
        """The open connections. A number is valid until the next call."""
        now_ns = time.monotonic_ns()
        self._chosen = list(self._door())
        for number, connection in enumerate(self._chosen):
            yield Connection(number, client(connection.host), connection.idle_ms(now_ns))

    def close(self, chosen: Connection, client: ClientOf) -> bool:
        """Close it if it still is an idle connection of the same client: `each` may have run again since."""
        if chosen.number >= len(self._chosen):
            return False
        connection = self._chosen[chosen.number]
        return client(connection.host) == chosen.client and connection.displace(time.monotonic_ns())


def _path_of(target: bytes) -> bytes | None:
    """The path and query of a request target in origin or absolute form (RFC 9112, section 3.2)."""
    if target[:1] in (b"/", b"*"):
        return target
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        return None
    _, slash, path = rest.partition(b"/")
    return slash + path if slash else b"/"
