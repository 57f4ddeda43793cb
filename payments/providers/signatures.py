"""The signature of the simulated provider's webhooks. Performs no I/O.

    Payment-Signature: t=1764288000,v1=<hex HMAC-SHA256 of "1764288000." and the body>[,v1=...]

Several `v1` are allowed: while a secret is replaced, the provider signs with both.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from payments.providers.port import SignatureInvalid

HEADER: Final = "payment-signature"
TOLERANCE_S: Final = 300  # in both directions: clocks differ
HEADER_LENGTH_MAX: Final = 2048
SIGNATURES_MAX: Final = 16
_TIME: Final = re.compile(r"[0-9]{1,12}")
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")


def sign(body: bytes, secrets: Sequence[bytes], *, at_s: int) -> str:
    """The header's value for a body, with one `v1` for each secret."""
    return ",".join((f"t={at_s}", *(f"v1={_digest(secret, str(at_s), body).hex()}" for secret in secrets)))


def verify(header: str | None, body: bytes, secrets: Sequence[bytes], *, now_s: float) -> None:
    """Return if some signature is by one of `secrets` and not stale. Raises SignatureInvalid."""
    if not header:
        raise SignatureInvalid("the signature is missing")
    if len(header) > HEADER_LENGTH_MAX:
        raise SignatureInvalid("the signature is too long")
    signed_at, signatures = _parse(header)
    if abs(now_s - int(signed_at)) > TOLERANCE_S:
        raise SignatureInvalid("the signature is stale")
    # Every pair is compared, in constant time: the time taken tells nothing of the secrets.
    matches = [
        hmac.compare_digest(signature, expected)
        for expected in [_digest(secret, signed_at, body) for secret in secrets]
        for signature in signatures
    ]
    if not any(matches):
        raise SignatureInvalid("the signature is wrong")


def _parse(header: str) -> tuple[str, list[bytes]]:
    """`t` as it was signed, and every well-formed `v1`. Members of other schemes are ignored."""
    times: list[str] = []
    signatures: list[bytes] = []
    for member in header.split(","):
        name, _, value = member.strip(" \t").partition("=")
        if name == "t":
            times.append(value)
        elif name == "v1" and _HEX.fullmatch(value):
            signatures.append(bytes.fromhex(value))
    if len(times) != 1 or not _TIME.fullmatch(times[0]) or not signatures or len(signatures) > SIGNATURES_MAX:
        raise SignatureInvalid("the signature is malformed")
    return times[0], signatures


def _digest(secret: bytes, signed_at: str, body: bytes) -> bytes:
    return hmac.digest(secret, signed_at.encode("ascii") + b"." + body, hashlib.sha256)
