"""Tokens in mailed links: their format and lifetimes. Performs no I/O.

base64url without padding of: 16 bytes user id (determines the shard) | 32 random bytes; only their SHA-256 is stored
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import timedelta
from uuid import UUID

SECRET_BYTES = 32
TOKEN_LENGTH = (16 + SECRET_BYTES) * 4 // 3
VERIFY_EMAIL_LIFE = timedelta(hours=24)
PASSWORD_RESET_LIFE = timedelta(minutes=30)
EMAIL_UNDO_LIFE = timedelta(days=7)  # a holiday
# Valid links of a user and purpose; the oldest go first. More than strangers can request within the life of one: the
# limit of an address is 20 requests an hour, the longest life of a link that can be requested is a day.
LINKS_MAX = 512


def encode_mailed_token(user_id: UUID, secret: bytes) -> str:
    """The token for a link."""
    assert len(secret) == SECRET_BYTES
    return base64.urlsafe_b64encode(user_id.bytes + secret).decode("ascii")


def decode_mailed_token(token: str) -> tuple[UUID, bytes] | None:
    """`(user id, hash of the secret)` of a token, None for malformed text."""
    if len(token) != TOKEN_LENGTH:
        return None
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return UUID(bytes=raw[:16]), secret_hash(raw[16:])


def secret_hash(secret: bytes) -> bytes:
    """The stored form of a secret. It has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(secret).digest()
