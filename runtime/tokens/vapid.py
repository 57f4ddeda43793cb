"""The key by which push services know this installation (VAPID, RFC 8292): made, read, and used to sign.

The private key is the 32 bytes of its number, the public key the 65 bytes of its point on P-256, both in base64url
without padding, as browsers and other programs write them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from runtime.process.errors import OperatorError
from runtime.tokens.key_files import create_key_file, read_key_file

TOKEN_S: Final = 12 * 3600  # RFC 8292 allows 24 hours
_KEY_BYTES: Final = 32


class VapidKeyInvalid(OperatorError):
    """The text is not a private key of P-256."""

    def __init__(self) -> None:
        """The message shows nothing of the key."""
        super().__init__(
            "FLASHSALE_VAPID_KEY: not a private key of P-256 in base64url; `flashsale vapid-key` makes one"
        )


@dataclass(frozen=True, slots=True)
class VapidKey:
    """A key; `public` is its text for browsers."""

    public: str
    private: EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> VapidKey:
        """The key of a text; VapidKeyInvalid."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if len(raw) != _KEY_BYTES:
                raise VapidKeyInvalid
            private = derive_private_key(int.from_bytes(raw, "big"), SECP256R1())
        except (binascii.Error, ValueError) as error:
            raise VapidKeyInvalid from error
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return cls(_text(point), private)

    def authorization(self, *, origin: str, contact: str, now_s: int) -> str:
        """The `Authorization` header for a push service; `contact` is a mailto: or https: URL of the operator."""
        claims = {"aud": origin, "exp": now_s + TOKEN_S, "sub": contact}
        return f"vapid t={jwt.encode(claims, self.private, algorithm='ES256')}, k={self.public}"


def new_vapid_key() -> str:
    """The text of a new private key."""
    number = generate(SECP256R1()).private_numbers().private_value
    return _text(number.to_bytes(_KEY_BYTES, "big"))


def create_vapid_key(path: Path) -> None:
    """Create a file with a new key, mode 0600. Does nothing when the file exists."""
    create_key_file(path, new_vapid_key().encode())


def load_vapid_key(path: Path) -> VapidKey:
    """The key in a file. Raises TokenKeysError, VapidKeyInvalid."""
    return VapidKey.parse(read_key_file(path).strip())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
