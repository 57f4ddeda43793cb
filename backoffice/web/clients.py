"""The client that limits count: its address, also behind proxies. Performs no I/O.

A proxy appends the address of its peer to `X-Forwarded-For`. So the list is read from its end, as long as a trusted
proxy wrote the entry. Entries at the beginning come from the client, which can write any address, and are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
UNKNOWN = "unknown"
ENTRIES_MAX = 32  # proxies in a row; more than any real installation has
# A customer gets a network of at least this size (RFC 6177), and can use another address of it for each request.
_CUSTOMER_BITS = 64


def client_of(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """An IPv4 address, or an IPv6 network of 64 bits. `forwarded` holds the values of the header in their order.

    Returns the nearest address that is not a trusted proxy. When the next entry is malformed, returns the proxy that
    passed it on.
    """
    address = _parse(peer)
    if address is None:
        return UNKNOWN
    if trusted and forwarded:
        entries = ",".join(forwarded).rsplit(",", ENTRIES_MAX)
        while entries and any(address in network for network in trusted):
            nearer = _parse(entries.pop().strip())
            if nearer is None:
                break
            address = nearer
    if isinstance(address, IPv6Address):
        return str(ip_network((address, _CUSTOMER_BITS), strict=False))
    return str(address)


def is_in(peer: str | None, networks: Sequence[Network]) -> bool:
    """Whether the address belongs to one of the networks."""
    address = _parse(peer or "")
    return address is not None and any(address in network for network in networks)


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port. An IPv4-mapped IPv6 address becomes IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
