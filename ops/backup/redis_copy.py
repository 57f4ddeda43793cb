"""A copy of a Redis server, taken as a replica takes it: the server forks, and sends its state of that moment."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import redis

from ops.backup.errors import BackupError

ANSWER_S_MAX: Final = 60.0  # the server may have to end another fork first
_CHUNK: Final = 1 << 20
_LINE_MAX: Final = 512
_MAGIC: Final = b"REDIS"


class RedisCopy:
    """`begin` returns when the server has forked: later changes are not in the copy. Then `save` fetches it."""

    def __init__(self, url: str) -> None:
        """Connects: redis.RedisError."""
        self._client = redis.Redis.from_url(url, socket_timeout=ANSWER_S_MAX, socket_connect_timeout=5.0, protocol=2)
        self._connection = self._client.connection_pool.get_connection()
        # The replication stream is no command's answer, so it is read from the socket, which has nothing else unread.
        self._socket: Any = self._connection._sock
        self._unread = bytearray()

    def __enter__(self) -> Self:
        """Nothing yet: the connection is there."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._connection.disconnect()  # type: ignore[no-untyped-call]
        self._client.close()

    def begin(self) -> None:
        """Let the server fork. Raises BackupError."""
        # Without `REPLCONF capa eof` the server forks at once and does not wait for further replicas.
        self._socket.sendall(b"*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n")
        answer = self._line()
        if not answer.startswith(b"+FULLRESYNC "):
            raise BackupError(f"Redis does not give a copy: {answer.decode(errors='replace')[:200]}")

    def save(self, path: Path) -> str:
        """Write the copy into a new file; its SHA-256. Raises BackupError for an incomplete one."""
        length = self._line()
        if not length.startswith(b"$") or not length[1:].isdigit():
            raise BackupError(f"Redis does not give a copy: {length.decode(errors='replace')[:200]}")
        left, digest = int(length[1:]), hashlib.sha256()
        with path.open("xb") as file:
            first = b""
            while left:
                chunk = self._some(min(left, _CHUNK))
                first = first or chunk
                left -= len(chunk)
                digest.update(chunk)
                file.write(chunk)
        if not first.startswith(_MAGIC):
            raise BackupError("Redis gave a copy of an unknown form")
        return digest.hexdigest()

    def _line(self) -> bytes:
        """The next line that is not empty: the server sends empty ones while it works."""
        while True:
            while (end := self._unread.find(b"\n")) < 0:
                if len(self._unread) > _LINE_MAX:
                    raise BackupError("Redis answers in an unknown form")
                self._unread += self._received(_CHUNK)
            line = bytes(self._unread[:end]).strip()
            del self._unread[: end + 1]
            if line:
                return line

    def _some(self, most: int) -> bytes:
        if self._unread:
            chunk = bytes(self._unread[:most])
            del self._unread[: len(chunk)]
            return chunk
        return self._received(most)

    def _received(self, most: int) -> bytes:
        try:
            received: bytes = self._socket.recv(most)
        except TimeoutError:
            raise BackupError(f"Redis sent nothing for {ANSWER_S_MAX:.0f} s") from None
        if not received:
            raise BackupError("Redis closed the connection before its copy was complete")
        return received


def server_of(url: str) -> tuple[str, int]:
    """Host and port: two URLs of one server differ in their database or user only."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 6379
