"""Whose request it is, for limits: the address of the client, also behind proxies. Performs no I/O.

A proxy appends the address it saw to `X-Forwarded-For`, so the list is believed from its end for as long as a trusted proxy
wrote it. What clients put at its beginning is never believed: each could be anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
UNKNOWN = "unknown"
ENTRIES_MAX = 32  # proxies in a row; nobody has as many
# What one customer gets of IPv6 (RFC 6177): whoever has it can take another address for each request.
_CUSTOMER_BITS = 64


def client_of(peer: str, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Who is counted: an IPv4 address, or an IPv6 network of 64 bits. `forwarded` are the header's values in their order.

    The nearest address that no trusted proxy has; of a list that a trusted proxy passed on malformed, the proxy itself.
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


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address, also with a port as some proxies write it; IPv4 in the form of IPv6 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
