"""The connections of Granian, as the kernel sees them.

Granian shows its application no connections. So each worker looks at its own sockets: the kernel knows the peer, the
age of the last byte in each direction and the number of bytes received. A connection is closed by `shutdown` on a
duplicate of its descriptor; the server then sees the end of the stream and frees the place.

A connection is idle if it has received nothing yet, if its last byte went out after its last byte came in, or if a
request is older than the edge's deadlines.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edge.addresses import Client, Connection

SILENT_MS_MIN: Final = 100  # a client that has just connected is about to send
PAUSE_MS_MIN: Final = 500  # the same after an answer
_DESCRIPTORS: Final = Path("/proc/self/fd")
# linux/tcp.h, struct tcp_info: tcpi_last_data_sent, tcpi_last_ack_sent, tcpi_last_data_recv; tcpi_bytes_received.
_AGES: Final = struct.Struct("=III")
_AGES_AT: Final = 44
_RECEIVED: Final = struct.Struct("=Q")
_RECEIVED_AT: Final = 128
_INFO_LENGTH: Final = _RECEIVED_AT + _RECEIVED.size
_ESTABLISHED: Final = 1


class KernelConnections:
    """The connections of this process to one port."""

    def __init__(self, *, port: int, request_ms_max: int) -> None:
        """`request_ms_max`: a request is answered within this time after its last byte."""
        self._port = port
        self._request_ms_max = request_ms_max

    def at_most(self) -> int:
        """A cheap upper bound of their number."""
        return len(os.listdir(_DESCRIPTORS))

    def each(self, client: Callable[[str], Client | None]) -> Iterator[Connection]:
        """The open connections."""
        for name in os.listdir(_DESCRIPTORS):
            with _duplicate(int(name)) as owned:
                connection = None if owned is None else self._connection(int(name), owned, client)
            if connection is not None:
                yield connection

    def close(self, chosen: Connection, client: Callable[[str], Client | None]) -> bool:
        """Close the connection if the descriptor still is an idle connection of the same client."""
        with _duplicate(chosen.number) as owned:
            now = None if owned is None else self._connection(chosen.number, owned, client)
            if owned is None or now is None or now.client != chosen.client or now.idle_ms is None:
                return False
            try:
                owned.shutdown(socket.SHUT_RDWR)
            except OSError:
                return False
            return True

    def _connection(
        self, number: int, owned: socket.socket, client: Callable[[str], Client | None]
    ) -> Connection | None:
        """The connection of a client; None for another socket."""
        try:
            if owned.family not in (socket.AF_INET, socket.AF_INET6) or owned.getsockname()[1] != self._port:
                return None
            info = owned.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_LENGTH)
            if len(info) < _INFO_LENGTH or info[0] != _ESTABLISHED:
                return None
            return Connection(number, client(owned.getpeername()[0]), self._idle_ms(info))
        except OSError:
            return None

    def _idle_ms(self, info: bytes) -> int | None:
        sent_ms, _, received_ms = _AGES.unpack_from(info, _AGES_AT)
        (received,) = _RECEIVED.unpack_from(info, _RECEIVED_AT)
        if not received:
            return received_ms if received_ms >= SILENT_MS_MIN else None
        is_answered = sent_ms < received_ms and received_ms >= PAUSE_MS_MIN
        return received_ms if is_answered or received_ms > self._request_ms_max else None


class _duplicate:  # noqa: N801  # used as a context manager only
    """A duplicate of a descriptor as a socket, None for anything else. It stays the same if the number is reused."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._socket: socket.socket | None = None

    def __enter__(self) -> socket.socket | None:
        try:
            copy = os.dup(self._number)
        except OSError:
            return None
        try:
            self._socket = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
        return self._socket

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()
