"""Access tokens at the backoffice: which are accepted, and what they say. Mints through `runtime.token_keys`.

Two kinds and nothing else: EdDSA for `aud=backoffice` with role staff or admin, HS256 for `aud=edge` with role buyer. The
algorithm is a matter of the key, never of the token: HS256 keys also lie on edges and must not make staff.
"""

from __future__ import annotations

from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from backoffice.web.messages import Caller, Refused, Role
from domain import ids
from domain.problems import Problem
from runtime.token_keys import BUYER_AUDIENCE, STAFF_AUDIENCE, StaffKey, TokenKeys

TOKEN_LENGTH_MAX = 4096
_REQUIRED = ["sub", "iss", "aud", "iat", "exp"]


class TokenVerifier:
    """Turns an `Authorization` header into a caller."""

    def __init__(self, *, buyer_keys: TokenKeys, staff_keys: tuple[StaffKey, ...], issuer: str) -> None:
        """`staff_keys` are all whose tokens are still accepted, the newest first."""
        self._buyer = dict(buyer_keys.keys)
        self._staff: dict[str, Ed25519PublicKey] = {key.kid: key.public for key in staff_keys}
        self._issuer = issuer
        self._jwt = jwt.PyJWT({"require": _REQUIRED, "enforce_minimum_key_length": True})

    def __call__(self, authorization: str | None) -> Caller:
        """The caller; Refused with `token_missing`, `token_expired` or `token_invalid`."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Refused(Problem.TOKEN_MISSING)
        if len(token) > TOKEN_LENGTH_MAX:
            raise Refused(Problem.TOKEN_INVALID)
        try:
            return self._verify(token)
        except jwt.ExpiredSignatureError as error:
            raise Refused(Problem.TOKEN_EXPIRED) from error
        except jwt.PyJWTError as error:
            raise Refused(Problem.TOKEN_INVALID) from error

    def _verify(self, token: str) -> Caller:
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        key: bytes | Ed25519PublicKey
        admitted: tuple[Role, ...]
        if algorithm == "EdDSA" and kid in self._staff:
            key, audience, admitted = self._staff[kid], STAFF_AUDIENCE, (Role.STAFF, Role.ADMIN)
        elif algorithm == "HS256" and kid in self._buyer:
            key, audience, admitted = self._buyer[kid], BUYER_AUDIENCE, (Role.BUYER,)
        else:
            raise jwt.InvalidTokenError("unknown key")
        claims = self._jwt.decode(token, key, algorithms=[algorithm], audience=audience, issuer=self._issuer)
        return _caller(claims, audience, admitted)


def _caller(claims: dict[str, Any], audience: str, admitted: tuple[Role, ...]) -> Caller:
    user_id = ids.parse_uuid(claims["sub"])
    roles = claims.get("roles")
    if user_id is None or claims["aud"] != audience or not isinstance(roles, list) or len(roles) != 1:
        raise jwt.InvalidTokenError("claims")
    for role in admitted:
        if roles[0] == role.value:
            return Caller(user_id, role, int(claims["exp"]))
    raise jwt.InvalidTokenError("roles")
