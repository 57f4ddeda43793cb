"""Verifies access tokens of outside issuers with their published keys.

Only `run` performs I/O, so a request never waits.
A signature is checked once per token: a bounded cache holds verified tokens by the hash of the whole token. Conditions
that change are checked each time: `exp`, ended sessions, and whether the key is still published. Only valid tokens
enter the cache, so invalid tokens cannot evict them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import jwt
from jwt.exceptions import PyJWTError

from domain import ids
from runtime.process.supervision import together
from runtime.tokens.jwks import IssuerKey, Jwks
from runtime.tokens.keys import LEEWAY_S, TOKEN_LENGTH_MAX
from runtime.tokens.outside_issuers import OutsideIssuer
from runtime.tokens.session_ends import SessionEnds

REMEMBERED_MAX: Final = 16_384  # about 600 bytes each
_REQUIRED = ["sub", "iss", "aud", "iat", "exp"]


class Fault(Enum):
    """The reason to reject a token."""

    INVALID = auto()
    EXPIRED = auto()
    ENDED = auto()  # issued before the sessions of the user ended
    UNAVAILABLE = auto()  # its key is unknown, and a fetch may bring it soon


@dataclass(frozen=True, slots=True)
class OutsideUser:
    """The user of a token, with the roles that the issuer's roles are mapped to."""

    user_id: UUID
    expires_at_s: int
    auth_time_s: int | None
    is_buyer: bool
    is_staff: bool
    is_admin: bool


@dataclass(frozen=True, slots=True)
class _Verified:
    user: OutsideUser
    jwks: Jwks
    kid: str
    key: IssuerKey
    issued_at_s: int
    not_before_s: int


class OutsideTokens:
    """All outside issuers of one process. `run` must run beside requests."""

    def __init__(
        self, issuers: Sequence[OutsideIssuer], ends: SessionEnds, *, remembered_max: int = REMEMBERED_MAX
    ) -> None:
        """Uses `ends`, owns nothing. Fetches nothing yet."""
        self._issuers = {issuer.iss: (issuer, Jwks(issuer)) for issuer in issuers}
        self._ends = ends
        self._remembered_max = remembered_max
        self._remembered: dict[bytes, _Verified] = {}  # in order of insertion
        self._jwt = jwt.PyJWT({"require": _REQUIRED, "verify_exp": False, "verify_iat": False, "verify_nbf": False})
        self.verified = 0  # valid signatures checked

    @property
    def keys(self) -> dict[str, int]:
        """Number of known keys by issuer."""
        return {iss: len(jwks.keys) for iss, (_, jwks) in self._issuers.items()}

    async def run(self) -> None:
        """Keep all key sets up to date until cancelled, also without issuers."""
        await together(idle=asyncio.Event().wait(), **{iss: jwks.run() for iss, (_, jwks) in self._issuers.items()})

    def verify(self, token: str, now_s: int) -> OutsideUser | Fault:
        """Verify a token (compact JWS). Performs no I/O; may request a fetch of a key set."""
        if len(token) > TOKEN_LENGTH_MAX or not token.isascii():
            return Fault.INVALID
        digest = hashlib.sha256(token.encode("ascii")).digest()
        found = self._remembered.get(digest)
        if found is not None and found.jwks.keys.get(found.kid) is not found.key:
            del self._remembered[digest]  # the key was withdrawn, or replaced under the same kid
            found = None
        if found is None:
            try:
                read = self._read(token)
            except (PyJWTError, ValueError, RecursionError):
                return Fault.INVALID
            if isinstance(read, Fault):
                return read
            found = read
        if found.user.expires_at_s <= now_s:
            self._remembered.pop(digest, None)
            return Fault.EXPIRED
        if found.issued_at_s > now_s + LEEWAY_S or found.not_before_s > now_s + LEEWAY_S:
            return Fault.INVALID
        if self._ends.is_ended(found.user.user_id.bytes, found.issued_at_s):
            return Fault.ENDED
        if digest not in self._remembered:
            if len(self._remembered) >= self._remembered_max:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[digest] = found
        return found.user

    def _read(self, token: str) -> _Verified | Fault:
        """Check the signature and the claims that do not change; raises for malformed or forged tokens."""
        parts = token.split(".")
        if len(parts) != 3:
            return Fault.INVALID
        header, unverified = _members(parts[0]), _members(parts[1])
        kid, algorithm, iss = header.get("kid"), header.get("alg"), unverified.get("iss")
        if not (isinstance(kid, str) and isinstance(algorithm, str) and isinstance(iss, str)) or "crit" in header:
            return Fault.INVALID
        issuer, jwks = self._issuers.get(iss, (None, None))
        if issuer is None or jwks is None or algorithm not in issuer.algorithms:
            return Fault.INVALID
        key = jwks.keys.get(kid)
        if key is None:
            return Fault.UNAVAILABLE if jwks.ask() else Fault.INVALID
        if key.algorithm != algorithm:
            return Fault.INVALID
        # The key determines the algorithm; the header of the token was only compared with it.
        claims = self._jwt.decode(token, key.public, algorithms=[key.algorithm], audience=issuer.aud, issuer=issuer.iss)
        self.verified += 1
        issued_at_s, expires_at_s = _seconds(claims["iat"]), _seconds(claims["exp"])
        user_id = _user_id(claims["sub"], issuer)
        if user_id is None or not 0 < expires_at_s - issued_at_s <= issuer.token_s_max:
            return Fault.INVALID
        logged_in_s = _seconds(claims["auth_time"]) if "auth_time" in claims else None
        user = _user(user_id, expires_at_s, logged_in_s, _roles(claims, issuer.roles_claim), issuer)
        return _Verified(user, jwks, kid, key, issued_at_s, _seconds(claims.get("nbf", 0)))


def derived_user_id(iss: str, sub: str) -> UUID:
    """The user id for a subject: UUIDv5 of `sub` in the namespace UUIDv5 of `iss` (RFC 9562, section 5.5)."""
    return uuid5(uuid5(NAMESPACE_URL, iss), sub)


def _members(part: str) -> dict[str, Any]:
    try:
        members = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if not isinstance(members, dict):
        raise ValueError("not an object")
    return members


def _seconds(value: Any) -> int:
    """A NumericDate (RFC 7519, section 2), rounded down; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        raise ValueError("not a NumericDate")
    return int(value)


def _user_id(sub: Any, issuer: OutsideIssuer) -> UUID | None:
    if not isinstance(sub, str) or not 1 <= len(sub) <= 255:
        return None
    return ids.parse_uuid(sub) if issuer.subjects == "uuid" else derived_user_id(issuer.iss, sub)


def _roles(claims: dict[str, Any], claim: str) -> frozenset[str]:
    value: Any = claims.get(claim)
    if value is None:
        value = claims
        for member in claim.split("."):
            value = value.get(member) if isinstance(value, dict) else None
    if isinstance(value, str):
        return frozenset(value.split())  # the format of `scope`
    return frozenset(role for role in value if isinstance(role, str)) if isinstance(value, list) else frozenset()


def _user(
    user_id: UUID, expires_at_s: int, auth_time_s: int | None, roles: frozenset[str], issuer: OutsideIssuer
) -> OutsideUser:
    return OutsideUser(
        user_id,
        expires_at_s,
        auth_time_s,
        is_buyer=not issuer.buyer_roles or not roles.isdisjoint(issuer.buyer_roles),
        is_staff=not roles.isdisjoint(issuer.staff_roles),
        is_admin=not roles.isdisjoint(issuer.admin_roles),
    )
