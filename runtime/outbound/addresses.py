"""Connections to public addresses only, for requests to a host that a user named (protection against SSRF).

The name is resolved here, once for each connection, and the connection is made to an address that was checked. So a
second DNS answer has no effect. TLS still verifies the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Sequence
from typing import Any, Final

import httpcore

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KEPT_S: Final = 30.0
# Addresses that lead to others: IPv4-compatible ones, 6to4, Teredo, NAT64. And the old private addresses of IPv6.
_TUNNELS: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("::/96", "2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10")
)


class AddressRefused(Exception):
    """The name leads to no public address."""


def is_allowed(text: str, allowed: Sequence[Network] = ()) -> bool:
    """Whether a connection to the address may be made: it is public, or in one of the networks `allowed`."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in network for network in allowed):
        return True
    is_tunnel = any(address in network for network in _TUNNELS)
    return address.is_global and not address.is_multicast and not is_tunnel


class PublicBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to those in `allowed`."""

    def __init__(self, allowed: Sequence[Network]) -> None:
        """`allowed` are networks of test services."""
        self._allowed = allowed
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of the host that may be used. Raises AddressRefused."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if is_allowed(str(address[0]), self._allowed):
                return await self._backend.connect_tcp(str(address[0]), port, timeout, local_address, socket_options)
        raise AddressRefused("the host has no public address")

    async def sleep(self, seconds: float) -> None:
        """The library's pause."""
        await self._backend.sleep(seconds)


def public_pool(
    *, connections_max: int, kept_max: int, allowed: Sequence[Network] = ()
) -> httpcore.AsyncConnectionPool:
    """A pool of connections to public addresses, of which `kept_max` stay open for 30 s without a request."""
    return httpcore.AsyncConnectionPool(
        ssl_context=ssl.create_default_context(),
        max_connections=connections_max,
        max_keepalive_connections=kept_max,
        keepalive_expiry=KEPT_S,
        network_backend=PublicBackend(allowed),
    )
