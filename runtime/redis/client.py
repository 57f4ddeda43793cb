"""The Redis client: a bounded pool, bounded waits, no retries of its own.

Only the caller retries. The default of redis-py, ten retries also after a timeout, would silently run a script twice.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterable
from urllib.parse import quote

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from runtime.redis.addresses import ClusterAddress, Node, is_cluster
from runtime.redis.cluster import ClusterRedis


class _CancellableSend(AbstractConnection):
    """Sends in the caller's own task, bounded by `socket_timeout`.

    redis-py (8.1) sends through `asyncio.wait_for`, which makes a task for each command and, before Python 3.12,
    swallows a cancellation that arrives while the bytes leave.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send within `socket_timeout`; any failure closes the connection."""
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
            # Cancelled with half a command sent: no other command may use this connection.
            await self.disconnect(nowait=True)
            raise

    async def can_read(self) -> bool:
        """Whether the connection is unusable: the pool asks before handing it out, and connects again if so.

        redis-py notices an end of stream that the event loop has seen, but not a reset, which leaves an exception in
        the stream. Without this check each pooled connection cost its next user an error after a restart of the
        server.
        """
        stream = self._reader
        return stream is None or stream.exception() is not None or await super().can_read()


class _PlainConnection(_CancellableSend, Connection):
    async def can_read(self) -> bool:
        """Ask the kernel as well: it knows of an end of stream that the event loop has not read yet."""
        # Not for TLS, where readable bytes may be a session ticket.
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
    """A client of one server (`redis://`, `rediss://`, `unix://`) or of a cluster (`redis+cluster://host:port,...`).

    Its answers are bytes. `connections_max` bounds the connections to one server. Commands wait at most `timeout_s` for
    a free connection, and as long again for the answer. Blocking commands must block for less than `timeout_s`. A
    failed command may have been executed, so it is never repeated here; a connection that died while idle is detected
    before anything is sent on it.
    """
    if not is_cluster(url):
        return _client_of_server(url, connections_max, timeout_s)
    address = ClusterAddress.parse(url)
    scheme = "rediss" if address.tls else "redis"
    login = f"{quote(address.username, safe='')}:{quote(address.password, safe='')}@" if address.password else ""

    def open_node(node: Node) -> Redis:
        host = f"[{node[0]}]" if ":" in node[0] else node[0]
        return _client_of_server(f"{scheme}://{login}{host}:{node[1]}/0", connections_max, timeout_s)

    return ClusterRedis(address, open_node)


def _client_of_server(url: str, connections_max: int, timeout_s: float) -> Redis:
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
