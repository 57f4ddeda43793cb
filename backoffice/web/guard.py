"""The guard: accepts connections, admits requests, and hands them to Robyn on a private port of the same machine.

Robyn 0.88 reads a body without bound or deadline before any code of ours runs, aborts the whole process when a body
ends early (`expect` under `panic = "abort"`), and answers unknown paths and methods without a body. So nothing
reaches it that was not read here, whole and within its bounds. Framing is h11's (RFC 9112), never our own.

Does not know subjects, tokens or JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import quote

import h11
import structlog

from backoffice.web.clients import UNKNOWN, Network, client_of
from backoffice.web.messages import Rendered, Stream, render_problem
from backoffice.web.streams import STREAM_HEADER
from domain.problems import Problem, ProblemDetails
from runtime.process import tasks

log = structlog.get_logger(__name__)

_READ_BYTES = 64 * 1024
_ACCEPT_S = 0.05  # for the event loop to learn of connections that the kernel has
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
# What is there twice is refused: handlers would see one of them, and who looked at the request before, the other.
_SINGLE = frozenset((b"authorization", b"content-encoding", b"content-type", b"idempotency-key", b"if-match"))
CLIENT_HEADER = b"x-flashsale-client"
_STREAM_HEADER = STREAM_HEADER.encode("ascii")
_NOT_FORWARDED = _HOP_BY_HOP | {CLIENT_HEADER, b"content-length"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may take. Times in seconds, sizes in bytes."""

    head_bytes_max: int = 16 * 1024
    headers_max: int = 64
    body_bytes_max: int = 1024 * 1024
    head_s_max: float = 10.0
    body_s_max: float = 20.0
    idle_s_max: float = 60.0
    answer_s_max: float = 30.0
    write_s_max: float = 30.0
    connections_max: int = 1024
    requests_max: int = 256  # streams do not count once they have begun: their handlers bound them
    stream_input_bytes_max: int = 64 * 1024
    stream_drain_s_max: float = 1.0
    linger_s_max: float = 0.5  # for a request that was on its way when the drain began


class _Closed(Exception):
    """The connection is over: the client left, or was told to."""


class Guard:
    """Serves connections. `methods(path)` tells what a path admits; `secret` proves to the handlers who forwards;
    `take_stream(name)` gives the stream that an answer of Robyn's stands for."""

    def __init__(
        self,
        *,
        upstream: tuple[str, int],
        secret: str,
        methods: Callable[[str], tuple[str, ...]],
        take_stream: Callable[[str], Stream | None],
        bounds: Bounds,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        """Not listening yet. Of `trusted_proxies` it is believed whom they forward for."""
        self._trusted_proxies = trusted_proxies
        self._upstream = upstream
        self._secret = secret.encode("ascii")
        self._methods = methods
        self._take_stream = take_stream
        self._bounds = bounds
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._requests = 0
        self._server: asyncio.Server | None = None
        self.draining = False

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (of interest when 0 was asked for). OSError when it is taken."""
        self._server = await asyncio.start_server(self._accept, host, port, backlog=1024)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def drain(self, wait_s_max: float) -> None:
        """Stop accepting, let requests under way finish, and those on their way to us; cut them after the wait.

        A connection that is idle ends after `linger_s_max`. Streams have been closed by then: what is left of one waits for a
        reader that does not read, and is cut sooner.
        """
        self.draining = True
        if self._server is not None:
            # Closing resets whoever the kernel has connected and we have not accepted yet.
            await asyncio.sleep(min(wait_s_max, _ACCEPT_S))
            self._server.close()
            # Whoever was accepted last becomes a connection of ours in the loop's next turns.
            await asyncio.sleep(min(wait_s_max, _ACCEPT_S))
        for connection in self._connections.values():
            connection.hurry()
        streams = [task for task, connection in self._connections.items() if connection.streams]
        if streams:
            _, blocked = await asyncio.wait(streams, timeout=min(wait_s_max, self._bounds.stream_drain_s_max))
            for task in blocked:
                task.cancel()
        if self._connections:
            await asyncio.wait(tuple(self._connections), timeout=wait_s_max)
        for task in tuple(self._connections):
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection(self, reader, writer)
        if len(self._connections) >= self._bounds.connections_max:
            with contextlib.suppress(OSError, TimeoutError):  # the client's loss: it is being turned away
                await connection.refuse(ProblemDetails(Problem.OVERLOADED, retry_after_s=1))
            writer.close()
            return
        self._connections[task] = connection
        try:
            await connection.serve()
        except (_Closed, OSError, TimeoutError, h11.ProtocolError) as error:
            log.debug("connection ended", reason=type(error).__name__)
        finally:
            del self._connections[task]
            connection.close()


class _Connection:
    """One client and the upstream connection that is kept for it."""

    def __init__(self, guard: Guard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._guard = guard
        self._bounds = guard._bounds
        self._reader = reader
        self._writer = writer
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=self._bounds.head_bytes_max)
        self._upstream: _Upstream | None = None
        peer = writer.get_extra_info("peername")
        self._address: str = peer[0] if peer else UNKNOWN
        self._head_only = False  # the request is a HEAD
        self._stream: Stream | None = None  # taken over from a handler
        self._deadline: asyncio.Timeout | None = None  # of the head that is waited for
        self._idle = True

    @property
    def streams(self) -> bool:
        """Whether an answer without an end is being written."""
        return self._stream is not None

    def hurry(self) -> None:
        """Wait only a moment longer for a request. Cancelling would lose one that has arrived and is not read yet."""
        if self._idle and self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._bounds.linger_s_max)

    def close(self) -> None:
        """Close both sides."""
        self._writer.close()
        if self._stream is not None:
            self._stream.close()
        if self._upstream is not None:
            self._upstream.close()

    async def serve(self) -> None:
        """Requests one after the other, until one side closes."""
        while True:
            self._idle = True
            self._head_only = False
            head = await self._read_head()
            self._idle = False
            self._head_only = head.method == b"HEAD"
            if self._guard._requests >= self._bounds.requests_max:
                await self.refuse(ProblemDetails(Problem.OVERLOADED, retry_after_s=1))
                raise _Closed
            self._guard._requests += 1
            try:
                await self._serve_one(head)
            finally:
                self._guard._requests -= 1
            if self._stream is not None:
                await self._pass_on(self._stream)
                raise _Closed
            if self._client.our_state is not h11.DONE or self._client.their_state is not h11.DONE:
                raise _Closed
            self._client.start_next_cycle()

    async def _serve_one(self, head: h11.Request) -> None:
        method = head.method.decode("ascii")
        path, target = _split_target(head.target)
        body = await self._read_body(head)
        allowed = self._guard._methods(path)
        if not allowed:
            await self._send(render_problem(ProblemDetails(Problem.NOT_FOUND)))
        elif method not in allowed:
            await self._send(render_problem(ProblemDetails(Problem.METHOD_NOT_ALLOWED), allow=", ".join(allowed)))
        else:
            await self._forward(head, target, body)

    async def _read_head(self) -> h11.Request:
        try:
            idle_s_max = self._bounds.linger_s_max if self._guard.draining else self._bounds.idle_s_max
            async with asyncio.timeout(idle_s_max) as deadline:
                self._deadline = deadline
                while True:
                    event = self._client.next_event()
                    if isinstance(event, h11.Request):
                        break
                    if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                        raise _Closed
                    data = await self._reader.read(_READ_BYTES)
                    if data and self._idle:
                        # From the first byte on the client owes a whole head.
                        self._idle = False
                        deadline.reschedule(asyncio.get_running_loop().time() + self._bounds.head_s_max)
                    self._client.receive_data(data)
        except TimeoutError:
            if not self._idle:
                await self.refuse(ProblemDetails(Problem.REQUEST_TIMEOUT))
            raise _Closed from None
        except h11.RemoteProtocolError:
            await self.refuse(ProblemDetails(Problem.MALFORMED_REQUEST, "The head is not HTTP/1.1, or too large"))
            raise _Closed from None
        size = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
        if len(event.headers) > self._bounds.headers_max or size > self._bounds.head_bytes_max:
            await self.refuse(ProblemDetails(Problem.MALFORMED_REQUEST, "The head is too large"))
            raise _Closed
        if event.http_version not in (b"1.0", b"1.1"):
            await self.refuse(ProblemDetails(Problem.MALFORMED_REQUEST, "HTTP/1.1 is spoken here"))
            raise _Closed
        single = [name for name, _ in event.headers if name in _SINGLE]
        if len(single) != len(set(single)):
            await self.refuse(
                ProblemDetails(Problem.MALFORMED_REQUEST, "A header is given twice that may be given once")
            )
            raise _Closed
        if {name for name, _ in event.headers} >= {b"content-length", b"transfer-encoding"}:
            # RFC 9112, section 6.1: who is before us may have framed the request by the other one.
            await self.refuse(ProblemDetails(Problem.MALFORMED_REQUEST, "The length of the body is told in two ways"))
            raise _Closed
        return event

    async def _read_body(self, head: h11.Request) -> bytes:
        declared = next((value for name, value in head.headers if name == b"content-length"), b"0")
        if len(declared) > 15 or int(declared) > self._bounds.body_bytes_max:
            await self._refuse_body()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._bounds.body_s_max):
                while True:
                    if self._client.they_are_waiting_for_100_continue:
                        go_on = h11.InformationalResponse(status_code=100, headers=[])
                        self._writer.write(self._client.send(go_on) or b"")
                    event = self._client.next_event()
                    if isinstance(event, h11.Data):
                        size += len(event.data)
                        if size > self._bounds.body_bytes_max:
                            await self._refuse_body()
                        chunks.append(bytes(event.data))
                    elif isinstance(event, h11.EndOfMessage):
                        return b"".join(chunks)
                    elif event is h11.NEED_DATA:
                        self._client.receive_data(await self._reader.read(_READ_BYTES))
                    else:
                        raise _Closed
        except TimeoutError:
            await self.refuse(ProblemDetails(Problem.REQUEST_TIMEOUT))
        except h11.RemoteProtocolError:
            await self.refuse(ProblemDetails(Problem.MALFORMED_REQUEST, "The body is not framed as announced"))
        raise _Closed

    async def _refuse_body(self) -> None:
        await self.refuse(
            ProblemDetails(Problem.BODY_TOO_LARGE, f"A body has at most {self._bounds.body_bytes_max} bytes")
        )
        raise _Closed

    async def _forward(self, head: h11.Request, target: bytes, body: bytes) -> None:
        """Hand the request to Robyn and its answer back, chunk by chunk."""
        headers = [(name, value) for name, value in head.headers if name not in _NOT_FORWARDED]
        if not any(name == b"host" for name, _ in headers):
            headers.append((b"host", b"localhost"))  # HTTP/1.0 may do without
        if any(name == b"content-type" and b"multipart/" in value.lower() for name, value in headers):
            # Robyn would parse it, and answer what it cannot parse by a bare 500. No route takes it.
            headers = [(name, value) for name, value in headers if name != b"content-type"]
        forwarded = [value.decode("latin-1") for name, value in head.headers if name == b"x-forwarded-for"]
        client = client_of(self._address, forwarded, self._guard._trusted_proxies)
        headers.append((CLIENT_HEADER, self._guard._secret + b":" + client.encode("ascii")))
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        started = False
        try:
            if self._upstream is None:
                self._upstream = await _Upstream.open(self._guard._upstream)
            await self._upstream.send(h11.Request(method=head.method, target=target, headers=headers), body)
            # The first event within the bound; a stream may then be silent as long as it likes.
            async with asyncio.timeout(self._bounds.answer_s_max):
                event = await self._upstream.next_event()
            while not isinstance(event, h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    started = True
                    self._stream = self._taken(event)
                    await self._write(self._client.send(self._returned(event)))
                elif isinstance(event, h11.Data):
                    await self._write(self._client.send(h11.Data(data=event.data)))
                event = await self._upstream.next_event()
            if self._stream is None:
                await self._write(self._client.send(h11.EndOfMessage()))
        except (_UpstreamFailed, TimeoutError, OSError, h11.RemoteProtocolError) as error:
            if started:
                raise _Closed from error
            log.error("Robyn did not answer", error=type(error).__name__)
            timed_out = isinstance(error, TimeoutError)
            await self.refuse(ProblemDetails(Problem.OUTCOME_UNKNOWN if timed_out else Problem.INTERNAL_ERROR))
            raise _Closed from error
        if not self._upstream.reuse():
            self._upstream.close()
            self._upstream = None

    def _taken(self, response: h11.Response) -> Stream | None:
        name = next((value for name, value in response.headers if name == _STREAM_HEADER), None)
        if name is None:
            return None
        stream = self._guard._take_stream(name.decode("ascii"))
        if stream is None:
            raise _UpstreamFailed
        return stream

    async def _pass_on(self, stream: Stream) -> None:
        """Write the stream until it ends, its reader leaves, or its reader does not read for longer than the bound."""
        leaving = asyncio.create_task(self._read_to_the_end())
        writing = asyncio.create_task(self._write_pieces(stream))
        try:
            await asyncio.wait((leaving, writing), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        except (TimeoutError, asyncio.CancelledError):
            self._writer.transport.abort()  # closing would keep what is not read for as long as its reader likes
            raise
        finally:
            await tasks.cancel(leaving, writing)

    async def _write_pieces(self, stream: Stream) -> None:
        while (piece := await stream.next_piece()) is not None:
            await self._write(self._client.send(h11.Data(data=piece)))
        await self._write(self._client.send(h11.EndOfMessage()))

    async def _read_to_the_end(self) -> None:
        """Return when the client has left. It was told that the connection closes: what it still sends is for nobody."""
        size = 0
        with contextlib.suppress(OSError):
            while size < self._bounds.stream_input_bytes_max:
                data = await self._reader.read(_READ_BYTES)
                if not data:
                    return
                size += len(data)

    def _returned(self, response: h11.Response) -> h11.Response:
        headers = [(name, value) for name, value in response.headers if name not in _HOP_BY_HOP]
        if self._stream is not None:
            headers = [(name, value) for name, value in headers if name not in (_STREAM_HEADER, b"content-length")]
        if self._guard.draining or self._stream is not None:
            headers.append((b"connection", b"close"))
        return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)

    async def refuse(self, details: ProblemDetails) -> None:
        """Answer a problem and announce that the connection closes: what else is on it was not read."""
        if self._client.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send(render_problem(details, connection="close"))
            # Closing with unread bytes resets the connection and may destroy the answer on its way: read a little on.
            with contextlib.suppress(TimeoutError, OSError):
                self._writer.write_eof()
                async with asyncio.timeout(1.0):
                    for _ in range(64):
                        if not await self._reader.read(_READ_BYTES):
                            break

    async def _send(self, rendered: Rendered) -> None:
        headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in rendered.headers.items()]
        headers.append((b"content-length", str(len(rendered.body)).encode("ascii")))
        headers.append((b"date", formatdate(usegmt=True).encode("ascii")))  # RFC 9110, section 6.6.1
        if self._guard.draining and "connection" not in rendered.headers:
            headers.append((b"connection", b"close"))
        reason = HTTPStatus(rendered.status).phrase.encode("ascii")
        data = self._client.send(h11.Response(status_code=rendered.status, headers=headers, reason=reason)) or b""
        if rendered.body and not self._head_only:
            data += self._client.send(h11.Data(data=rendered.body)) or b""
        await self._write(data + (self._client.send(h11.EndOfMessage()) or b""))

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            async with asyncio.timeout(self._bounds.write_s_max):
                await self._writer.drain()


class _UpstreamFailed(Exception):
    """Robyn closed the connection before its answer was whole."""


class _Upstream:
    """A connection to Robyn."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, address: tuple[str, int]) -> _Upstream:
        """Connect; OSError when nothing listens."""
        return cls(*await asyncio.open_connection(*address))

    def close(self) -> None:
        """Close at once."""
        self._writer.close()

    async def send(self, request: h11.Request, body: bytes) -> None:
        """One whole request."""
        data = self._connection.send(request) or b""
        if body:
            data += self._connection.send(h11.Data(data=body)) or b""
        self._writer.write(data + (self._connection.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()

    async def next_event(self) -> h11.Response | h11.Data | h11.EndOfMessage:
        """The next part of the answer; _UpstreamFailed when there is none."""
        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.Response | h11.Data | h11.EndOfMessage):
                return event
            if event is not h11.NEED_DATA and not isinstance(event, h11.InformationalResponse):
                raise _UpstreamFailed
            if event is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(_READ_BYTES))

    def reuse(self) -> bool:
        """Make ready for the next request; False when the connection cannot take one."""
        if self._connection.our_state is not h11.DONE or self._connection.their_state is not h11.DONE:
            return False
        self._connection.start_next_cycle()
        return True


def _split_target(raw: bytes) -> tuple[str, bytes]:
    """The path, and the target as it is handed on: origin form, with only characters that a URI may have."""
    text = raw.decode("ascii")
    if not text.startswith("/"):
        # RFC 9112, section 3.2.2: a server must accept the absolute form; `*` and authorities match no route.
        _, _, rest = text.partition("://")
        text = "/" + rest.partition("/")[2] if rest else text
    path, question, query = text.partition("?")
    return path, (path + question + quote(query, safe="%!$&'()*+,;=:@/?-._~")).encode("ascii")
