"""Bounds, and the state that all connections of one process share. Performs no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backoffice.web.admission.proxies import UntrustedProxies
from backoffice.web.clients import Network
from backoffice.web.messages import Stream


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of admission. Times in seconds, sizes in bytes."""

    head_bytes_max: int = 16 * 1024
    headers_max: int = 64
    body_bytes_max: int = 1024 * 1024
    head_s_max: float = 10.0
    body_s_max: float = 20.0
    idle_s_max: float = 60.0
    answer_s_max: float = 30.0
    write_s_max: float = 30.0
    connections_max: int = 1024
    requests_max: int = 256  # a stream that has begun does not count; its handler bounds the number of streams
    stream_input_bytes_max: int = 64 * 1024
    stream_drain_s_max: float = 1.0
    linger_s_max: float = 0.5  # wait for a request that was on its way when the drain began


@dataclass(slots=True)
class Context:
    """Shared by the connections.

    `methods(path)` returns the methods of a path. `take_stream(name)` returns the stream that replaces an answer of
    Robyn. `secret` proves to handlers that admission forwarded the request. `X-Forwarded-For` is trusted only from
    `trusted_proxies`.
    """

    bounds: Bounds
    robyn: tuple[str, int]
    secret: bytes
    methods: Callable[[str], tuple[str, ...]]
    take_stream: Callable[[str], Stream | None]
    trusted_proxies: Sequence[Network]
    untrusted_proxies: UntrustedProxies
    requests: int = 0
    draining: bool = False
