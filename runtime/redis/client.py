"""The Redis client: a bounded pool, bounded waits, no retries of its own.

Does not decide when to retry: one layer does, the caller. redis-py's default of ten retries, also after a timeout,
would run a script twice silently.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError


class _CancellableSend(AbstractConnection):
    """redis-py (8.1) sends through `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that arrives as
    the bytes leave, and makes a task for each command. This sends with the same bound in the caller's own task."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send within `socket_timeout`; the connection is closed when that fails in any way."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        if isinstance(command, str):
            command = command.encode()
        try:
            async with asyncio.timeout(self.socket_timeout):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            # Cancelled with half a command sent: no other command may follow on this connection.
            await self.disconnect(nowait=True)
            raise

    async def can_read(self) -> bool:
        """Whether the connection cannot be used: the pool asks before it hands it out, and connects again then.

        redis-py notices an end of stream that the event loop has seen, but not a reset (the stream has an exception then,
        no end). Without this, each pooled connection cost its next user an error after a restart of the server.
        """
        stream = self._reader
        return stream is None or stream.exception() is not None or await super().can_read()


class _PlainConnection(_CancellableSend, Connection):
    async def can_read(self) -> bool:
        """Asks the kernel, too: it knows of an end that the event loop has not come to read yet."""
        # Not for TLS, where what can be read may be a session ticket.
        return self._kernel_has_news() or await super().can_read()

    def _kernel_has_news(self) -> bool:
        assert self._writer is not None
        descriptor = self._writer.get_extra_info("socket").fileno()
        if descriptor < 0:
            return True  # closed by the event loop
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))


class _TlsConnection(_CancellableSend, SSLConnection):
    pass


_CONNECTIONS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _PlainConnection,
    SSLConnection: _TlsConnection,
}


def redis_client(url: str, *, connections_max: int = 16, timeout_s: float = 5.0) -> Redis:
    """A client of `redis://` or `rediss://` whose answers are bytes.

    Commands wait at most `timeout_s` for a free connection, and again for the answer.
    Blocking commands must block for less than `timeout_s`. A command that failed was perhaps executed, and is never
    repeated here: instead, a connection that died while nobody used it is found before anything is sent on it.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        retry_on_timeout=False,
    )
    # The URL's scheme has picked redis-py's own class by now.
    pool.connection_class = _CONNECTIONS[pool.connection_class]
    return Redis.from_pool(pool)
