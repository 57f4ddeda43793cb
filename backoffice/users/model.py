"""Accounts and changes of accounts as values, and their form in the cache. Performs no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import orjson

from backoffice.caching.cache import Codec
from backoffice.web.messages import Role


@dataclass(frozen=True, slots=True)
class User:
    """An account without its password hash. Name and address are not in `repr`, so that they do not get into a log."""

    id: UUID
    email: str = field(repr=False)
    name: str = field(repr=False)
    role: str
    version: int
    created_at: datetime
    email_verified: bool
    """Whether a mailed token has proved the present address."""


@dataclass(frozen=True, slots=True)
class Account(User):
    """An account for the login. Must not leave the process, nor get into a cache."""

    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """New values of members; None keeps the old value."""

    email: str | None = None
    name: str | None = None
    role: Role | None = None

    def differs_from(self, user: User) -> bool:
        """Whether the change would change anything."""
        pairs = ((self.email, user.email), (self.name, user.name), (self.role, user.role))
        return any(new is not None and new != old for new, old in pairs)


def fold_email(email: str) -> str:
    """The form in which addresses are compared. Addresses are ASCII, so lower case is enough."""
    return email.lower()


def _encode(user: User) -> bytes:
    assert type(user) is User, "a password hash must not get into the cache"
    return orjson.dumps(user)


def _decode(content: bytes) -> User:
    fields = orjson.loads(content)
    created_at = datetime.fromisoformat(fields["created_at"])
    return User(**{**fields, "id": UUID(fields["id"]), "created_at": created_at})


USER_CODEC: Codec[User] = Codec(_encode, _decode, schema=2)
