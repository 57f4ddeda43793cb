"""Web push (RFC 8030): hands an encrypted notice to the push service of a browser. Decides nothing about retries.

Buyers name the addresses of push services, so each connection goes to a public IP address that was checked
(`runtime.outbound`). No redirect is followed, no proxy used, and of an answer little is read.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit
from uuid import UUID

import http_ece
import httpcore
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from runtime.outbound.addresses import AddressRefused, Network, public_pool
from runtime.outbound.answers import printable, retry_after_s
from runtime.tokens.vapid import TOKEN_S, VapidKey

PUSH_S_MAX: Final = 10.0
SLOW_S: Final = 30.0  # a service that did not answer in time is not asked again for as long
CONNECTIONS_MAX: Final = 16
HTTPS_PORT: Final = 443
ORIGINS_MAX: Final = 1000  # of which something is remembered
ANSWER_BYTES_MAX: Final = 4096
REASON_LENGTH_MAX: Final = 200
_LATER: Final = frozenset({408, 425, 429})
_GONE: Final = frozenset({404, 410})
_RENEWED_BEFORE_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Subscription:
    """A browser that shows the pushes of an account; its address identifies it, so it is not in `repr`."""

    id: UUID
    endpoint: str = field(repr=False)
    p256dh: bytes = field(repr=False)
    auth: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pushed:
    """The service has the push."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The subscription ended, or never can work: delete it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Later:
    """The service did not take the push yet, or has it after all; at the earliest after `after_s`."""

    reason: str
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The service never takes this push."""

    reason: str


class PushServices:
    """All push services: an async context manager over their connections."""

    def __init__(
        self,
        key: VapidKey,
        *,
        contact: str,
        allowed: Sequence[Network] = (),
        now: Callable[[], float] = time.time,
        push_s_max: float = PUSH_S_MAX,
    ) -> None:
        """`contact` is the operator's mailto: or https: URL; `allowed` are networks that need not be public."""
        self._key = key
        self._contact = contact
        self._allowed = allowed
        self._now = now
        self._push_s_max = push_s_max
        self._slow_until: OrderedDict[str, float] = OrderedDict()
        self._authorizations: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._pool = public_pool(connections_max=CONNECTIONS_MAX, kept_max=CONNECTIONS_MAX, allowed=allowed)

    async def __aenter__(self) -> Self:
        """Connects to nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def push(
        self, subscription: Subscription, content: bytes, *, ttl_s: int, topic: str
    ) -> Pushed | Gone | Later | NotTaken:
        """Encrypt (RFC 8291) and hand over; a later push of the same `topic` replaces one that still waits."""
        parts = urlsplit(subscription.endpoint)
        origin = f"{parts.scheme}://{parts.netloc}"
        if not self._allowed and (parts.scheme != "https" or parts.port not in (None, HTTPS_PORT)):
            return Gone("not an https:// address with the usual port")
        if (slow_s := self._slow_until.get(origin, 0.0) - self._now()) > 0:
            return Later("the push service did not answer a moment ago", slow_s)
        headers: dict[bytes | str, bytes | str] = {
            "Authorization": self._authorization(origin),
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(ttl_s),
            "Topic": topic,
            "Urgency": "normal",
        }
        try:
            body = encrypted(subscription, content)
        except ValueError as error:
            return Gone(f"unusable keys: {type(error).__name__}")
        try:
            async with asyncio.timeout(self._push_s_max):
                return await self._post(subscription.endpoint, headers, body)
        except AddressRefused as error:
            return Gone(str(error))
        except TimeoutError:
            _remember(self._slow_until, origin, self._now() + SLOW_S)
            return Later("the push service did not answer in time", SLOW_S)
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            OSError,
            ssl.SSLError,
        ) as error:
            return Later(f"no connection: {type(error).__name__}")
        except httpcore.UnsupportedProtocol:
            return Gone("not an http:// or https:// address")

    async def _post(
        self, url: str, headers: dict[bytes | str, bytes | str], body: bytes
    ) -> Pushed | Gone | Later | NotTaken:
        async with self._pool.stream("POST", url, headers=headers, content=body) as answer:
            text = b""
            async for piece in answer.aiter_stream():
                text += piece
                if len(text) >= ANSWER_BYTES_MAX:
                    break
            status = answer.status
            reason = f"{status} {printable(text, length_max=REASON_LENGTH_MAX)}".strip()
            if 200 <= status < 300:
                return Pushed()
            if status in _GONE:
                return Gone(reason)
            if status in _LATER or status >= 500:
                return Later(reason, retry_after_s(answer.headers, now_s=self._now()))
            return NotTaken(reason)

    def _authorization(self, origin: str) -> str:
        """The header for a service; the same one for some hours, since signing costs more than the rest."""
        known = self._authorizations.get(origin)
        now = self._now()
        if known is None or known[0] <= now:
            text = self._key.authorization(origin=origin, contact=self._contact, now_s=int(now))
            known = (now + TOKEN_S - _RENEWED_BEFORE_S, text)
            _remember(self._authorizations, origin, known)
        return known[1]


def encrypted(subscription: Subscription, content: bytes) -> bytes:
    """The content for the browser's eyes alone: aes128gcm (RFC 8188) with the keys of RFC 8291."""
    encoded: bytes = http_ece.encrypt(
        content,
        private_key=generate_private_key(SECP256R1()),
        dh=subscription.p256dh,
        auth_secret=subscription.auth,
        version="aes128gcm",
    )
    return encoded


def _remember(known: OrderedDict[str, Any], origin: str, value: Any) -> None:
    """Keep the value; the oldest origin goes when there are too many."""
    known[origin] = value
    known.move_to_end(origin)
    while len(known) > ORIGINS_MAX:
        known.popitem(last=False)
