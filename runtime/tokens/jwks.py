"""The keys of one outside issuer: its JWK set (RFC 7517), fetched beside requests and kept while the issuer is away.

Fetched every `REFRESH_S`, and earlier when a token names an unknown key, but at most every `COOLDOWN_S`. Bounded in
time, bytes and keys. Redirects are not followed. A failed fetch keeps the known keys.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.exceptions import PyJWTError

from runtime.tokens.outside_issuers import OutsideIssuer

REFRESH_S: Final = 300.0
COOLDOWN_S: Final = 5.0
FETCH_S_MAX: Final = 5.0
DOCUMENT_BYTES_MAX: Final = 64 * 1024
KEYS_MAX: Final = 32
RSA_BITS: Final = range(2048, 8193)  # shorter is unsafe, longer is slow

_log = structlog.get_logger(__name__)


class JwksUnusable(Exception):
    """The answer of the issuer is not a usable JWK set; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key and its algorithm. `source` is its JWK."""

    algorithm: str
    public: Any
    source: Mapping[str, Any] = field(repr=False)


class Jwks:
    """`keys` by kid; `run` keeps them up to date."""

    def __init__(self, issuer: OutsideIssuer) -> None:
        """Has no keys before the first fetch."""
        self._issuer = issuer
        self.keys: Mapping[str, IssuerKey] = {}
        self.failing = True  # no fetch yet, or the last one failed
        self._asked = asyncio.Event()
        self._fetching = False
        self._begun_at = -COOLDOWN_S

    def ask(self) -> bool:
        """Request a fetch for an unknown key.

        False when the set was just read without it, so that no fetch will help.
        """
        cool = time.monotonic() - self._begun_at >= COOLDOWN_S
        if cool:
            self._asked.set()
        return cool or self._fetching or self.failing

    async def run(self) -> None:
        """Fetch until cancelled."""
        while True:
            self._asked.clear()
            await self.refresh()
            await asyncio.sleep(COOLDOWN_S)
            try:
                async with asyncio.timeout(0 if self.failing else REFRESH_S - COOLDOWN_S):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def refresh(self) -> None:
        """Fetch once; the known keys stay after a failure."""
        self._begun_at = time.monotonic()
        self._fetching = True
        try:
            content = await asyncio.to_thread(_fetch, self._issuer.jwks_url)
            keys = parse(content, self._issuer)
        except (OSError, http.client.HTTPException, ValueError, JwksUnusable) as error:
            # Log only the first of consecutive failures.
            if not self.failing or not self.keys:
                _log.warning("jwks_not_fetched", issuer=self._issuer.iss, error=str(error) or type(error).__name__)
            self.failing = True
        else:
            # Keep the object of an unchanged key: the cache of verified tokens compares keys by identity.
            known = self.keys
            self.keys = {kid: known[kid] if known.get(kid) == key else key for kid, key in keys.items()}
            if self.failing or keys.keys() != known.keys():
                _log.info("jwks_fetched", issuer=self._issuer.iss, kids=sorted(keys))
            self.failing = False
        finally:
            self._fetching = False


def parse(content: bytes, issuer: OutsideIssuer) -> dict[str, IssuerKey]:
    """The usable keys of a JWK set, without the others. JwksUnusable for content that is not a JWK set."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise JwksUnusable("not JSON") from error
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise JwksUnusable("not a JWK set")
    if len(members) > KEYS_MAX:
        raise JwksUnusable(f"more than {KEYS_MAX} keys")
    keys: dict[str, IssuerKey] = {}
    for member in members:
        kid = member.get("kid") if isinstance(member, dict) else None
        if not isinstance(kid, str) or not 1 <= len(kid) <= 255 or kid in keys:
            continue
        key = _parse_key(member, issuer)
        if key is not None:
            keys[kid] = key
    return keys


def _parse_key(member: dict[str, Any], issuer: OutsideIssuer) -> IssuerKey | None:
    """The key, or None for other types, algorithms and uses. The type of the key determines the algorithm."""
    match member.get("kty"), member.get("crv"):
        case "OKP", "Ed25519":
            algorithm = "EdDSA"
        case "EC", "P-256":
            algorithm = "ES256"
        case "RSA", None:
            algorithm = "RS256"
        case _:
            return None
    if algorithm not in issuer.algorithms or member.get("alg", algorithm) != algorithm:
        return None
    operations = member.get("key_ops", ["verify"])
    if member.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    public = {name: value for name, value in member.items() if name in ("kty", "crv", "x", "y", "n", "e")}
    try:
        key = jwt.PyJWK(public, algorithm).key
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size not in RSA_BITS:
        return None
    return IssuerKey(algorithm, key, public)


def _fetch(url: str) -> bytes:
    """One GET, for a worker thread. Ends within the bounds, whatever the server sends."""
    deadline = time.monotonic() + FETCH_S_MAX
    parts = urlsplit(url)
    assert parts.hostname is not None, "the settings were validated"
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=FETCH_S_MAX, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=FETCH_S_MAX)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "application/jwk-set+json, application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise JwksUnusable(f"status {answer.status} instead of 200")
        content = b""
        while len(content) <= DOCUMENT_BYTES_MAX:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no complete answer within {FETCH_S_MAX:g} s")
            part = answer.read1(DOCUMENT_BYTES_MAX)
            if not part:
                if answer.length:
                    raise JwksUnusable("the body is incomplete")
                return content
            content += part
        raise JwksUnusable(f"more than {DOCUMENT_BYTES_MAX} bytes")
    finally:
        connection.close()
