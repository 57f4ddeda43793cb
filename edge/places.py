"""Closes idle connections of a client that holds more places of the worker than its share.

Granian has one bound for all connections and one time limit for silence, which is also the longest pause between two
requests. Silent sockets of one address could hold every place for that long. So each worker looks at its own sockets:
the kernel knows the peer, the age of the last byte in each direction and the number of bytes received. A connection is
closed by `shutdown` on a duplicate of its descriptor; the server then sees the end of the stream and frees the place.

A connection is idle if it has received nothing yet, if its last byte went out after its last byte came in, or if a
request is older than the edge's deadlines. The worker does not look while fewer connections than one client's share are
open.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from edge.addresses import AddressTable, Client, Connection, Network, client_of, is_trusted
from runtime.process.supervision import Beat, no_beat

LOOK_S: Final = 0.25
LOOK_AGAIN_S: Final = 0.02  # after a look that closed connections: others wait for their places
SLICE: Final = 64  # sockets between two pauses of a look, so that orders do not wait for this
SILENT_MS_MIN: Final = 100  # a client that has just connected is about to send
PAUSE_MS_MIN: Final = 500  # the same after an answer
TOTAL_PERCENT: Final = 90  # of the worker's bound: above, the client with the most idle connections gives way
TOTAL_PERCENT_AFTER: Final = 60  # until so many are left
LOG_EVERY_S: Final = 10.0
CLIENTS_KNOWN_MAX: Final = 4096
_DESCRIPTORS: Final = Path("/proc/self/fd")
# linux/tcp.h, struct tcp_info: tcpi_last_data_sent, tcpi_last_ack_sent, tcpi_last_data_recv; tcpi_bytes_received.
_AGES: Final = struct.Struct("=III")
_AGES_AT: Final = 44
_RECEIVED: Final = struct.Struct("=Q")
_RECEIVED_AT: Final = 128
_INFO_LENGTH: Final = _RECEIVED_AT + _RECEIVED.size
_ESTABLISHED: Final = 1

_log = structlog.get_logger("edge.places")


class Places:
    """The places of one worker: the connections that it may hold. `displaced` counts those that it has closed."""

    def __init__(
        self, *, port: int, address_max: int, connections_max: int, request_ms_max: int, trusted: Sequence[Network]
    ) -> None:
        """`request_ms_max`: a request is answered within this time after its last byte."""
        self._port = port
        self._address_max = address_max
        self._request_ms_max = request_ms_max
        self._trusted = tuple(trusted)
        total_max = connections_max * TOTAL_PERCENT // 100
        self._look_from = min(address_max, total_max)
        self._table = AddressTable(
            address_max=address_max, total_max=total_max, total_after=connections_max * TOTAL_PERCENT_AFTER // 100
        )
        self._clients: dict[str, Client | None] = {}
        self._logged_at = -LOG_EVERY_S
        self._logged = 0
        self.displaced = 0

    async def run(self, beat: Beat = no_beat) -> None:
        """Look until cancelled."""
        while True:
            beat()
            await asyncio.sleep(LOOK_AGAIN_S if await self.look() else LOOK_S)

    async def look(self) -> int:
        """One look. Returns the number of connections that were closed."""
        descriptors = os.listdir(_DESCRIPTORS)
        if len(descriptors) <= self._look_from:
            return 0
        connections: list[Connection] = []
        for index, name in enumerate(descriptors):
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            connections += self._inspect(int(name))
        self._table.fill(connections)
        count = 0
        for index, chosen in enumerate(self._table.to_displace()):
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            count += self._close(chosen)
        self._note(count)
        return count

    def _inspect(self, number: int) -> Iterator[Connection]:
        with _duplicate(number) as owned:
            connection = None if owned is None else self._connection(number, owned)
            if connection is not None:
                yield connection

    def _connection(self, number: int, owned: socket.socket) -> Connection | None:
        """The connection of a client; None for another socket."""
        try:
            if owned.family not in (socket.AF_INET, socket.AF_INET6) or owned.getsockname()[1] != self._port:
                return None
            info = owned.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_LENGTH)
            if len(info) < _INFO_LENGTH or info[0] != _ESTABLISHED:
                return None
            return Connection(number, self._client(owned.getpeername()[0]), self._idle_ms(info))
        except OSError:
            return None

    def _idle_ms(self, info: bytes) -> int | None:
        sent_ms, _, received_ms = _AGES.unpack_from(info, _AGES_AT)
        (received,) = _RECEIVED.unpack_from(info, _RECEIVED_AT)
        if not received:
            return received_ms if received_ms >= SILENT_MS_MIN else None
        is_answered = sent_ms < received_ms and received_ms >= PAUSE_MS_MIN
        return received_ms if is_answered or received_ms > self._request_ms_max else None

    def _client(self, host: str) -> Client | None:
        if host not in self._clients:
            if len(self._clients) >= CLIENTS_KNOWN_MAX:
                self._clients.clear()
            self._clients[host] = None if is_trusted(host, self._trusted) else client_of(host)
        return self._clients[host]

    def _close(self, chosen: Connection) -> bool:
        """Close the connection if the descriptor still is an idle connection of the same client."""
        with _duplicate(chosen.number) as owned:
            now = None if owned is None else self._connection(chosen.number, owned)
            if owned is None or now is None or now.client != chosen.client or now.idle_ms is None:
                return False
            try:
                owned.shutdown(socket.SHUT_RDWR)
            except OSError:
                return False
            return True

    def _note(self, count: int) -> None:
        self.displaced += count
        now = time.monotonic()
        if self.displaced > self._logged and now - self._logged_at >= LOG_EVERY_S:
            _log.warning("idle_connections_closed", count=self.displaced - self._logged, address_max=self._address_max)
            self._logged, self._logged_at = self.displaced, now


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
