"""Keys of access tokens: the HS256 ring of buyers' tokens and the Ed25519 ring of staff tokens, as files of mode 0600.

Makes and loads keys, and mints tokens. The services that accept tokens verify them: the edge in Cython, the backoffice
in `backoffice.auth`. Both files are rings (`runtime.tokens.key_files`) of base64url or PEM texts. A PEM file with a
single staff key is also accepted.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from runtime.tokens.key_files import KeyRingDocument, create_key_file, read_key_file, unix_now
from runtime.tokens.key_files import TokenKeysError as TokenKeysError  # for callers that load keys

KEY_BYTES_MIN = 32  # RFC 7518, section 3.2: at least the size of the hash
BUYER_AUDIENCE = "edge"
STAFF_AUDIENCE = "backoffice"
TOKEN_LENGTH_MAX = 4096  # of an accepted token
LEEWAY_S = 60  # `iat` and `nbf` of an accepted token may be this far in the future; clocks differ
_PEM = "-----BEGIN"


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """The ring: `keys` maps a kid to at least 32 bytes, `active` is the kid that signs, and a key ends at `ends_s`."""

    active: str
    keys: Mapping[str, bytes] = field(repr=False)
    ends_s: int | None = None


@dataclass(frozen=True, slots=True)
class StaffKey:
    """A private key of staff tokens. Its kid is the RFC 7638 thumbprint, so equal keys have equal kids."""

    kid: str
    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> Ed25519PublicKey:
        """The key that verifies the tokens."""
        return self.private.public_key()


@dataclass(frozen=True, slots=True)
class StaffKeys:
    """The ring of staff keys, with members as in `TokenKeys`."""

    active: str
    keys: Mapping[str, StaffKey] = field(repr=False)
    ends_s: int | None = None

    @property
    def signing(self) -> StaffKey:
        """The key that signs new tokens."""
        return self.keys[self.active]


def load_token_keys(path: Path) -> TokenKeys:
    """The ring in a file; TokenKeysError when it is unreadable or malformed, or a key is too short."""
    document = KeyRingDocument.parse(read_key_file(path), path=path).swept(unix_now())
    keys: dict[str, bytes] = {}
    for kid, text in document.keys.items():
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as error:
            raise TokenKeysError(f"{path}: key {kid} is not valid base64url") from error
        if len(raw) < KEY_BYTES_MIN:
            raise TokenKeysError(f"{path}: key {kid} is shorter than {KEY_BYTES_MIN} bytes")
        keys[kid] = raw
    return TokenKeys(document.active, keys, min(document.until.values(), default=None))


def create_token_keys(path: Path) -> None:
    """Create a ring with one new key, mode 0600. Does nothing when the file exists."""
    kid, key = make_token_key()
    create_key_file(path, KeyRingDocument(kid, {kid: key}).dump())


def make_token_key() -> tuple[str, str]:
    """The kid and the text of a new key."""
    key = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES_MIN)).rstrip(b"=").decode("ascii")
    return secrets.token_hex(4), key


@dataclass(frozen=True, slots=True)
class LoginClaims:
    """The claims of a token that belongs to a login."""

    generation: int
    """`gen`: the newest end of the user's sessions (`runtime.tokens.session_ends`); 0 without one."""
    auth_time_s: int
    """`auth_time` (OpenID Connect Core, section 2): the time of the login, in Unix seconds."""


def mint_buyer_token(
    keys: TokenKeys,
    *,
    user_id: UUID,
    issuer: str,
    ttl_s: int,
    now_s: int | None = None,
    login: LoginClaims | None = None,
) -> str:
    """A buyer's access token, HS256 with the active key, for the edge and the buyer's own data in the backoffice."""
    claims = _claims(user_id, BUYER_AUDIENCE, "buyer", issuer=issuer, ttl_s=ttl_s, now_s=now_s, login=login)
    return jwt.encode(claims, keys.keys[keys.active], algorithm="HS256", headers={"kid": keys.active})


def create_staff_key(path: Path) -> None:
    """Create a file with a new Ed25519 private key as PEM (PKCS 8), mode 0600. Does nothing when the file exists."""
    create_key_file(path, make_staff_key()[1].encode())


def make_staff_key() -> tuple[str, str]:
    """The kid and the text of a new key."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return _thumbprint(private.public_key()), pem.decode("ascii")


def read_staff_document(path: Path) -> KeyRingDocument:
    """The staff file as a ring; a single PEM gives a ring of one key. TokenKeysError as in `load_staff_keys`."""
    text = read_key_file(path)
    if not text.lstrip().startswith(_PEM):
        return KeyRingDocument.parse(text, path=path)
    kid = _parse_staff_key(text, path).kid
    return KeyRingDocument(kid, {kid: text})


def load_staff_keys(path: Path) -> StaffKeys:
    """The ring in a file; TokenKeysError when it is unreadable or malformed, or a key is not an Ed25519 private key."""
    document = read_staff_document(path).swept(unix_now())
    keys = {kid: _parse_staff_key(text, path) for kid, text in document.keys.items()}
    if any(kid != key.kid for kid, key in keys.items()):
        raise TokenKeysError(f"{path}: a kid is not the thumbprint of its key")
    return StaffKeys(document.active, keys, min(document.until.values(), default=None))


def _parse_staff_key(pem: str, path: Path) -> StaffKey:
    try:
        private = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TokenKeysError(f"{path}: is not a PEM private key without password") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise TokenKeysError(f"{path}: is not an Ed25519 key")
    return StaffKey(_thumbprint(private.public_key()), private)


def mint_staff_token(
    key: StaffKey,
    *,
    user_id: UUID,
    role: str,
    issuer: str,
    ttl_s: int,
    now_s: int | None = None,
    login: LoginClaims | None = None,
) -> str:
    """An access token of staff or an administrator: EdDSA, accepted by the backoffice only."""
    claims = _claims(user_id, STAFF_AUDIENCE, role, issuer=issuer, ttl_s=ttl_s, now_s=now_s, login=login)
    return jwt.encode(claims, key.private, algorithm="EdDSA", headers={"kid": key.kid})


def _claims(
    user_id: UUID, audience: str, role: str, *, issuer: str, ttl_s: int, now_s: int | None, login: LoginClaims | None
) -> dict[str, object]:
    now = int(time.time()) if now_s is None else now_s
    claims: dict[str, object] = {
        "sub": str(user_id),
        "iss": issuer,
        "aud": audience,
        "roles": [role],
        "iat": now,
        "exp": now + ttl_s,
    }
    if login is not None:
        claims |= {"auth_time": login.auth_time_s, "gen": login.generation}
    return claims


def staff_jwks(*keys: StaffKey) -> dict[str, Any]:
    """The JWK set (RFC 7517) of the public keys."""
    return {"keys": [{**_jwk(key.public), "kid": key.kid, "alg": "EdDSA", "use": "sig"} for key in keys]}


def _jwk(public: Ed25519PublicKey) -> dict[str, str]:
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")}


def _thumbprint(public: Ed25519PublicKey) -> str:
    canonical = json.dumps(_jwk(public), sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(sha256(canonical).digest()).rstrip(b"=").decode("ascii")
