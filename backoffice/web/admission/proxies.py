"""Notices a proxy that is not trusted: all clients behind it count as one, and one of them can use up the limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final

import prometheus_client
import structlog

from backoffice.web.clients import Network

WARN_EVERY_S: Final = 60.0

UNTRUSTED = prometheus_client.Counter(
    "flashsale_backoffice_untrusted_forwards",
    "Requests whose X-Forwarded-For was ignored, because their peer is not in FLASHSALE_TRUSTED_PROXIES.",
    registry=None,
)
log = structlog.get_logger(__name__)


class UntrustedProxies:
    """Counts requests with an ignored X-Forwarded-For, and warns at most once a minute."""

    def __init__(self, trusted: Sequence[Network], *, now: Callable[[], float] = time.monotonic) -> None:
        """`trusted` are the networks of trusted proxies."""
        self._trusted = trusted
        self._now = now
        self._warn_at = 0.0

    def see(self, peer: str | None) -> None:
        """A request with the header came from `peer`."""
        try:
            address = ip_address((peer or "").partition("%")[0])
        except ValueError:
            return
        if any(address in network for network in self._trusted):
            return
        UNTRUSTED.inc()
        # A proxy has an address of this host or network. Clients that send the header themselves are no news.
        if (address.is_private or address.is_link_local) and self._now() >= self._warn_at:
            self._warn_at = self._now() + WARN_EVERY_S
            log.warning(
                "clients behind a proxy count as one: add its network to FLASHSALE_TRUSTED_PROXIES", proxy=str(address)
            )
