"""Configuration of outside issuers of access tokens. Performs no I/O."""

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
    """One issuer whose tokens are accepted.

    Only `staff_roles` and `admin_roles` make staff; both are empty by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    iss: _Text
    aud: _Text
    jwks_url: str
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("EdDSA", "ES256", "RS256")
    roles_claim: _Text = "roles"  # a claim, or a path of members separated by dots
    buyer_roles: tuple[_Text, ...] = ()  # empty: every valid token may buy
    staff_roles: tuple[_Text, ...] = ()
    admin_roles: tuple[_Text, ...] = ()
    # The user id: UUIDv5 of (iss, sub), or `sub` itself, which must be a UUID.
    subjects: Literal["derived", "uuid"] = "derived"
    token_s_max: Annotated[int, Field(ge=60, le=TOKEN_S_MAX)] = 3600  # tokens with a longer lifetime are rejected

    @field_validator("jwks_url")
    @classmethod
    def _protected(cls, url: str) -> str:
        parts = urlsplit(url)
        if not parts.hostname or parts.username is not None or parts.fragment:
            raise ValueError("must be the URL of a JWK set, without user and fragment")
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("must use https; http is allowed only for this machine")
        return url


def check_issuers(issuers: tuple[OutsideIssuer, ...]) -> tuple[OutsideIssuer, ...]:
    """ValueError when there are too many issuers, or duplicates."""
    if len(issuers) > ISSUERS_MAX:
        raise ValueError(f"must be at most {ISSUERS_MAX} issuers")
    if len({issuer.iss for issuer in issuers}) != len(issuers):
        raise ValueError("must not contain the same issuer twice")
    return issuers
