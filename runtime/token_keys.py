"""Keys of access tokens: the HS256 ring of buyers' tokens and the Ed25519 key of staff tokens, as files of mode 0600.

Makes, loads and uses keys; verifying belongs to who accepts the token (the edge in Cython, the backoffice in `backoffice.auth`).

The ring is JSON, `{"active": kid, "keys": {kid: base64url}}`. New tokens carry the active `kid`; the others stay until
their tokens have expired, so a rotation needs no downtime.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES_MIN = 32  # RFC 7518, section 3.2: at least the size of the hash
KEYS_MAX = 16
BUYER_AUDIENCE = "edge"
STAFF_AUDIENCE = "backoffice"
_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")


class TokenKeysError(Exception):
    """A key file cannot be used; the message names the file and what is wrong, never a key."""


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The ring: `keys` maps a kid to at least 32 bytes, `active` is the kid that signs."""

    active: str
    keys: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class StaffKey:
    """The private key of staff tokens with its kid (RFC 7638 thumbprint, so that equal keys have equal names)."""

    kid: str
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> Ed25519PublicKey:
        """What verifies the tokens."""
        return self.private.public_key()


def load_token_keys(path: Path) -> TokenKeys:
    """The ring in a file; TokenKeysError when it is unreadable, malformed, or has a key that is too short."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenKeysError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise TokenKeysError(f"{path}: not JSON") from error
    if not isinstance(document, dict) or not isinstance(document.get("keys"), dict):
        raise TokenKeysError(f'{path}: not of the shape {{"active": kid, "keys": {{kid: base64url}}}}')
    if not 1 <= len(document["keys"]) <= KEYS_MAX:
        raise TokenKeysError(f"{path}: 1 to {KEYS_MAX} keys")
    keys: dict[str, bytes] = {}
    for kid, text in document["keys"].items():
        if not _KID.fullmatch(kid):
            raise TokenKeysError(f"{path}: a kid is 1-32 of A-Z a-z 0-9 _ -")
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise TokenKeysError(f"{path}: key {kid} is not base64url") from error
        if len(raw) < KEY_BYTES_MIN:
            raise TokenKeysError(f"{path}: key {kid} is shorter than {KEY_BYTES_MIN} bytes")
        keys[kid] = raw
    if document.get("active") not in list(keys):
        raise TokenKeysError(f"{path}: the active kid is not among the keys")
    return TokenKeys(document["active"], keys)


def create_token_keys(path: Path) -> None:
    """Write a ring with one fresh key, mode 0600. Nothing happens when the file is there."""
    kid = secrets.token_hex(4)
    key = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES_MIN)).rstrip(b"=").decode("ascii")
    _write_once(path, json.dumps({"active": kid, "keys": {kid: key}}).encode())


def mint_buyer_token(keys: TokenKeys, *, user_id: UUID, issuer: str, ttl_s: int, now_s: int | None = None) -> str:
    """A buyer's access token: HS256 by the active key, for the edge and for the buyer's own things in the backoffice."""
    now = int(time.time()) if now_s is None else now_s
    claims = {
        "sub": str(user_id),
        "iss": issuer,
        "aud": BUYER_AUDIENCE,
        "roles": ["buyer"],
        "iat": now,
        "exp": now + ttl_s,
    }
    return jwt.encode(claims, keys.keys[keys.active], algorithm="HS256", headers={"kid": keys.active})


def create_staff_key(path: Path) -> None:
    """Write a fresh Ed25519 private key as PEM (PKCS 8), mode 0600. Nothing happens when the file is there."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write_once(path, pem)


def load_staff_key(path: Path) -> StaffKey:
    """The key in a PEM file; TokenKeysError when it is unreadable or no Ed25519 private key."""
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise TokenKeysError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise TokenKeysError(f"{path}: not a PEM private key without password") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise TokenKeysError(f"{path}: not an Ed25519 key")
    return StaffKey(_thumbprint(private.public_key()), private)


def mint_staff_token(
    key: StaffKey, *, user_id: UUID, role: str, issuer: str, ttl_s: int, now_s: int | None = None
) -> str:
    """An access token of staff or an admin: EdDSA, accepted by the backoffice only."""
    now = int(time.time()) if now_s is None else now_s
    claims = {
        "sub": str(user_id),
        "iss": issuer,
        "aud": STAFF_AUDIENCE,
        "roles": [role],
        "iat": now,
        "exp": now + ttl_s,
    }
    return jwt.encode(claims, key.private, algorithm="EdDSA", headers={"kid": key.kid})


def staff_jwks(*keys: StaffKey) -> dict[str, Any]:
    """The JWK set (RFC 7517) of the public halves."""
    return {"keys": [{**_jwk(key.public), "kid": key.kid, "alg": "EdDSA", "use": "sig"} for key in keys]}


def _jwk(public: Ed25519PublicKey) -> dict[str, str]:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")}


def _thumbprint(public: Ed25519PublicKey) -> str:
    canonical = json.dumps(_jwk(public), sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(sha256(canonical).digest()).rstrip(b"=").decode("ascii")


def _write_once(path: Path, content: bytes) -> None:
    """Create the file whole or not at all: two processes that start together agree on one key."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(staging, path)  # fails when another process was faster, unlike rename
        except FileExistsError:
            return
    finally:
        staging.unlink()
