"""Bounds, and the state that all connections of one process share. Performs no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backoffice.web.admission.places import Places
from backoffice.web.admission.proxies import UntrustedProxies
from backoffice.web.clients import Network, is_in
from backoffice.web.messages import Stream
from domain.problems import ProblemDetails


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of admission. Times in seconds, sizes in bytes."""

    head_bytes_max: int = 16 * 1024
    headers_max: int = 64
    head_s_max: float = 10.0
    body_s_max: float = 20.0
    idle_s_max: float = 60.0
    answer_s_max: float = 30.0
    write_s_max: float = 30.0
    chunks_max: int = 256  # of a chunked body, besides one for each 256 bytes
    connections_max: int = 1024
    client_connections_max: int = 256  # of one address that is no trusted proxy
    requests_max: int = 256  # a stream that has begun does not count; its handler bounds the number of streams
    client_requests_max: int = 64
    staff_requests_kept: int = 32  # of `requests_max`
    stream_input_bytes_max: int = 64 * 1024
    stream_drain_s_max: float = 1.0
    linger_s_max: float = 0.5  # wait for a request that was on its way when the drain began


@dataclass(frozen=True, slots=True)
class Permit:
    """The decision on a request before its body is read: the refusal or None, the bound of the body, the caller.

    `request_id` is that of the refusal's entry in the audit log.
    """

    refusal: ProblemDetails | None
    body_bytes_max: int = 0
    is_staff: bool = False
    request_id: str | None = None


@dataclass(slots=True)
class Context:
    """Shared by the connections.

    `permit(method, path, authorization, client)` decides by the head of a request. `take_stream(name)` returns the
    stream that replaces an answer of Robyn. `secret` proves to handlers that admission forwarded the request.
    `X-Forwarded-For` is trusted only from `trusted_proxies`.
    """

    bounds: Bounds
    robyn: tuple[str, int]
    secret: bytes
    permit: Callable[[str, str, str | None, str], Permit]
    take_stream: Callable[[str], Stream | None]
    trusted_proxies: Sequence[Network]
    untrusted_proxies: UntrustedProxies
    places: Places
    draining: bool = False

    def trusts(self, peer: str | None) -> bool:
        """Whether the peer is a trusted proxy, whose connections are those of many clients."""
        return is_in(peer, self.trusted_proxies)
