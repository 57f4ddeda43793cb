"""Streams from a handler to a reader: pieces, slow readers, readers that leave, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from backoffice.web.admission.context import Bounds, Permit
from backoffice.web.admission.listener import Admission
from backoffice.web.streams import STREAM_HEADER, Handover

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Pieces:
    """A stream of the pieces in `queue`; None ends it."""

    queue: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    taken: int = 0
    closed: int = 0

    async def next_piece(self) -> bytes | None:
        piece = await self.queue.get()
        self.taken += piece is not None
        return piece

    def close(self) -> None:
        self.closed += 1


@contextlib.asynccontextmanager
async def streaming(stream: Pieces, bounds: Bounds) -> AsyncIterator[tuple[int, Admission]]:
    """Admission before an upstream that answers every request with this stream."""
    handover = Handover()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                name = handover.keep(stream)
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{STREAM_HEADER}: {name}\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(upstream, "127.0.0.1", 0)
    admission = Admission(
        robyn=server.sockets[0].getsockname()[:2],
        secret="s",
        permit=lambda *_: Permit(None),
        take_stream=handover.take,
        bounds=bounds,
    )
    port = await admission.start("127.0.0.1", 0)
    yield port, admission
    await admission.drain(0.1)
    server.close()


async def opened(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    return reader, writer, (await reader.readuntil(b"\r\n\r\n")).lower()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket has no event to wait for
            await asyncio.sleep(0.01)


async def test_pieces_pass_and_the_end_is_sent() -> None:
    stream = Pieces()
    async with streaming(stream, Bounds()) as (port, _):
        reader, writer, head = await opened(port)
        assert b"transfer-encoding: chunked" in head
        assert b"connection: close" in head
        assert b"content-length" not in head
        assert STREAM_HEADER.encode() not in head
        for piece in (b"one", b"two"):
            stream.queue.put_nowait(piece)
            assert await reader.readuntil(b"\r\n") == b"3\r\n"
            assert await reader.readuntil(b"\r\n") == piece + b"\r\n"
        writer.write(REQUEST)  # ignored after `Connection: close`
        stream.queue.put_nowait(None)
        assert await reader.read() == b"0\r\n\r\n"
        await until(lambda: stream.closed)
        writer.close()


async def test_streams_leave_room_for_requests() -> None:
    stream = Pieces()
    async with streaming(stream, Bounds(requests_max=1)) as (port, admission):
        connections = [await opened(port) for _ in range(5)]
        assert admission.requests == 0
        for _, writer, head in connections:
            assert head.startswith(b"http/1.1 200 ")
            writer.close()
        await until(lambda: stream.closed == 5)


async def test_a_reader_that_leaves_closes_its_stream_at_once() -> None:
    stream = Pieces()
    async with streaming(stream, Bounds()) as (port, _):
        _, writer, _ = await opened(port)
        writer.close()
        await until(lambda: stream.closed)
        assert stream.taken == 0


async def test_a_reader_that_sends_instead_is_turned_away() -> None:
    stream = Pieces()
    async with streaming(stream, Bounds(stream_input_bytes_max=1000)) as (port, _):
        _, writer, _ = await opened(port)
        writer.write(b"x" * 2000)
        await until(lambda: stream.closed)
        writer.close()


async def test_a_reader_that_does_not_read_holds_its_stream_back_and_is_cut() -> None:
    stream = Pieces()
    for _ in range(10_000):
        stream.queue.put_nowait(b"x" * 10_000)
    async with streaming(stream, Bounds(write_s_max=0.3)) as (port, _):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.sendall(REQUEST)
        await until(lambda: stream.closed)
        # Socket and transport buffers hold less than 10 MB of the 100 MB.
        assert stream.taken < 1000
        sock.close()


async def test_the_drain_cuts_streams_that_are_not_read() -> None:
    stream = Pieces()
    for _ in range(10_000):
        stream.queue.put_nowait(b"x" * 10_000)
    async with streaming(stream, Bounds(stream_drain_s_max=0.1)) as (port, admission):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(REQUEST)
        await until(lambda: stream.taken)
        async with asyncio.timeout(10):
            await admission.drain(60)
        assert stream.closed
        sock.close()


async def test_a_stream_that_is_not_taken_is_closed() -> None:
    stream, handover = Pieces(), Handover(kept_s_max=0.01)
    name = handover.keep(stream)
    await until(lambda: stream.closed)
    assert handover.take(name) is None
