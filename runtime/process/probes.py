"""A small bounded HTTP responder for /livez, /readyz and /metrics of workers.

Not a web server: GET and HEAD only, one request per connection, at most `CONNECTIONS_MAX` connections, each at most
`REQUEST_S_MAX` seconds with a head of at most `HEAD_BYTES_MAX` bytes. A connection beyond a bound is closed without an
answer.
"""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONNECTIONS_MAX = 32
REQUEST_S_MAX = 5.0
HEAD_BYTES_MAX = 8192

_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
_TEXT = "text/plain; charset=utf-8"


class Observed(Protocol):
    """State that the responder reports (`runtime.process.service.Service`)."""

    @property
    def is_ready(self) -> bool:
        """Whether /readyz answers 200."""
        ...

    @property
    def checks(self) -> dict[str, tuple[bool, str]]:
        """Conditions by name: (ok, detail)."""
        ...


class Probes:
    """The running responder."""

    def __init__(self, service: Observed) -> None:
        """Not listening yet."""
        self._service = service
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        """TCP port that it listens on; known after `start`."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int) -> None:
        """Listen; OSError when the port is taken."""
        self._server = await asyncio.start_server(self._answer, host, port, limit=HEAD_BYTES_MAX)

    async def stop(self) -> None:
        """Close the listener and all connections."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._connections):
            writer.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        self._connections.add(writer)
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.partition(b" ")
                target = rest.partition(b" ")[0].partition(b"?")[0]
                status, kind, body = self._respond(method, target)
                allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
                lines = (
                    f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                    f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
                )
                writer.write(lines.encode("ascii") + (b"" if method == b"HEAD" else body))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer is slow, gone, or not an HTTP client: not our failure
        finally:
            self._connections.discard(writer)
            writer.close()

    def _respond(self, method: bytes, target: bytes) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if target not in (b"/livez", b"/readyz", b"/metrics"):
            return 404, _TEXT, b"not found\n"
        if method not in (b"GET", b"HEAD"):
            return 405, _TEXT, b"method not allowed\n"
        if target == b"/livez":
            return 200, _TEXT, b"ok\n"
        if target == b"/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY)
        ready = self._service.is_ready
        checks = {name: {"ok": ok, "detail": detail} for name, (ok, detail) in self._service.checks.items()}
        body = json.dumps({"ready": ready, "checks": checks}).encode() + b"\n"
        return 200 if ready else 503, "application/json", body


async def start(service: Observed, *, host: str, port: int) -> Probes:
    """Start a responder for `service`; port 0 selects a free port."""
    probes = Probes(service)
    await probes.start(host, port)
    return probes
