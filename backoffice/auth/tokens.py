"""Access tokens at the backoffice: verifies them, and mints them with `runtime.tokens.keys`.

Our own tokens are of two kinds: EdDSA for `aud=backoffice` with role staff or admin, HS256 for `aud=edge` with role
buyer. The key determines the algorithm, never the token: edges also hold the HS256 keys, which must not make staff
tokens. `runtime.tokens.outside_tokens` verifies tokens that are not signed with one of our keys.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from backoffice.auth.documents import Tokens
from backoffice.auth.refresh import Login
from backoffice.web.messages import Caller, Refused, Role
from domain import ids
from domain.problems import Problem
from runtime.tokens.key_watch import KeyWatch
from runtime.tokens.keys import (
    BUYER_AUDIENCE,
    LEEWAY_S,
    STAFF_AUDIENCE,
    TOKEN_LENGTH_MAX,
    StaffKeys,
    TokenKeys,
    mint_buyer_token,
    mint_staff_token,
)
from runtime.tokens.outside_tokens import Fault, OutsideTokens
from runtime.tokens.session_ends import SessionEnds

_ENDED: Final = "The session was ended; log in again"
_REQUIRED = ["sub", "iss", "aud", "iat", "exp"]


@dataclass(frozen=True, slots=True)
class Minter:
    """Mints access tokens of both kinds with the current keys."""

    buyer_keys: KeyWatch[TokenKeys]
    staff_keys: KeyWatch[StaffKeys]
    issuer: str
    ttl_s: int

    def tokens(self, login: Login) -> Tokens:
        """The answer to a login or a refresh."""
        return Tokens(access_token=self._access_token(login), refresh_token=login.refresh_token, expires_in=self.ttl_s)

    def _access_token(self, login: Login) -> str:
        user_id, claims, issuer, ttl_s = login.user_id, login.claims, self.issuer, self.ttl_s
        if login.role is Role.BUYER:
            return mint_buyer_token(self.buyer_keys.current, user_id=user_id, issuer=issuer, ttl_s=ttl_s, login=claims)
        key, role = self.staff_keys.current.signing, login.role.value
        return mint_staff_token(key, user_id=user_id, role=role, issuer=issuer, ttl_s=ttl_s, login=claims)


class _NotOurs(Exception):
    """The token names none of our keys, or a key of another algorithm."""


class TokenVerifier:
    """Verifies an `Authorization` header; see `web.routing.Authenticate`."""

    def __init__(
        self,
        *,
        buyer_keys: KeyWatch[TokenKeys],
        staff_keys: KeyWatch[StaffKeys],
        issuer: str,
        ends: SessionEnds,
        outside: OutsideTokens,
    ) -> None:
        """Reads the current keys and `ends` for each token."""
        self._outside = outside
        self._buyer_keys = buyer_keys
        self._staff_keys = staff_keys
        self._issuer = issuer
        self._ends = ends
        self._jwt = jwt.PyJWT({"require": _REQUIRED, "verify_iat": False, "enforce_minimum_key_length": True})

    def __call__(self, authorization: str | None) -> Caller:
        """The caller; Refused(`token_missing`, `token_expired` or `token_invalid`).

        Refused(`dependency_unavailable`) while ended sessions, or the keys of an outside issuer, are not read yet.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refused(Problem.TOKEN_MISSING)
        if len(token) > TOKEN_LENGTH_MAX:
            raise Refused(Problem.TOKEN_INVALID)
        if not self._ends.loaded:  # shortly after the start
            raise Refused(Problem.DEPENDENCY_UNAVAILABLE, retry_after_s=1)
        try:
            claims, audience, admitted = self._verify(token)
            caller = _caller(claims, audience, admitted)
        except _NotOurs:
            return self._outsider(token)
        except jwt.ExpiredSignatureError as error:
            raise Refused(Problem.TOKEN_EXPIRED) from error
        except jwt.PyJWTError as error:
            raise Refused(Problem.TOKEN_INVALID) from error
        if self._ends.is_ended(caller.user_id.bytes, claims["iat"], _number(claims, "gen")):
            raise Refused(Problem.TOKEN_INVALID, _ENDED)
        return caller

    def _outsider(self, token: str) -> Caller:
        found = self._outside.verify(token, int(time.time()))
        if found is Fault.UNAVAILABLE:
            raise Refused(Problem.DEPENDENCY_UNAVAILABLE, retry_after_s=1)
        if found is Fault.EXPIRED:
            raise Refused(Problem.TOKEN_EXPIRED)
        if isinstance(found, Fault):
            raise Refused(Problem.TOKEN_INVALID, _ENDED if found is Fault.ENDED else "")
        for role, has in ((Role.ADMIN, found.is_admin), (Role.STAFF, found.is_staff), (Role.BUYER, found.is_buyer)):
            if has:
                return Caller(found.user_id, role, found.expires_at_s, found.auth_time_s)
        raise Refused(Problem.TOKEN_INVALID)

    def _verify(self, token: str) -> tuple[dict[str, Any], str, tuple[Role, ...]]:
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        staff, buyer = self._staff_keys.current.keys, self._buyer_keys.current.keys
        key: bytes | Ed25519PublicKey
        admitted: tuple[Role, ...]
        if kid is None:
            raise _NotOurs
        if algorithm == "EdDSA" and kid in staff:
            key, audience, admitted = staff[kid].public, STAFF_AUDIENCE, (Role.STAFF, Role.ADMIN)
        elif algorithm == "HS256" and kid in buyer:
            key, audience, admitted = buyer[kid], BUYER_AUDIENCE, (Role.BUYER,)
        else:
            raise _NotOurs
        claims = self._jwt.decode(token, key, algorithms=[algorithm], audience=audience, issuer=self._issuer)
        if type(claims["iat"]) is not int or claims["iat"] > time.time() + LEEWAY_S:
            raise jwt.ImmatureSignatureError("issued in the future")
        return claims, audience, admitted


def _caller(claims: dict[str, Any], audience: str, admitted: tuple[Role, ...]) -> Caller:
    user_id = ids.parse_uuid(claims["sub"])
    roles = claims.get("roles")
    if user_id is None or claims["aud"] != audience or not isinstance(roles, list) or len(roles) != 1:
        raise jwt.InvalidTokenError("claims")
    for role in admitted:
        if roles[0] == role.value:
            return Caller(user_id, role, int(claims["exp"]), _number(claims, "auth_time"))
    raise jwt.InvalidTokenError("roles")


def _number(claims: dict[str, Any], name: str) -> int | None:
    """A claim that may be absent; InvalidTokenError for anything but a natural number."""
    value = claims.get(name)
    if name in claims and (type(value) is not int or value < 0):
        raise jwt.InvalidTokenError(name)
    return value
