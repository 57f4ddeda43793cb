"""Ids: UUIDv7 for users, products and sales, UUIDv8 for orders, and a short form for sales in Redis. Performs no I/O.

An order id contains its lane and its virtual bucket, so the Redis lane and the shard of an order are known without a
look-up (RFC 9562, section 5.8). The milliseconds are for sorting; they are not the time of the reservation:

    48 bits unix ms | 4 bits version 8 | 12 bits lane | 2 bits variant | 10 bits bucket | 52 bits random
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from uuid import UUID

ID_BYTES = 16
LANE_BITS = 12
BUCKET_BITS = 10
_RANDOM_BITS = 52
_VERSION_8 = 8
_VARIANT = 0b10


def new_uuid7() -> UUID:
    """A random id, ordered by time (RFC 9562, section 5.7)."""
    unix_ms = time.time_ns() // 1_000_000
    value = (unix_ms << 80) | (7 << 76) | (secrets.randbits(12) << 64) | (_VARIANT << 62) | secrets.randbits(62)
    return UUID(int=value)


def order_id(*, unix_ms: int, lane: int, bucket: int, random: int) -> UUID:
    """Build an order id; `random` contributes its low 52 bits."""
    assert 0 <= lane < 1 << LANE_BITS and 0 <= bucket < 1 << BUCKET_BITS
    value = (unix_ms & ((1 << 48) - 1)) << 80
    value |= (_VERSION_8 << 76) | (lane << 64) | (_VARIANT << 62)
    value |= (bucket << _RANDOM_BITS) | (random & ((1 << _RANDOM_BITS) - 1))
    return UUID(int=value)


def id_of_name(name: str) -> UUID:
    """The id that follows from a name, the same each time: a UUIDv8 of its SHA-256 (RFC 9562, appendix B.2)."""
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:ID_BYTES], "big")
    value &= ~(0xF << 76 | 0b11 << 62)
    return UUID(int=value | _VERSION_8 << 76 | _VARIANT << 62)


def first_order_id(unix_ms: int) -> UUID:
    """A bound: at most every order id of this and later milliseconds, above every id of earlier ones."""
    return UUID(int=min(max(unix_ms, 0), (1 << 48) - 1) << 80)


def is_order_id(value: UUID) -> bool:
    """Whether the id has the version of order ids."""
    return value.version == _VERSION_8


def lane_of(order: UUID) -> int:
    """The lane that holds the order in Redis."""
    return (order.int >> 64) & ((1 << LANE_BITS) - 1)


def bucket_of(order: UUID) -> int:
    """The virtual bucket of the order's user, which maps to the shard."""
    return (order.int >> _RANDOM_BITS) & ((1 << BUCKET_BITS) - 1)


def parse_uuid(text: str) -> UUID | None:
    """The id in canonical form (36 characters, either case), or None for any other text."""
    if len(text) != 36:
        return None
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None


def short(value: UUID) -> str:
    """22 characters of unpadded base64url: a sale's id in readable fields and keys of Redis."""
    return base64.urlsafe_b64encode(value.bytes).rstrip(b"=").decode("ascii")
