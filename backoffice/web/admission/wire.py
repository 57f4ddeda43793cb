"""HTTP/1.1 on the connection of one client: reads requests within the bounds, writes answers.

Framing is done by h11.
"""

from __future__ import annotations

import asyncio
import contextlib
from email.utils import formatdate
from http import HTTPStatus
from typing import NoReturn

import h11

from backoffice.web.acts import REQUEST_ID_HEADER
from backoffice.web.admission.context import Context
from backoffice.web.messages import Rendered
from backoffice.web.problem_page import render_refusal
from domain.problems import Problem, ProblemDetails

READ_BYTES = 64 * 1024
# A duplicate of one of these is rejected: a proxy before us and a handler could each read a different one of the two.
_SINGLE = frozenset((b"authorization", b"content-encoding", b"content-type", b"idempotency-key", b"if-match"))
_LENGTH_DIGITS_MAX = 15
_CHUNK_BYTES = 256
_LINGER_S, _LINGER_READS = 1.0, 16


class Closed(Exception):
    """The connection has ended: the client left, or received an answer that closes the connection."""


class ClientWire:
    """One client's connection. Not safe for two tasks at once, except `hurry`."""

    def __init__(self, context: Context, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._context = context
        self._bounds = context.bounds
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._bounds.head_bytes_max)
        self._head_only = False  # the request is a HEAD
        self._idle = True  # no byte of the next request has arrived
        self._deadline: asyncio.Timeout | None = None  # of the head or the body that is being read
        self.silent_since: float | None = None  # while the head of a request is waited for
        self.request_id: str | None = None  # of the audit log, for an answer of ours
        self.wants_page = False  # the request is that of a browser for a page

    @property
    def peer(self) -> str | None:
        """The address of the other side of the connection."""
        peername = self._writer.get_extra_info("peername")
        return peername[0] if peername else None

    @property
    def is_reusable(self) -> bool:
        """Whether request and answer are complete and neither side closes the connection."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def next_cycle(self) -> None:
        """Make ready for the next request."""
        self._http.start_next_cycle()

    def hurry(self) -> None:
        """Shorten the wait for a request to `linger_s_max`.

        Cancelling would lose a request that arrived but was not read.
        """
        if self._idle and self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._bounds.linger_s_max)

    def end_wait(self) -> None:
        """End the wait for a head or a body now, as at its deadline."""
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(0.0)

    def close(self) -> None:
        """Close after the written data was sent."""
        self._writer.close()

    def abort(self) -> None:
        """Close at once and drop unsent data, which a reader that does not read would keep in memory."""
        self._writer.transport.abort()

    async def read_head(self) -> h11.Request:
        """The head of the next request; Closed after a refusal, or without a request."""
        self._idle = True
        self._head_only = self.wants_page = False
        self.silent_since = asyncio.get_running_loop().time()
        try:
            head = await self._next_head()
        finally:
            self._deadline = self.silent_since = None
        self._idle = False
        self._head_only = head.method == b"HEAD"
        await self._check_head(head)
        return head

    async def _next_head(self) -> h11.Request:
        try:
            idle_s_max = self._bounds.linger_s_max if self._context.draining else self._bounds.idle_s_max
            async with asyncio.timeout(idle_s_max) as deadline:
                self._deadline = deadline
                while True:
                    event = self._http.next_event()
                    if isinstance(event, h11.Request):
                        return event
                    if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                        raise Closed
                    data = await self._reader.read(READ_BYTES)
                    if data and self._idle:
                        # The bound on the whole head starts with its first byte.
                        self._idle = False
                        deadline.reschedule(asyncio.get_running_loop().time() + self._bounds.head_s_max)
                    self._http.receive_data(data)
        except TimeoutError:
            if not self._idle:
                await self.refuse(ProblemDetails(Problem.REQUEST_TIMEOUT))
            raise Closed from None
        except h11.RemoteProtocolError:
            await self._reject("The request head is not valid HTTP/1.1, or too large")

    async def _check_head(self, head: h11.Request) -> None:
        size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
        if len(head.headers) > self._bounds.headers_max or size > self._bounds.head_bytes_max:
            await self._reject("The request head is too large")
        if head.http_version not in (b"1.0", b"1.1"):
            await self._reject("The HTTP version is not supported; use HTTP/1.1")
        single = [name for name, _ in head.headers if name in _SINGLE]
        if len(single) != len(set(single)):
            await self._reject("A header that may appear only once appears twice")
        if not all(value.isascii() for name, value in head.headers if name == b"idempotency-key"):
            # Robyn leaves such a header out, and a repeated request would be another request.
            await self._reject("The Idempotency-Key must be 1 to 64 visible ASCII characters")
        if {name for name, _ in head.headers} >= {b"content-length", b"transfer-encoding"}:
            # RFC 9112, section 6.1: a proxy before us may have framed the request by the other header.
            await self._reject("The request has both Content-Length and Transfer-Encoding; send one of them")

    async def read_body(self, head: h11.Request, bytes_max: int, refusal: ProblemDetails | None = None) -> bytes:
        """The whole body; Closed after a refusal, or when the client leaves.

        `refusal` is the answer to a body that is too large, if it is another than `body_too_large`.
        """
        too_large = refusal or ProblemDetails(Problem.BODY_TOO_LARGE, f"The body is larger than {bytes_max} bytes")
        chunked = any(name == b"transfer-encoding" for name, _ in head.headers)
        if refusal is not None and (chunked or self._http.they_are_waiting_for_100_continue):
            await self.refuse(refusal)
            raise Closed
        declared = next((value for name, value in head.headers if name == b"content-length"), b"0")
        if len(declared) > _LENGTH_DIGITS_MAX or int(declared) > bytes_max:
            await self.refuse(too_large)
            raise Closed
        try:
            async with asyncio.timeout(self._bounds.body_s_max) as self._deadline:
                return await self._read_parts(bytes_max, too_large)
        except TimeoutError:
            await self.refuse(ProblemDetails(Problem.REQUEST_TIMEOUT))
            raise Closed from None
        except h11.RemoteProtocolError:
            await self._reject("The body does not match its Content-Length or chunked framing")
        finally:
            self._deadline = None

    async def _read_parts(self, bytes_max: int, too_large: ProblemDetails) -> bytes:
        parts: list[bytes] = []
        size = reads = 0
        while True:
            if self._http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._http.send(go_on) or b"")
            event = self._http.next_event()
            if isinstance(event, h11.Data):
                size += len(event.data)
                if size > bytes_max:
                    await self.refuse(too_large)
                    raise Closed
                parts.append(bytes(event.data))
                # A read makes one part of a body with a length. Only chunks make more, and each costs as much as a
                # read: a body of one-byte chunks would take seconds of the event loop.
                if len(parts) - reads > self._bounds.chunks_max + size // _CHUNK_BYTES:
                    await self._reject("The body has too many small chunks")
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(parts)
            elif event is h11.NEED_DATA:
                reads += 1
                self._http.receive_data(await self._reader.read(READ_BYTES))
            else:
                raise Closed

    async def read_until_left(self) -> None:
        """Return when the client leaves, or has sent `stream_input_bytes_max` that no request may use."""
        size = 0
        with contextlib.suppress(OSError):
            while size < self._bounds.stream_input_bytes_max:
                data = await self._reader.read(READ_BYTES)
                if not data:
                    return
                size += len(data)

    def rendered(self, details: ProblemDetails) -> Rendered:
        """A problem as the client wants it."""
        return render_refusal(details, as_page=self.wants_page)

    async def refuse(self, details: ProblemDetails) -> None:
        """Answer a problem that closes the connection: the rest of the input was not read."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            rendered = self.rendered(details)
            rendered.headers["connection"] = "close"
            await self.send(rendered)
            # Closing with unread bytes resets the connection, which may destroy the answer: read on for a moment.
            with contextlib.suppress(TimeoutError, OSError):
                self._writer.write_eof()
                async with asyncio.timeout(_LINGER_S):
                    for _ in range(_LINGER_READS):
                        if not await self._reader.read(READ_BYTES):
                            break

    async def _reject(self, detail: str) -> NoReturn:
        await self.refuse(ProblemDetails(Problem.MALFORMED_REQUEST, detail))
        raise Closed from None

    async def send(self, rendered: Rendered) -> None:
        """One whole answer of ours."""
        headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in rendered.headers.items()]
        headers.append((b"content-length", str(len(rendered.body)).encode("ascii")))
        headers.append((b"date", formatdate(usegmt=True).encode("ascii")))  # RFC 9110, section 6.6.1
        if self.request_id is not None:
            headers.append((REQUEST_ID_HEADER.encode("ascii"), self.request_id.encode("ascii")))
        if self._context.draining and "connection" not in rendered.headers:
            headers.append((b"connection", b"close"))
        reason = HTTPStatus(rendered.status).phrase.encode("ascii")
        data = self._http.send(h11.Response(status_code=rendered.status, headers=headers, reason=reason)) or b""
        if rendered.body and not self._head_only:
            data += self._http.send(h11.Data(data=rendered.body)) or b""
        await self._write(data + (self._http.send(h11.EndOfMessage()) or b""))

    async def send_event(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        """One part of an answer. TimeoutError when the client does not read for `write_s_max`."""
        await self._write(self._http.send(event))

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            async with asyncio.timeout(self._bounds.write_s_max):
                await self._writer.drain()
