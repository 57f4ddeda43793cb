"""Log out everywhere: one's own sessions, and for staff those of others."""

from __future__ import annotations

from backoffice.auth.sessions import Sessions
from backoffice.web.messages import EVERYONE, STAFF, Answer, Call, Refused, Role
from backoffice.web.routing import Route
from domain.problems import Problem


class SessionRoutes:
    """The operations; one instance a process."""

    def __init__(self, sessions: Sessions) -> None:
        """Uses them, owns nothing."""
        self._sessions = sessions

    async def end_own(self, call: Call) -> Answer:
        """Every token of the caller ends, the one of this request included."""
        await self._sessions.end(call.who.user_id)
        return Answer(204)

    async def end(self, call: Call) -> Answer:
        """Every token of a user ends. Staff do it to buyers, administrators to anybody, whether there is an account or not."""
        user_id = call.path_id("user_id", Problem.USER_NOT_FOUND)
        role = await self._sessions.role_of(user_id)
        if call.who.role is not Role.ADMIN and role in STAFF:
            raise Refused(Problem.FORBIDDEN, "Sessions of staff are ended by administrators")
        await self._sessions.end(user_id)
        return Answer(204)


def routes(sessions: SessionRoutes) -> tuple[Route, ...]:
    """Operations of this part of the subject."""
    return (
        Route(
            "POST",
            "/v1/auth/logout-everywhere",
            sessions.end_own,
            "End all of the caller's sessions; access tokens count no more at once",
            "auth",
            roles=EVERYONE,
            status=204,
        ),
        Route(
            "POST",
            "/v1/users/{user_id}/logout",
            sessions.end,
            "End all sessions of a user; access tokens count no more at once",
            "auth",
            roles=STAFF,
            status=204,
            problems=(Problem.USER_NOT_FOUND,),
        ),
    )
