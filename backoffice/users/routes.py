"""Accounts over HTTP: the caller's own, and all accounts for staff."""

from __future__ import annotations

from uuid import UUID

from backoffice.users.documents import AccountChange, OwnChange, UserList, UserQuery, UserView, answer, view
from backoffice.users.model import Change
from backoffice.users.service import UserService
from backoffice.web.conditions import expected_versions, is_known
from backoffice.web.fields import decode_cursor, encode_cursor
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call, Role
from backoffice.web.routing import Route
from domain.problems import Problem
from runtime.audit import Action

_KIND = "users"


class UserRoutes:
    """The operations."""

    def __init__(self, service: UserService) -> None:
        """Uses the service, owns nothing."""
        self._service = service

    async def me(self, call: Call) -> Answer:
        """The caller's own account. 404 for a synthetic buyer, and for an account erased while its token is valid."""
        return await self._show(call, call.who.user_id)

    async def get(self, call: Call) -> Answer:
        """One account."""
        return await self._show(call, _user_id(call))

    async def page(self, call: Call, query: UserQuery) -> Answer:
        """Accounts of all shards, newest first."""
        found = await self._service.page(
            email=query.email,
            role=_role(query.role),
            before=decode_cursor(_KIND, query.cursor),
            limit=query.limit + 1,
            reader=call.who.user_id,
        )
        shown = found[: query.limit]
        next_cursor = encode_cursor(_KIND, shown[-1].id) if len(found) > query.limit else None
        return Answer(body=UserList(items=[view(user) for user in shown], next_cursor=next_cursor))

    async def change_own(self, call: Call, body: OwnChange) -> Answer:
        """Change the caller's own account."""
        change = Change(email=body.email, name=body.name)
        return answer(await self._service.change_own(call.who, call.client, change, expected_versions(call)))

    async def change(self, call: Call, body: AccountChange) -> Answer:
        """Change an account."""
        change = Change(email=body.email, name=body.name, role=_role(body.role))
        return answer(await self._service.change(call.who, _user_id(call), change, expected_versions(call)))

    async def erase_own(self, call: Call) -> Answer:
        """Erase the caller's own account."""
        await self._service.erase(call.who, call.who.user_id, expected_versions(call))
        return Answer(204)

    async def erase(self, call: Call) -> Answer:
        """Erase an account."""
        await self._service.erase(call.who, _user_id(call), expected_versions(call))
        return Answer(204)

    async def _show(self, call: Call, user_id: UUID) -> Answer:
        user = await self._service.get(user_id)
        shown = answer(user)
        return Answer(304, None, shown.headers) if is_known(call, user.version) else shown


def _user_id(call: Call) -> UUID:
    return call.path_id("user_id", Problem.USER_NOT_FOUND)


def _role(name: str | None) -> Role | None:
    return None if name is None else Role(name)


def routes(users: UserRoutes) -> tuple[Route, ...]:
    """Operations of this subject."""
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
            action=Action.USER_CHANGE,
        ),
        Route(
            "DELETE",
            me,
            users.erase_own,
            "Erase the caller's own account and all personal data; orders stay without a name",
            "users",
            roles=EVERYONE,
            status=204,
            problems=conditional,
            headers=("If-Match",),
            action=Action.USER_ERASE,
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
            "Change an account: name and address of a buyer; any member of any account for administrators",
            "users",
            roles=STAFF,
            body=AccountChange,
            answers=UserView,
            problems=(*conditional, Problem.EMAIL_TAKEN),
            headers=("If-Match",),
            action=Action.USER_CHANGE,
        ),
        Route(
            "DELETE",
            one,
            users.erase,
            "Erase an account and all personal data: of a buyer; any account for administrators",
            "users",
            roles=STAFF,
            status=204,
            problems=conditional,
            headers=("If-Match",),
            action=Action.USER_ERASE,
        ),
    )
