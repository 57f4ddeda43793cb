"""One client: its requests one after the other, each forwarded to Robyn, and the stream that may end the connection."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import h11
import structlog

from backoffice.web.admission.context import Context, Permit
from backoffice.web.admission.robyn_link import RobynFailed, RobynLink
from backoffice.web.admission.wire import ClientWire, Closed
from backoffice.web.clients import UNKNOWN, client_of
from backoffice.web.messages import Stream
from backoffice.web.problem_page import wants_page
from backoffice.web.streams import STREAM_HEADER
from domain.problems import Problem, ProblemDetails
from runtime.process import tasks

log = structlog.get_logger(__name__)

SHORT_BODY_BYTES = 4096  # of a request that is refused by its head
CLIENT_HEADER = b"x-flashsale-client"
_STREAM_HEADER = STREAM_HEADER.encode("ascii")
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)
_NOT_FORWARDED = _HOP_BY_HOP | {CLIENT_HEADER, b"content-length"}


class Connection:
    """One client, and the connection to Robyn that is kept for this client."""

    def __init__(self, context: Context, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._context = context
        self._wire = ClientWire(context, reader, writer)
        self._robyn: RobynLink | None = None
        self._stream: Stream | None = None  # taken over from a handler
        self.is_displaced = False  # its place is taken by another connection

    @property
    def peer(self) -> str | None:
        """The address of the other side."""
        return self._wire.peer

    @property
    def silent_since(self) -> float | None:
        """Since when the head of a request is waited for; None during a request."""
        return self._wire.silent_since

    def displace_silent(self) -> None:
        """End the wait for a request: another connection needs the place."""
        self.is_displaced = True
        self._wire.end_wait()

    def displace(self) -> None:
        """End the wait for the body of the request: another request needs the place."""
        self._wire.end_wait()

    @property
    def streams(self) -> bool:
        """Whether a stream is being written."""
        return self._stream is not None

    def hurry(self) -> None:
        """Wait only a moment longer for the next request."""
        self._wire.hurry()

    async def refuse(self, details: ProblemDetails) -> None:
        """Answer a problem that closes the connection."""
        await self._wire.refuse(details)

    def close(self) -> None:
        """Close both sides."""
        self._wire.close()
        if self._stream is not None:
            self._stream.close()
        if self._robyn is not None:
            self._robyn.close()

    async def serve(self) -> None:
        """Answer requests until one side closes; ends with an exception, Closed as a rule."""
        while True:
            head = await self._wire.read_head()
            method, (path, target) = head.method.decode("ascii"), _split_target(head.target)
            authorization = next((value for name, value in head.headers if name == b"authorization"), None)
            client = self._client(head)
            token = authorization.decode("latin-1") if authorization else None
            permit = self._context.permit(method, path, token, client)
            self._wire.request_id = permit.request_id
            accept = next((value for name, value in head.headers if name == b"accept"), b"")
            self._wire.wants_page = wants_page(method, path, accept.decode("latin-1"))
            if not self._context.places.take(self, client, is_staff=permit.is_staff):
                await self.refuse(ProblemDetails(Problem.OVERLOADED, retry_after_s=1))
                raise Closed
            try:
                await self._serve_one(head, target, permit, client)
            finally:
                self._context.places.leave(self)
            if self._stream is not None:
                await self._write_stream(self._stream)
                raise Closed
            if not self._wire.is_reusable:
                raise Closed
            self._wire.next_cycle()

    async def _serve_one(self, head: h11.Request, target: bytes, permit: Permit, client: str) -> None:
        if permit.refusal is not None:
            # A short body is read, so that the connection can go on; a long one is not.
            await self._read_body(head, SHORT_BODY_BYTES, permit.refusal)
            await self._wire.send(self._wire.rendered(permit.refusal))
            return
        body = await self._read_body(head, permit.body_bytes_max)
        request = h11.Request(method=head.method, target=target, headers=self._forwarded_headers(head, body, client))
        await self._forward(request, body)

    async def _read_body(self, head: h11.Request, bytes_max: int, refusal: ProblemDetails | None = None) -> bytes:
        self._context.places.wait_for_body(self)
        body = await self._wire.read_body(head, bytes_max, refusal)
        self._context.places.has_body(self)
        return body

    def _client(self, head: h11.Request) -> str:
        """The client that limits count."""
        forwarded_for = [value.decode("latin-1") for name, value in head.headers if name == b"x-forwarded-for"]
        if forwarded_for:
            self._context.untrusted_proxies.see(self._wire.peer)
        return client_of(self._wire.peer or UNKNOWN, forwarded_for, self._context.trusted_proxies)

    def _forwarded_headers(self, head: h11.Request, body: bytes, client: str) -> list[tuple[bytes, bytes]]:
        headers = [(name, value) for name, value in head.headers if name not in _NOT_FORWARDED]
        if not any(name == b"host" for name, _ in headers):
            headers.append((b"host", b"localhost"))  # HTTP/1.0 does not require the header
        if any(name == b"content-type" and b"multipart/" in value.lower() for name, value in headers):
            # No route takes multipart; Robyn would parse it and answer an empty 500 when that fails.
            headers = [(name, value) for name, value in headers if name != b"content-type"]
        headers.append((CLIENT_HEADER, self._context.secret + b":" + client.encode("ascii")))
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        return headers

    async def _forward(self, request: h11.Request, body: bytes) -> None:
        """Forward the request to Robyn, and return the answer chunk by chunk."""
        started = False
        try:
            if self._robyn is None:
                self._robyn = await RobynLink.open(self._context.robyn)
            await self._robyn.send(request, body)
            # Only the first event is bounded: an answer of many chunks may pause between them.
            async with asyncio.timeout(self._context.bounds.answer_s_max):
                event = await self._robyn.next_event()
            while not isinstance(event, h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    started = True
                    self._stream = self._take_stream(event)
                    event = self._returned(event)
                await self._wire.send_event(event)
                event = await self._robyn.next_event()
            if self._stream is None:
                await self._wire.send_event(h11.EndOfMessage())
        except (RobynFailed, TimeoutError, OSError, h11.RemoteProtocolError) as error:
            if started:
                raise Closed from error
            log.error("Robyn did not answer", error=type(error).__name__)
            timed_out = isinstance(error, TimeoutError)
            await self.refuse(ProblemDetails(Problem.OUTCOME_UNKNOWN if timed_out else Problem.INTERNAL_ERROR))
            raise Closed from error
        if not self._robyn.reuse():
            self._robyn.close()
            self._robyn = None

    def _take_stream(self, response: h11.Response) -> Stream | None:
        name = next((value for name, value in response.headers if name == _STREAM_HEADER), None)
        if name is None:
            return None
        stream = self._context.take_stream(name.decode("ascii"))
        if stream is None:
            raise RobynFailed
        return stream

    def _returned(self, response: h11.Response) -> h11.Response:
        headers = [(name, value) for name, value in response.headers if name not in _HOP_BY_HOP]
        if self._stream is not None:
            headers = [(name, value) for name, value in headers if name not in (_STREAM_HEADER, b"content-length")]
        if self._context.draining or self._stream is not None:
            headers.append((b"connection", b"close"))
        return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)

    async def _write_stream(self, stream: Stream) -> None:
        """Write the stream until it ends, the reader leaves, or the reader does not read for longer than the bound."""
        leaving = asyncio.create_task(self._wire.read_until_left())
        writing = asyncio.create_task(self._write_pieces(stream))
        try:
            await asyncio.wait((leaving, writing), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        except (TimeoutError, asyncio.CancelledError):
            self._wire.abort()
            raise
        finally:
            await tasks.cancel(leaving, writing)

    async def _write_pieces(self, stream: Stream) -> None:
        while (piece := await stream.next_piece()) is not None:
            await self._wire.send_event(h11.Data(data=piece))
        await self._wire.send_event(h11.EndOfMessage())


def _split_target(raw: bytes) -> tuple[str, bytes]:
    """The path, and the target to forward: origin form, with only characters that a URI may contain."""
    text = raw.decode("ascii")
    if not text.startswith("/"):
        # RFC 9112, section 3.2.2: a server must accept the absolute form; `*` and authorities match no route.
        _, _, rest = text.partition("://")
        text = "/" + rest.partition("/")[2] if rest else text
    path, question, query = text.partition("?")
    return path, (path + question + quote(query, safe="%!$&'()*+,;=:@/?-._~")).encode("ascii")
