"""The caller's own account."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from backoffice.users.store import User, Users
from backoffice.web.fields import Resource, Time
from backoffice.web.messages import EVERYONE, Answer, Call, Refused
from backoffice.web.routing import Route
from domain.problems import Problem


class UserView(Resource):
    """An account as its owner and staff see it."""

    id: UUID
    email: str
    name: str
    role: Annotated[Literal["buyer", "staff", "admin"], Field(description="What the account may do")]
    created_at: Time


def view(user: User) -> UserView:
    """What is shown of a row."""
    return UserView.model_validate(user, from_attributes=True)


def routes(users: Users) -> tuple[Route, ...]:
    """Operations on accounts."""

    async def me(call: Call) -> Answer:
        user = await users.get(call.who.user_id)
        if user is None:
            # A synthetic buyer, or an account that was removed while its token lives.
            raise Refused(Problem.USER_NOT_FOUND)
        return Answer(body=view(user))

    return (
        Route(
            "GET",
            "/v1/users/me",
            me,
            "The caller's own account",
            "users",
            roles=EVERYONE,
            answers=UserView,
            problems=(Problem.USER_NOT_FOUND,),
        ),
    )
