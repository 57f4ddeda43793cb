"""Accounts over HTTP: the caller's own, and for staff everybody's."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from backoffice.auth.limits import ADDRESS_ACCOUNT, MAIL_ADDRESS, MAIL_CLIENT, Attempts
from backoffice.users import store
from backoffice.users.service import UserService
from backoffice.users.store import User, Users, fold_email
from backoffice.web.conditions import entity_tag, expected_versions, is_known
from backoffice.web.fields import Change, Email, Name, Page, Resource, Time, decode_cursor, encode_cursor
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call, Refused, Role
from backoffice.web.routing import Route
from domain.problems import Problem

_KIND = "users"
RoleName = Literal["buyer", "staff", "admin"]


class UserView(Resource):
    """An account as its owner and staff see it."""

    id: UUID
    email: str
    name: str
    role: Annotated[RoleName, Field(description="What the account may do")]
    created_at: Time


class UserList(Resource):
    """A page of accounts, newest first."""

    items: list[UserView]
    next_cursor: str | None


class OwnChange(Change):
    """What people change about themselves."""

    email: Email | None = None
    name: Name | None = None


class AccountChange(OwnChange):
    """What staff change; the role is for administrators to give."""

    role: RoleName | None = None


class UserQuery(Page):
    """Which accounts."""

    email: str | None = Field(None, max_length=254, description="The whole address, in any case")
    role: RoleName | None = None


def view(user: User) -> UserView:
    """What is shown of a row."""
    return UserView.model_validate(user, from_attributes=True)


def _answer(user: User) -> Answer:
    # Nobody but its reader may keep it, and the reader must ask whether it is still the same.
    return Answer(200, view(user), {"etag": entity_tag(user.version), "cache-control": "private, no-cache"})


class UserRoutes:
    """The operations."""

    def __init__(self, users: Users, service: UserService, attempts: Attempts) -> None:
        """Uses them, owns nothing."""
        self._users = users
        self._attempts = attempts
        self._service = service

    async def me(self, call: Call) -> Answer:
        """The caller's own account; a synthetic buyer has none, nor has one that was erased while its token lives."""
        return await self._show(call, call.who.user_id)

    async def get(self, call: Call) -> Answer:
        """One account."""
        return await self._show(call, _user_id(call))

    async def page(self, call: Call, query: UserQuery) -> Answer:
        """Accounts of all shards, newest first."""
        before = decode_cursor(_KIND, query.cursor)
        role = None if query.role is None else Role(query.role)
        if query.email is not None:
            found = [user for user in await self._of_address(query.email) if role in (None, user.role)]
            found = [user for user in found if before is None or user.id < before]
        else:
            found = await self._users.page(role=role, before=before, limit=query.limit + 1, reader=call.who.user_id)
        shown = found[: query.limit]
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=UserList(items=[view(user) for user in shown], next_cursor=next_cursor))

    async def change_own(self, call: Call, body: OwnChange) -> Answer:
        """Change the caller's own account. Another address is told whether it is in use and gets a mail: that is limited."""
        if body.email is not None and await self._moves(call.who.user_id, body.email):
            await self._attempts.spend(
                (ADDRESS_ACCOUNT, str(call.who.user_id)),
                (MAIL_ADDRESS, fold_email(body.email)),
                (MAIL_CLIENT, call.client),
            )
        change = store.Change(email=body.email, name=body.name)
        return _answer(await self._service.change(call.who, call.who.user_id, change, expected_versions(call)))

    async def change(self, call: Call, body: AccountChange) -> Answer:
        """Change an account."""
        role = None if body.role is None else Role(body.role)
        change = store.Change(email=body.email, name=body.name, role=role)
        return _answer(await self._service.change(call.who, _user_id(call), change, expected_versions(call)))

    async def erase_own(self, call: Call) -> Answer:
        """Erase the caller's own account."""
        await self._service.erase(call.who, call.who.user_id, expected_versions(call))
        return Answer(204)

    async def erase(self, call: Call) -> Answer:
        """Erase an account."""
        await self._service.erase(call.who, _user_id(call), expected_versions(call))
        return Answer(204)

    async def _show(self, call: Call, user_id: UUID) -> Answer:
        user = await self._users.get(user_id)
        if user is None:
            raise Refused(Problem.USER_NOT_FOUND)
        answer = _answer(user)
        return Answer(304, None, answer.headers) if is_known(call, user.version) else answer

    async def _moves(self, user_id: UUID, email: str) -> bool:
        user = await self._users.get(user_id)
        return user is not None and fold_email(user.email) != fold_email(email)

    async def _of_address(self, email: str) -> list[User]:
        # What cannot be an address is nobody's: not asked for, since PostgreSQL refuses NUL.
        user = await self._users.find(email) if email.isascii() and email.isprintable() else None
        return [] if user is None else [user]


def _user_id(call: Call) -> UUID:
    return call.path_id("user_id", Problem.USER_NOT_FOUND)


def routes(users: UserRoutes) -> tuple[Route, ...]:
    """Operations on accounts."""
    me, one = "/v1/users/me", "/v1/users/{user_id}"
    missing = (Problem.USER_NOT_FOUND,)
    conditional = (*missing, Problem.PRECONDITION_FAILED)
    return (
        Route(
            "GET",
            me,
            users.me,
            "Read the caller's own account",
            "users",
            roles=EVERYONE,
            answers=UserView,
            problems=missing,
            headers=("If-None-Match",),
        ),
        Route(
            "PATCH",
            me,
            users.change_own,
            "Change the caller's own name or address",
            "users",
            roles=EVERYONE,
            body=OwnChange,
            answers=UserView,
            problems=(*conditional, Problem.EMAIL_TAKEN, Problem.RATE_LIMITED),
            headers=("If-Match",),
        ),
        Route(
            "DELETE",
            me,
            users.erase_own,
            "Erase the caller's own account and all of the person; orders stay without a name",
            "users",
            roles=EVERYONE,
            status=204,
            problems=conditional,
            headers=("If-Match",),
        ),
        Route("GET", "/v1/users", users.page, "List accounts", "users", roles=STAFF, query=UserQuery, answers=UserList),
        Route(
            "GET",
            one,
            users.get,
            "Read an account",
            "users",
            roles=STAFF,
            answers=UserView,
            problems=missing,
            headers=("If-None-Match",),
        ),
        Route(
            "PATCH",
            one,
            users.change,
            "Change an account: name and address of a buyer; anything of anybody for administrators",
            "users",
            roles=STAFF,
            body=AccountChange,
            answers=UserView,
            problems=(*conditional, Problem.EMAIL_TAKEN),
            headers=("If-Match",),
        ),
        Route(
            "DELETE",
            one,
            users.erase,
            "Erase an account and all of the person: a buyer's; anybody's for administrators",
            "users",
            roles=STAFF,
            status=204,
            problems=conditional,
            headers=("If-Match",),
        ),
    )
