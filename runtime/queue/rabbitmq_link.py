"""Connections to RabbitMQ that come back, and the client's errors as the port's.

Two connections for a process: an alarm of the broker (memory, disk) stops connections that publish, and must not stop
acknowledgements, which make room.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from runtime.queue.port import QueueUnavailable

CONNECT_S_MAX = 5.0
ANSWER_S_MAX = 10.0  # of a declaration, a subscription and the like
CLOSE_S_MAX = 2.0
# Of a queue that was deleted and declared again at once, 3.10 does not tell the consumers: they stayed subscribed and
# got no message until their connections ended.
DECLARE_AGAIN_S = 1.0
HEARTBEAT_S = 10  # a peer that is gone without a word is noticed after at most three of them
FAILURES = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, RuntimeError)

# It logs each lost connection with a traceback; the adapter logs one line.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)


class Link:
    """One connection, opened when it is first used and again after each loss. Several tasks may share it."""

    def __init__(self, url: str, name: str, prepare: Callable[[AbstractConnection], Awaitable[None]]) -> None:
        """`prepare` is called with each new connection before anyone uses it."""
        parts = urlsplit(url)
        query = {"heartbeat": str(HEARTBEAT_S), "name": name, **dict(parse_qsl(parts.query))}
        self._url = urlunsplit(parts._replace(query=urlencode(query)))
        self._prepare = prepare
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._transport: _Transport | None = None
        self._channel: AbstractChannel | None = None
        self._closed = False
        self._declared_at = -math.inf

    async def connection(self) -> AbstractConnection:
        """The open connection. Raises one of FAILURES."""
        async with self._lock:
            if self._closed:
                raise ConnectionError("closed")
            if self._connection is None or self._connection.is_closed:
                transport = _Transport(is_tls=self._url.startswith("amqps:"))
                async with asyncio.timeout(CONNECT_S_MAX):
                    connection = await aiormq.connect(self._url, transport_factory=transport)
                try:
                    async with asyncio.timeout(ANSWER_S_MAX):
                        await self._prepare(connection)
                except BaseException:
                    await _close(connection, transport)
                    raise
                self._connection, self._transport = connection, transport
            return self._connection

    async def channel(self) -> AbstractChannel:
        """The shared channel of this connection, with publisher confirms and returns that raise."""
        connection = await self.connection()
        async with self._lock:
            if self._channel is None or self._channel.is_closed or self._channel.connection is not connection:
                async with asyncio.timeout(ANSWER_S_MAX):
                    self._channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return self._channel

    async def declare_again(self) -> None:
        """After a queue or an exchange was missing. Calls at the same time declare once. Raises one of FAILURES."""
        called_at = time.monotonic()
        connection = await self.connection()
        async with self._lock:
            if self._declared_at > called_at:
                return
            await asyncio.sleep(DECLARE_AGAIN_S)
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._prepare(connection)
            self._declared_at = time.monotonic()

    async def reset(self) -> None:
        """Give the connection up: the next use opens another one."""
        async with self._lock:
            connection, self._connection, self._channel = self._connection, None, None
        if connection is not None and self._transport is not None:
            await _close(connection, self._transport)

    async def close(self) -> None:
        """Close for good."""
        self._closed = True
        await self.reset()


@asynccontextmanager
async def as_unavailable(queue: str) -> AsyncIterator[None]:
    """The client's errors as QueueUnavailable."""
    try:
        yield
    except FAILURES as error:
        raise QueueUnavailable(queue, describe(error)) from error


def describe(error: BaseException) -> str:
    """One line for logs and for readiness."""
    return str(error) or type(error).__name__


class _Transport(TransportFactory):
    """Opens the transport of one connection, and can cut it."""

    def __init__(self, *, is_tls: bool) -> None:
        self._factory = TLSTransportFactory() if is_tls else TCPTransportFactory()
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: Any, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await self._factory.create(url, **options)
        return reader, self._writer

    def cut(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


async def _close(connection: AbstractConnection, transport: _Transport) -> None:
    # A broker with an alarm reads nothing, and the client waits until it has read all that is written: for hours, and
    # in spite of a cancellation.
    timer = asyncio.get_running_loop().call_later(CLOSE_S_MAX, transport.cut)
    try:
        with suppress(*FAILURES):
            await connection.close()
    except asyncio.CancelledError:
        transport.cut()
        raise
    finally:
        timer.cancel()
