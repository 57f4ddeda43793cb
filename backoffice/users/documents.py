"""Requests and answers of this subject, and how an account is shown. Performs no I/O."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from backoffice.users.model import User
from backoffice.web.conditions import entity_tag
from backoffice.web.fields import Change, Email, Name, Page, Resource, Time
from backoffice.web.messages import Answer

RoleName = Literal["buyer", "staff", "admin"]


class UserView(Resource):
    """An account as its owner and staff see it."""

    id: UUID
    email: str
    name: str
    role: Annotated[RoleName, Field(description="The permissions of the account")]
    created_at: Time
    email_verified: Annotated[bool, Field(description="Whether a mailed link has proved the address")]


class UserList(Resource):
    """A page of accounts, newest first."""

    items: list[UserView]
    next_cursor: str | None


class OwnChange(Change):
    """A change of the caller's own account."""

    email: Email | None = None
    name: Name | None = None


class AccountChange(OwnChange):
    """A change of any account; only administrators may change the role."""

    role: RoleName | None = None


class UserQuery(Page):
    """Filters of the list."""

    email: str | None = Field(None, max_length=254, description="The whole address, in any case")
    role: RoleName | None = None


def view(user: User) -> UserView:
    """An account as shown."""
    return UserView.model_validate(user, from_attributes=True)


def answer(user: User) -> Answer:
    """An account with its version. Only the reader may cache the answer, and must revalidate it."""
    return Answer(200, view(user), {"etag": entity_tag(user.version), "cache-control": "private, no-cache"})
