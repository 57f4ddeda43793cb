"""Receivers over HTTP: sends one signed delivery and says how it ended. Decides nothing about retries.

Staff name the URLs, so each connection goes to a public address that was checked (`runtime.outbound`), unless a
setting allows others. No redirect is followed, no proxy used. Of an answer little is read: its status decides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import httpcore

from domain.webhooks import PORTS, WEBHOOKS_MAX, signature
from runtime.outbound.addresses import AddressRefused, Network, public_pool
from runtime.outbound.answers import printable, retry_after_s

AT_ONCE_MAX: Final = 4  # attempts for one webhook
CONNECTIONS_MAX: Final = WEBHOOKS_MAX * AT_ONCE_MAX  # so that slow receivers hold up no other
ANSWER_BYTES_MAX: Final = 4096
ANSWER_S_MAX: Final = 1.0  # for the body of an answer: its status has arrived
ANSWER_LENGTH_MAX: Final = 500  # characters that the log keeps
_WAITS: Final = frozenset({429, 503})
_GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Message:
    """A delivery to send. `secrets` sign it, the current one first; neither they nor the body are in `repr`."""

    url: str
    event_id: str
    body: bytes = field(repr=False)
    secrets: Sequence[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended. `status` None: no answer. `gone`: the receiver wants nothing any more."""

    ok: bool
    status: int | None
    text: str
    retry_after_s: float = 0.0
    gone: bool = False


class Receivers:
    """All receivers: an async context manager over their connections."""

    def __init__(
        self, *, allowed: Sequence[Network] = (), attempt_s_max: float = 10.0, now: Callable[[], float] = time.time
    ) -> None:
        """`allowed` are networks that need not be public; with one, http:// and any port are allowed, too."""
        self._allowed = allowed
        self._attempt_s_max = attempt_s_max
        self._now = now
        self._pool = public_pool(connections_max=CONNECTIONS_MAX, kept_max=WEBHOOKS_MAX, allowed=allowed)

    async def __aenter__(self) -> Self:
        """Connects to nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._pool.aclose()

    async def send(self, message: Message) -> Ending:
        """One attempt. Its timestamp is the present time, so a receiver may refuse old ones."""
        parts = urlsplit(message.url)
        if not self._allowed and (parts.scheme != "https" or parts.port not in (None, *PORTS)):
            return _unanswered(f"not an https:// address with one of the ports {PORTS}")
        at_s = int(self._now())
        headers: dict[bytes | str, bytes | str] = {
            "Content-Type": "application/json",
            "User-Agent": "Flashsale-Webhooks/1",
            "webhook-id": message.event_id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(message.event_id, at_s, message.body, message.secrets),
        }
        try:
            async with asyncio.timeout(self._attempt_s_max) as limit:
                return await self._post(message.url, headers, message.body, limit)
        except AddressRefused as error:
            return _unanswered(str(error))
        except TimeoutError:
            return _unanswered(f"no answer within {self._attempt_s_max:g} s")
        except (httpcore.UnsupportedProtocol, httpcore.LocalProtocolError, UnicodeError, ValueError) as error:
            return _unanswered(f"not a usable address: {type(error).__name__}")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            return _unanswered(f"no connection: {type(error).__name__}")

    async def _post(
        self, url: str, headers: dict[bytes | str, bytes | str], body: bytes, limit: asyncio.Timeout
    ) -> Ending:
        async with self._pool.stream("POST", url, headers=headers, content=body) as answer:
            # The status has arrived in time, and decides; the body has its own limit, and closing as much again.
            limit.reschedule(asyncio.get_running_loop().time() + 2 * ANSWER_S_MAX)
            text = printable(await _beginning(answer), length_max=ANSWER_LENGTH_MAX)
            status = answer.status
            wait_s = retry_after_s(answer.headers, now_s=self._now()) if status in _WAITS else 0.0
            return Ending(ok=200 <= status < 300, status=status, text=text, retry_after_s=wait_s, gone=status == _GONE)


def _unanswered(fault: str) -> Ending:
    return Ending(ok=False, status=None, text=fault)


async def _beginning(answer: httpcore.Response) -> bytes:
    """The first bytes of the body. A body that never ends, or is cut off, does not change what the status said."""
    text = b""
    try:
        async with asyncio.timeout(ANSWER_S_MAX):
            async for piece in answer.aiter_stream():
                text += piece
                if len(text) >= ANSWER_BYTES_MAX:
                    break
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError, OSError):
        pass
    return text[:ANSWER_BYTES_MAX]
