"""A bare HTTP/1.1 client. Sends exactly the given bytes, so that tests can send malformed requests."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `headers` in lower case; `closed`: the server closed the connection after it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    closed: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem code. Asserts that the answer is a complete problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json
        assert document["status"] == self.status and document["type"] == f"/problems/{document['code']}", document
        assert document["title"] and document["detail"]
        return str(document["code"])


class NoReply(Exception):
    """The server closed the connection without an answer."""


class Connection:
    """A keep-alive connection."""

    def __init__(self, port: int, *, wait_s: float = WAIT_S) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=wait_s)
        self._buffer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def end(self) -> None:
        """Close the sending side; answers can still be read."""
        self._socket.shutdown(socket.SHUT_WR)

    def receive(self, *, head_only: bool = False) -> Reply:
        """The next answer. Raises NoReply when the server closes the connection, TimeoutError when it hangs."""
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if status == 100:
            return self.receive(head_only=head_only)
        length = 0 if head_only or status in (204, 304) else int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._fill()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Reply(status, headers, body, closed=headers.get("connection") == "close")

    def is_closed(self) -> bool:
        """Whether the server closes the connection; waits for it."""
        with contextlib.suppress(ConnectionError):
            return self._socket.recv(1) == b""
        return True

    def _fill(self) -> None:
        try:
            chunk = self._socket.recv(65536)
        except ConnectionError as error:
            raise NoReply from error
        if not chunk:
            raise NoReply
        self._buffer += chunk


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> bytes:
    """The bytes of a well-formed request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: edge"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None and "Content-Length" not in (headers or {}):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def ask(port: int, data: bytes, *, end: bool = False) -> Reply:
    """Send one request on its own connection and return the answer."""
    with Connection(port) as connection:
        connection.send(data)
        if end:
            connection.end()
        return connection.receive()
