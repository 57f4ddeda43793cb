"""Issuers of access tokens other than this platform, as configured. Performs no I/O."""

from __future__ import annotations

from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from runtime.tokens.session_ends import TOKEN_S_MAX

ISSUERS_MAX: Final = 8
Algorithm = Literal["EdDSA", "ES256", "RS256"]
_Text = Annotated[str, Field(min_length=1, max_length=255)]
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class OutsideIssuer(BaseModel):
    """One issuer whose tokens are accepted. Nobody is staff unless `staff_roles` or `admin_roles` say so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iss: _Text
    aud: _Text
    jwks_url: str
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("EdDSA", "ES256", "RS256")
    roles_claim: _Text = "roles"  # a member, or a path of members with dots between
    buyer_roles: tuple[_Text, ...] = ()  # none: everybody with a good token buys
    staff_roles: tuple[_Text, ...] = ()
    admin_roles: tuple[_Text, ...] = ()
    subjects: Literal["derived", "uuid"] = (
        "derived"  # user id: UUIDv5 of (iss, sub), or `sub` itself, which is then a UUID
    )
    token_s_max: Annotated[int, Field(ge=60, le=TOKEN_S_MAX)] = 3600  # tokens that live longer are refused

    @field_validator("jwks_url")
    @classmethod
    def _protected(cls, url: str) -> str:
        parts = urlsplit(url)
        if not parts.hostname or parts.username is not None or parts.fragment:
            raise ValueError("not the URL of a JWK set")
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("keys are fetched by https, or by http from this machine")
        return url


def check_issuers(issuers: tuple[OutsideIssuer, ...]) -> tuple[OutsideIssuer, ...]:
    """ValueError when there are too many, or one twice."""
    if len(issuers) > ISSUERS_MAX:
        raise ValueError(f"at most {ISSUERS_MAX} issuers")
    if len({issuer.iss for issuer in issuers}) != len(issuers):
        raise ValueError("an issuer is there twice")
    return issuers
