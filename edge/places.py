"""Closes idle connections of a client that holds more places of the worker than its share.

A door has one bound for all its connections. Silent sockets of one address could hold every place until their time
limit. So each door of a worker is looked at: the idle connections of a client above its share give way, and near the
door's bound those of the client with the most idle ones. There is no look while fewer connections than one client's
share are open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import structlog

from edge.addresses import AddressTable, Client, Connection, Network, client_of, is_trusted
from runtime.process.supervision import Beat, no_beat
from runtime.process.tasks import until_tick

LOOK_S: Final = 0.25
LOOK_AGAIN_S: Final = 0.02  # after a look that closed connections: others wait for their places
ROOM_FACTOR: Final = 4  # a full door looks again after so many times the time of its last look, unless this found many
ROOM_MANY: Final = 4  # many: this part of the connections
SLICE: Final = 64  # connections between two pauses of a look, so that orders do not wait for this
TOTAL_PERCENT: Final = 90  # of the door's bound: above, the client with the most idle connections gives way
TOTAL_PERCENT_AFTER: Final = 60  # until so many are left
LOG_EVERY_S: Final = 10.0
CLIENTS_KNOWN_MAX: Final = 4096

_log = structlog.get_logger("edge.places")

ClientOf = Callable[[str], Client | None]
"""The client of a peer's address; None for a trusted proxy."""


class Connections(Protocol):
    """The connections of a door in this process."""

    def at_most(self) -> int:
        """A cheap upper bound of their number."""
        ...

    def each(self, client: ClientOf) -> Iterator[Connection]:
        """The open connections, each inspected when its turn comes."""
        ...

    def close(self, chosen: Connection, client: ClientOf) -> bool:
        """Close it if it still is an idle connection of the same client."""
        ...


class Places:
    """The places of one door: the connections that it may hold. `displaced` counts those that were closed."""

    def __init__(
        self, connections: Connections, *, address_max: int, connections_max: int, trusted: Sequence[Network]
    ) -> None:
        self._connections = connections
        self._address_max = address_max
        self._trusted = tuple(trusted)
        total_max = connections_max * TOTAL_PERCENT // 100
        self._look_from = min(address_max, total_max)
        self._table = AddressTable(
            address_max=address_max, total_max=total_max, total_after=connections_max * TOTAL_PERCENT_AFTER // 100
        )
        self._clients: dict[str, Client | None] = {}
        self._logged_at = -LOG_EVERY_S
        self._logged = 0
        self._room_from = 0.0
        self.displaced = 0

    async def run(self, beat: Beat = no_beat) -> None:
        """Look until cancelled."""
        while True:
            beat()
            await asyncio.sleep(LOOK_AGAIN_S if await self.look() else until_tick(LOOK_S))

    async def look(self) -> int:
        """One look. Returns the number of connections that were closed."""
        if self._connections.at_most() <= self._look_from:
            return 0
        connections: list[Connection] = []
        for connection in self._connections.each(self._client):
            connections.append(connection)
            if len(connections) % SLICE == 0:
                await asyncio.sleep(0)
        self._table.fill(connections)
        count = 0
        for index, chosen in enumerate(self._table.to_displace()):
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            count += self._connections.close(chosen, self._client)
        self._note(count)
        return count

    def make_room(self) -> bool:
        """Close idle connections at once, because the door is full. Whether a place is free now.

        First one gives way that the last look found idle, then there is a new look. Looks that find few idle
        connections take a fifth of the time at most.
        """
        if self._close_spare():
            return True
        begun = time.monotonic()
        if begun < self._room_from:
            return False
        self._table.fill(self._connections.each(self._client))
        count = sum(self._connections.close(chosen, self._client) for chosen in self._table.to_displace())
        self._note(count)
        now = time.monotonic()
        if (count + len(self._table.spare)) * ROOM_MANY < self._connections.at_most():
            self._room_from = now + ROOM_FACTOR * (now - begun)
        return count > 0

    def _close_spare(self) -> bool:
        while self._table.spare:
            if self._connections.close(self._table.spare.pop(), self._client):
                self._note(1)
                return True
        return False

    def _client(self, host: str) -> Client | None:
        if host not in self._clients:
            if len(self._clients) >= CLIENTS_KNOWN_MAX:
                self._clients.clear()
            self._clients[host] = None if is_trusted(host, self._trusted) else client_of(host)
        return self._clients[host]

    def _note(self, count: int) -> None:
        self.displaced += count
        now = time.monotonic()
        if self.displaced > self._logged and now - self._logged_at >= LOG_EVERY_S:
            _log.warning("idle_connections_closed", count=self.displaced - self._logged, address_max=self._address_max)
            self._logged, self._logged_at = self.displaced, now
