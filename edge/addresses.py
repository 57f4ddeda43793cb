"""Connections of clients by address, and which of them give way: pure, without a socket.

A client is an IPv4 address or an IPv6 network of 64 bits, since one subscriber has such a network. Trusted proxies
count for nothing: behind one address stand many clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

NETWORK_BITS_IPV6: Final = 64
_SHIFT: Final = 128 - NETWORK_BITS_IPV6

Network = IPv4Network | IPv6Network
Client = tuple[int, int]  # the IP version; the IPv4 address, or the upper bits of the IPv6 address


def client_of(host: str) -> Client:
    """The client of an address as the socket shows it. Raises ValueError for a text that is no address."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return (6, int(address) >> _SHIFT) if mapped is None else (4, int(mapped))
    return 4, int(address)


def is_trusted(host: str, networks: Sequence[Network]) -> bool:
    """Whether the address is one of a trusted proxy."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


@dataclass(frozen=True, slots=True)
class Connection:
    """An open connection. `idle_ms` is None while a request may be in progress: then it never gives way."""

    number: int
    client: Client | None  # None: a trusted proxy
    idle_ms: int | None


class AddressTable:
    """Connections by client. Holds at most the connections of one worker, which the server bounds."""

    def __init__(self, *, address_max: int, total_max: int, total_after: int) -> None:
        """`address_max`: connections of one client. Above `total_max` of all, the client with the most idle ones gives
        way until `total_after` are left.
        """
        self._address_max = address_max
        self._total_max = total_max
        self._total_after = total_after
        self._connections: dict[Client, list[Connection]] = {}
        self._total = 0
        self.spare: list[Connection] = []  # idle ones of the most idle client, the longest idle last

    def fill(self, connections: Iterable[Connection]) -> None:
        """Replace the contents."""
        self._connections.clear()
        self._total = 0
        for connection in connections:
            self._total += 1
            if connection.client is not None:
                self._connections.setdefault(connection.client, []).append(connection)

    def to_displace(self) -> list[Connection]:
        """The idle connections that give way: those above a client's bound, then those of the most idle client.

        Those that have been idle for the longest time come first. Leaves further ones of that client in `spare`.
        """
        chosen: list[Connection] = []
        kept: list[list[Connection]] = []
        for held in self._connections.values():
            idle = sorted((c for c in held if c.idle_ms is not None), key=lambda c: -(c.idle_ms or 0))
            count = min(len(idle), max(0, len(held) - self._address_max))
            chosen += idle[:count]
            kept.append(idle[count:])
        left = self._total - len(chosen)
        # A client keeps one connection at least: a crowd of clients with one each is no flood.
        most = max(kept, key=len, default=[])[:-1]
        count = max(0, min(left - self._total_after, len(most))) if left > self._total_max else 0
        chosen += most[:count]
        self.spare = most[count:][::-1]
        return chosen
