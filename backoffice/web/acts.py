"""Requests as acts of the audit log: who is acting, which refusals are noted, about which object. Performs no I/O."""

from __future__ import annotations

import re
import secrets
from functools import cache
from http import HTTPStatus
from typing import Final, Protocol

from backoffice.web.messages import Caller
from domain.ids import parse_uuid
from domain.problems import Problem
from runtime.audit import ANONYMOUS, UNKNOWN_OBJECT, Act, Action, object_name

REQUEST_ID_HEADER: Final = "x-request-id"
# Not noted: malformed input, overload, and tokens that are merely old, as each client's are after 15 minutes.
_NOTED_STATUSES: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.CONFLICT,
        HTTPStatus.PRECONDITION_FAILED,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
_OF_OLD_TOKENS: Final = frozenset({Problem.TOKEN_MISSING, Problem.TOKEN_EXPIRED})
_PARAMETER: Final = re.compile(r"\{[a-z_]+\}")
_ID: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)


class Recorder(Protocol):
    """Takes the acts of requests for the audit log."""

    def refused(self, act: Act, action: Action, object_: str, outcome: str) -> None:
        """A request was refused with the code `outcome`."""
        ...

    def answered(self, act: Act) -> None:
        """A request was answered, with any outcome. The entries in `act.recorded` are committed."""
        ...


def new_act(client: str, caller: Caller | None = None) -> Act:
    """The act of a new request."""
    actor = ANONYMOUS if caller is None else str(caller.user_id)
    return Act(actor, client=client, request_id=secrets.token_hex(8))


def is_noted(problem: Problem) -> bool:
    """Whether a refusal with this problem belongs into the audit log."""
    return problem.status in _NOTED_STATUSES and problem not in _OF_OLD_TOKENS


def object_of(action: Action, route_path: str, path: str, actor: str) -> str:
    """The object of a request: the id in its path, else the caller's account for an action on accounts."""
    kind = action.partition(".")[0]
    found = _expression(route_path).fullmatch(path)
    if found is not None and found.groups():
        if not _ID.fullmatch(found[1]):
            return UNKNOWN_OBJECT
        return object_name(kind, parse_uuid(found[1]) or found[1])  # of one form, which filters find
    return object_name(kind, actor) if kind == "user" and actor != ANONYMOUS else UNKNOWN_OBJECT


@cache
def _expression(route_path: str) -> re.Pattern[str]:
    return re.compile(_PARAMETER.sub("([^/]+)", route_path.replace(".", r"\.")))
