"""Outgoing webhooks: event types, secrets, signatures, the ladder of retries. Performs no I/O.

A delivery is signed as Standard Webhooks says (https://www.standardwebhooks.com, specification 1.0.0):

    POST <url>
    webhook-id: <id of the event>
    webhook-timestamp: <Unix seconds of this attempt>
    webhook-signature: v1,<base64 HMAC-SHA256 of "id.timestamp.body">[ v1,...]

    {"type": "order.paid", "timestamp": "2026-01-01T00:00:00.123Z", "data": {...}}

No secret is stored. It follows from `FLASHSALE_WEBHOOK_KEY`, the webhook and a random salt, so neither the database
nor its backups contain one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from domain import ids
from domain.events import Event

WEBHOOKS_MAX: Final = 50
URL_LENGTH_MAX: Final = 2000
DESCRIPTION_LENGTH_MAX: Final = 500
EVENT_TYPES_MAX: Final = 50
EVENT_TYPE_PATTERN: Final = r"^(order|payment|user|product|sale)\.(\*|[a-z_]{1,40})$"
PING_TYPE: Final = "webhook.ping"
SALT_BYTES: Final = 16
OVERLAP: Final = timedelta(hours=24)  # for which a replaced secret signs, too
RETRY_DELAYS_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 36_000)
JITTER_PART: Final = 0.1  # of a delay, in both directions
PORTS: Final = (443, 8443)  # of a public address: the sender must not be a port scanner
_MESSAGE_ID: Final = re.compile(r"[!-\-/-~]{1,256}")  # visible ASCII without the full stop, which parts the signed text
_SECRET_PREFIX: Final = "whsec_"


class DeliveryState(StrEnum):
    """Stored: never renamed."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledReason(StrEnum):
    """Stored: never renamed."""

    STAFF = "staff"
    GONE = "gone"  # the receiver answered 410
    FAILING = "failing"


def matches(event_types: Iterable[str], type_: str) -> bool:
    """Whether one of `event_types`, which are exact or end with `.*`, names the type."""
    family = f"{type_.partition('.')[0]}.*"
    return any(wanted in (type_, family) for wanted in event_types)


def families(event_types: Iterable[str]) -> set[str]:
    """The first words of the types: `order`, `payment` and so on."""
    return {wanted.partition(".")[0] for wanted in event_types}


def message_id(event: Event) -> str:
    """`webhook-id`: the id of the event, or one that follows from it where it cannot be in a header."""
    if _MESSAGE_ID.fullmatch(event.id):
        return event.id
    return str(ids.id_of_name(f"webhook\0{event.source}\0{event.id}"))


def message_body(type_: str, time_ms: int, data: Any) -> bytes:
    """The body of a delivery: the same bytes at each attempt."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    timestamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    document = {"type": type_, "timestamp": timestamp, "data": data}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def secret_of(key: bytes, webhook_id: UUID, salt: bytes) -> bytes:
    """The 32 bytes that sign a webhook's deliveries, out of the installation's key."""
    return hmac.digest(key, b"webhook secret\0" + webhook_id.bytes + salt, hashlib.sha256)


def encode_secret(secret: bytes) -> str:
    """`whsec_...`, as receivers' libraries expect it."""
    return _SECRET_PREFIX + base64.b64encode(secret).decode()


def signature(message: str, timestamp_s: int, body: bytes, secrets: Sequence[bytes]) -> str:
    """The value of `webhook-signature`: one signature for each secret, separated by spaces."""
    signed = f"{message}.{timestamp_s}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode() for secret in secrets
    )


def retry_delay_s(attempts: int, delays_s: Sequence[float], *, retry_after_s: float, random: float) -> float | None:
    """Seconds to the next attempt after this many failed ones; None: give up. `random` is in 0..1.

    `Retry-After` of the receiver is honoured: the delay is not shorter.
    """
    if attempts > len(delays_s):
        return None
    return max(delays_s[attempts - 1] * (1 + JITTER_PART * (2 * random - 1)), retry_after_s)
