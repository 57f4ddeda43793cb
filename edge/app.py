"""The RSGI application: checks for the order route first, then asks a small router.

Every answer is typed and every exception is caught. Granian calls `__rsgi__` once per request and sets no limit on
bodies; only orders and webhooks have one that is read.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import structlog
from granian.rsgi import ProtocolClosed  # type: ignore[attr-defined]  # Granian documents this import

from domain.problems import Problem
from edge.cors import Cors
from edge.problems import Answer, Header, method_not_allowed, refuse
from edge.routing import Headers, Match, Request, Router

_log = structlog.get_logger("edge.app")

ORDER_TEMPLATE: Final = "/v1/sales/{sale_id}/orders"
_ORDER_PREFIX: Final = "/v1/sales/"
_ORDER_SUFFIX: Final = "/orders"
_ORDER_PATH_LENGTH: Final = len(_ORDER_PREFIX) + 36 + len(_ORDER_SUFFIX)
QUIET_S: Final = 1.0  # a drain ends when no request came for this long
_CLOSE: Final[list[Header]] = [("connection", "close")]


class Scope(Protocol):
    """A request as Granian presents it (RSGI 1.5). Each access to `headers` copies them."""

    method: str
    path: str
    query_string: str

    @property
    def headers(self) -> Headers:
        """The request's headers."""


class HttpProtocol(Protocol):
    """Granian's side of a request: iterating reads the body, its methods send the answer."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in parts."""

    def response_bytes(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send an answer with a body."""

    def response_empty(self, status: int, headers: list[Header]) -> None:
        """Send an answer without a body."""


OrderExchange = Callable[[Scope, Any, str], Awaitable[None]]
"""Takes scope, protocol and the sale id of the path. Awaiting the result answers the request."""


class _WithHeaders:
    """A protocol that adds headers to every answer sent through it."""

    __slots__ = ("_extra", "_inner")

    def __init__(self, inner: Any, extra: list[Header]) -> None:
        self._inner = inner
        self._extra = extra

    def __call__(self) -> Any:
        return self._inner()

    def __aiter__(self) -> Any:
        return self._inner.__aiter__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def response_bytes(self, status: int, headers: list[Header], body: bytes) -> None:
        """Answer with the added headers."""
        self._inner.response_bytes(status, [*headers, *self._extra], body)

    def response_empty(self, status: int, headers: list[Header]) -> None:
        """Answer with the added headers."""
        self._inner.response_empty(status, [*headers, *self._extra])


async def order_path_only(request: Request) -> Answer:
    """Occupies the order route in the route table, so that OPTIONS and 405 list it. Never called."""
    raise AssertionError(f"the order path answers {request.path}")


class EdgeApplication:
    """The application of one worker. Calls `refuses_orders` before each order: true while a promise cannot be kept."""

    def __init__(
        self,
        *,
        router: Router,
        order_exchange: OrderExchange,
        refuses_orders: Callable[[], bool],
        cors: Cors,
        drain_ms: int,
        on_start: Callable[[asyncio.AbstractEventLoop], None],
        on_stop: Callable[[], Awaitable[None]],
        on_drain: Callable[[], None],
        in_flight_elsewhere: Callable[[], int] = lambda: 0,
    ) -> None:
        self._router = router
        self._order_exchange = order_exchange
        self._refuses_orders = refuses_orders
        self._cors = cors
        self._drain_s = drain_ms / 1000
        self._on_start = on_start
        self._on_stop = on_stop
        self._on_drain = on_drain
        self._in_flight_elsewhere = in_flight_elsewhere
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self.in_flight = 0  # requests inside `_serve`
        self._begun = 0
        self.answers: Counter[tuple[str, int]] = Counter()  # (route, status); routes are few

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by Granian before the first request, while the loop does not run yet."""
        self._loop = loop
        # Ctrl-C reaches the whole process group; only the main process decides when its workers stop.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGUSR1, self.drain)
        self._on_start(loop)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by Granian after the last answer, when the loop has stopped."""
        loop.run_until_complete(self._on_stop())

    def __rsgi__(self, scope: Scope, protocol: HttpProtocol) -> Awaitable[None]:
        """Return an awaitable that answers the request."""
        path = scope.path
        if (
            len(path) == _ORDER_PATH_LENGTH
            and path.startswith(_ORDER_PREFIX)
            and path.endswith(_ORDER_SUFFIX)
            and scope.method == "POST"
            and (not self._cors.is_active or "origin" not in scope.headers)  # no `Origin`, no CORS headers
            and self._draining is None
            and not self._refuses_orders()
        ):
            return self._order_exchange(scope, protocol, path[10:46])
        return self._serve(scope, protocol)

    def snapshot(self) -> dict[str, Any]:
        """The application's part of the worker's metrics."""
        return {
            "requests_in_flight": self.in_flight,
            "requests": [(route, status, count) for (route, status), count in self.answers.items()],
        }

    def drain(self) -> None:
        """Begin to stop: `/readyz` fails, each answer closes its connection, the server stops when requests cease."""
        if self._draining is None:
            self._on_drain()
            self._draining = self._loop.create_task(self._leave_when_quiet())

    async def _leave_when_quiet(self) -> None:
        deadline = time.monotonic() + self._drain_s
        begun = -1
        while time.monotonic() < deadline and (begun != self._begun or self.in_flight or self._in_flight_elsewhere()):
            begun = self._begun
            await asyncio.sleep(min(QUIET_S, self._drain_s))
        # SIGTERM makes Granian close the listener and finish the requests in flight.
        os.kill(os.getpid(), signal.SIGTERM)

    async def _serve(self, scope: Scope, protocol: HttpProtocol) -> None:
        self._begun += 1
        self.in_flight += 1
        route, status = "other", 500
        try:
            headers = scope.headers
            extra = self._cors.for_answer(headers.get("origin"))
            if self._draining is not None:
                extra = [*extra, *_CLOSE]
            match = self._router.match(scope.path)
            if match is not None:
                route = match.template
            if match is not None and route == ORDER_TEMPLATE and scope.method == "POST":
                await self._place(scope, _WithHeaders(protocol, extra) if extra else protocol, match.params["sale_id"])
                return  # the order path counts it
            status, answer_headers, body = await self._answer(scope, headers, match, protocol)
            answer_headers = [*answer_headers, *extra] if extra else answer_headers
            if body:
                protocol.response_bytes(status, answer_headers, body)
            else:
                protocol.response_empty(status, answer_headers)
            self.answers[route, status] += 1
        except ProtocolClosed:
            self.answers[route, 499] += 1  # the client closed the connection
        except Exception:
            request_id = secrets.token_hex(8)
            _log.exception("request_failed", request_id=request_id, route=route)
            self._answer_failed(protocol, request_id)
            self.answers[route, 500] += 1
        finally:
            self.in_flight -= 1

    async def _place(self, scope: Scope, protocol: Any, sale_id: str) -> None:
        if self._refuses_orders():
            status, headers, body = refuse(Problem.DEPENDENCY_UNAVAILABLE)
            protocol.response_bytes(status, headers, body)
            self.answers[ORDER_TEMPLATE, status] += 1
            return
        await self._order_exchange(scope, protocol, sale_id)

    async def _answer(self, scope: Scope, headers: Headers, match: Match | None, protocol: HttpProtocol) -> Answer:
        if match is None:
            return refuse(Problem.NOT_FOUND)
        if scope.method == "OPTIONS":
            allow: list[Header] = [("allow", ", ".join(match.methods))]
            return 204, [*allow, *self._cors.for_preflight(headers.get("origin"), match.methods)], b""
        handler = match.handlers.get(scope.method)
        if handler is None:
            return method_not_allowed(match.methods)
        return await handler(Request(scope.method, scope.path, scope.query_string, headers, match.params, protocol))

    @staticmethod
    def _answer_failed(protocol: HttpProtocol, request_id: str) -> None:
        status, headers, body = refuse(
            Problem.INTERNAL_ERROR, f"The service failed; give the number {request_id} when you report this"
        )
        try:
            protocol.response_bytes(status, headers, body)
        except (ProtocolClosed, RuntimeError):
            _log.info("failure_not_answered", request_id=request_id)  # answered already, or client gone
