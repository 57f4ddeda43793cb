"""Addresses of Redis: one server, or the nodes of a Redis Cluster by which the others are found. Performs no I/O.

redis://[user:password@]host:port/database     one server; `rediss://` with TLS, `unix://` through a socket
redis+cluster://[user:password@]host:port[,host:port]     a Redis Cluster; `rediss+cluster://` with TLS
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

CLUSTER_SCHEMES: Final = ("redis+cluster", "rediss+cluster")
SEEDS_MAX: Final = 64
_PORT: Final = 6379

Node = tuple[str, int]  # host and port


def is_cluster(url: str) -> bool:
    """Whether the URL names a Redis Cluster."""
    return url.partition("://")[0] in CLUSTER_SCHEMES


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """The nodes in a `redis+cluster://` URL, and how every node of the cluster is addressed."""

    seeds: tuple[Node, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> ClusterAddress:
        """Raises ValueError for another scheme, for a malformed node, and for a path: a cluster has database 0 only."""
        scheme, _, rest = url.partition("://")
        if scheme not in CLUSTER_SCHEMES:
            raise ValueError(f"not a URL scheme of a Redis Cluster: {scheme!r}")
        login, _, nodes = rest.rpartition("@")
        username, _, password = login.partition(":")
        seeds = tuple(_node(part) for part in nodes.split(",") if part)
        if not 1 <= len(seeds) <= SEEDS_MAX:
            raise ValueError(f"a Redis Cluster is named by 1 to {SEEDS_MAX} nodes, host:port, separated by commas")
        return cls(seeds, unquote(username), unquote(password), scheme.startswith("rediss"))


def _node(text: str) -> Node:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):  # an IPv6 address without a port ends with a bracket
        host, port = text, str(_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or set(text) & set("/?#"):
        raise ValueError(f"not a node of a Redis Cluster, host:port: {text!r}")
    return host, int(port)
