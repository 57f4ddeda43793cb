"""Verification of buyers' tokens by PyJWT: the oracle of `hotpath.tokens`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import jwt
from jwt.utils import base64url_decode, base64url_encode

LEEWAY_S = 60
COMPACT = re.compile(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\Z", re.ASCII)


def verify(token: bytes, keys: Mapping[str, bytes], *, issuer: str, audience: str, role: str, now_s: int) -> Any:
    """(user id, exp), or 'invalid', or 'expired'."""
    claims = _claims(token, keys, issuer=issuer, audience=audience, role=role, now_s=now_s)
    if claims is None:
        return "invalid"
    return "expired" if claims["exp"] <= now_s else (UUID(claims["sub"]).bytes, claims["exp"])


def _claims(
    token: bytes, keys: Mapping[str, bytes], *, issuer: str, audience: str, role: str, now_s: int
) -> dict[str, Any] | None:
    try:
        text = token.decode("ascii")
        if len(text) > 4096 or not COMPACT.match(text) or not all(_is_canonical(part) for part in text.split(".")):
            return None
        header = jwt.get_unverified_header(text)
        if header.get("alg") != "HS256" or "crit" in header or not isinstance(header.get("kid"), str):
            return None
        claims: dict[str, Any] = jwt.decode(
            text,
            keys[header["kid"]],
            algorithms=["HS256"],
            issuer=issuer,
            audience=audience,
            options={
                "require": ["sub", "iss", "aud", "roles", "iat", "exp"],
                # Compared with `now_s` below, not with the clock.
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "verify_jti": False,
                "strict_aud": False,
            },
        )
    except (jwt.InvalidTokenError, KeyError, ValueError, TypeError, RecursionError):
        return None
    return claims if _are_good(claims, role, now_s) else None


def _are_good(claims: dict[str, Any], role: str, now_s: int) -> bool:
    times = [claims["iat"], claims["exp"], claims.get("nbf", 0)]
    if not all(type(time) is int and abs(time) < 2**62 for time in times):
        return False
    if claims["iat"] > now_s + LEEWAY_S or claims.get("nbf", 0) > now_s + LEEWAY_S:
        return False
    generation = claims.get("gen", 0)
    if type(generation) is not int or not 0 <= generation < 2**62:
        return False
    roles = claims["roles"]
    if not isinstance(roles, list) or not all(isinstance(r, str) for r in roles) or role not in roles:
        return False
    canonical = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z"
    return isinstance(claims["sub"], str) and re.match(canonical, claims["sub"], re.ASCII | re.IGNORECASE) is not None


def _is_canonical(part: str) -> bool:
    """Whether the text is the canonical spelling of its bytes; PyJWT accepts several."""
    return base64url_encode(base64url_decode(part)).decode() == part
