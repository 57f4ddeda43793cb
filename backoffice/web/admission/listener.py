"""Listens on the public port, bounds the number of connections, and drains them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import h11
import structlog

from backoffice.web.admission.connection import Connection
from backoffice.web.admission.context import Bounds, Context, Permit
from backoffice.web.admission.places import Places
from backoffice.web.admission.proxies import UntrustedProxies
from backoffice.web.admission.wire import Closed
from backoffice.web.clients import Network
from backoffice.web.messages import Stream
from domain.problems import Problem, ProblemDetails

log = structlog.get_logger(__name__)

_ACCEPT_S = 0.05  # the event loop needs this long to learn of connections that the kernel has accepted


class Admission:
    """Serves connections. Arguments are those of `Context`."""

    def __init__(
        self,
        *,
        robyn: tuple[str, int],
        secret: str,
        permit: Callable[[str, str, str | None, str], Permit],
        take_stream: Callable[[str], Stream | None],
        bounds: Bounds,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        """Does not listen yet."""
        self._context = Context(
            bounds,
            robyn,
            secret.encode("ascii"),
            permit,
            take_stream,
            trusted_proxies,
            UntrustedProxies(trusted_proxies),
            Places(
                most=bounds.requests_max,
                client_most=bounds.client_requests_max,
                kept_for_staff=bounds.staff_requests_kept,
            ),
        )
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._server: asyncio.Server | None = None

    @property
    def requests(self) -> int:
        """Requests in progress, without streams that have begun."""
        return len(self._context.places)

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port, which the kernel chooses for 0. OSError when the port is in use."""
        self._server = await asyncio.start_server(self._accept, host, port, backlog=1024)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def drain(self, wait_s_max: float) -> None:
        """Stop accepting; let requests in progress and requests on their way finish; cut the rest after the wait.

        An idle connection ends after `linger_s_max`. The application has closed its streams before: the rest of a
        stream waits for a reader that does not read, and is cut after `stream_drain_s_max`.
        """
        self._context.draining = True
        if self._server is not None:
            # Closing resets connections that the kernel has accepted and we have not.
            await asyncio.sleep(min(wait_s_max, _ACCEPT_S))
            self._server.close()
            # The connections accepted last enter `_connections` in the next turns of the loop.
            await asyncio.sleep(min(wait_s_max, _ACCEPT_S))
        for connection in self._connections.values():
            connection.hurry()
        streams = [task for task, connection in self._connections.items() if connection.streams]
        if streams:
            bounds = self._context.bounds
            _, blocked = await asyncio.wait(streams, timeout=min(wait_s_max, bounds.stream_drain_s_max))
            for task in blocked:
                task.cancel()
        if self._connections:
            await asyncio.wait(tuple(self._connections), timeout=wait_s_max)
        for task in tuple(self._connections):
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(self._context, reader, writer)
        if not self._make_room(connection):
            with contextlib.suppress(OSError, TimeoutError):
                await connection.refuse(ProblemDetails(Problem.OVERLOADED, retry_after_s=1))
            writer.close()
            return
        self._connections[task] = connection
        try:
            await connection.serve()
        except (Closed, OSError, TimeoutError, h11.ProtocolError) as error:
            log.debug("connection ended", reason=type(error).__name__)
        finally:
            del self._connections[task]
            connection.close()

    def _make_room(self, newcomer: Connection) -> bool:
        """Whether there is room for a connection, if need be that of the one that has been silent longest."""
        bounds = self._context.bounds
        others = [connection for connection in self._connections.values() if not connection.is_displaced]
        own = [connection for connection in others if connection.peer == newcomer.peer]
        if len(own) >= bounds.client_connections_max and not self._context.trusts(newcomer.peer):
            return _displace_one(own)
        return len(others) < bounds.connections_max or _displace_one(others)


def _displace_one(connections: Sequence[Connection]) -> bool:
    silent = [connection for connection in connections if connection.silent_since is not None]
    if not silent:
        return False
    min(silent, key=lambda connection: connection.silent_since or 0.0).displace_silent()
    return True
