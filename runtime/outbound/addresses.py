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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import httpcore

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KEPT_S: Final = 30.0
# The assigned unicast addresses. Outside are IPv4-compatible, IPv4-translated, NAT64 and the old private addresses.
_UNICAST_V6: Final = ipaddress.IPv6Network("2000::/3")
# Addresses that `is_global` lets pass although they lead elsewhere: 6to4, Teredo, documentation; protocol assignments,
# in which a cloud has its metadata service; the relay of 6to4; services of a cloud for its guests.
_SPECIAL: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("2002::/16", "2001::/32", "3fff::/20", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
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
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST_V6:
        return False
    is_special = any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not is_special


class PublicBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to those in `allowed`."""

    def __init__(self, allowed: Sequence[Network], *, connections_max: int) -> None:
        """`allowed` are networks of test services. Names have threads of their own, one for each connection."""
        self._allowed = allowed
        self._threads = ThreadPoolExecutor(connections_max, thread_name_prefix="outbound name")
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of the host that may be used and accepts it. Raises AddressRefused."""
        lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        fault: Exception = AddressRefused("the host has no public address")
        for address in dict.fromkeys(str(address[0]) for *_, address in found):
            if not is_allowed(address, self._allowed):
                continue
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                fault = error
        raise fault

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
        network_backend=PublicBackend(allowed, connections_max=connections_max),
    )
