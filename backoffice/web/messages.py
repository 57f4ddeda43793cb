"""Input and output of handlers: a call, an answer, a refusal. Performs no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from pydantic import BaseModel

from domain import ids, problems
from domain.problems import PROBLEM_JSON as PROBLEM_JSON
from domain.problems import FieldError, Problem, ProblemDetails, RatePolicy

JSON = "application/json"
_EVERY_ANSWER = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


class Role(StrEnum):
    """The role of a caller."""

    BUYER = "buyer"
    STAFF = "staff"
    ADMIN = "admin"


STAFF = frozenset({Role.STAFF, Role.ADMIN})
EVERYONE = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Caller:
    """The subject of a verified token. Times are Unix seconds: `exp`, and `auth_time`, which a token may lack."""

    user_id: UUID
    role: Role
    expires_at_s: int
    auth_time_s: int | None = None


class Refused(Exception):
    """Ends a handler with a problem as its answer."""

    def __init__(
        self,
        problem: Problem,
        detail: str = "",
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after_s: int | None = None,
        policy: RatePolicy | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        """Arguments are those of `ProblemDetails`."""
        super().__init__(problem.value, detail)
        self.details = ProblemDetails(
            problem, detail, errors, retry_after_s=retry_after_s, policy=policy, extensions=extensions or {}
        )


def invalid(pointer: str, detail: str) -> Refused:
    """`validation_failed` for one place of the body or the query."""
    return Refused(Problem.VALIDATION_FAILED, errors=(FieldError(pointer, detail),))


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a handler sees it. Header names are in lower case; `client` is the address that limits count."""

    method: str
    path: str
    path_params: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    client: str
    caller: Caller | None = None

    @property
    def who(self) -> Caller:
        """The caller, on a route that requires a role."""
        assert self.caller is not None, "the route admits anonymous callers"
        return self.caller

    def path_id(self, name: str, missing: Problem) -> UUID:
        """An id in the path; Refused with `missing` when the text is not a UUID."""
        value = ids.parse_uuid(self.path_params[name])
        if value is None:
            raise Refused(missing)
        return value


class Stream(Protocol):
    """A body of pieces without a known end. The reader closes it."""

    async def next_piece(self) -> bytes | None:
        """The next piece; None at the end. Cancelling loses no piece."""
        ...

    def close(self) -> None:
        """End the stream; no more pieces are read. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer. `body` is a model (sent as JSON), encoded bytes, a stream, or None."""

    status: int = 200
    body: BaseModel | bytes | Stream | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer in wire form: status, headers with names in lower case, body bytes or a stream."""

    status: int
    headers: dict[str, str]
    body: bytes
    stream: Stream | None = None


def render(answer: Answer) -> Rendered:
    """The wire form of a successful answer."""
    headers = {**_EVERY_ANSWER, **answer.headers}
    if answer.body is None:
        return Rendered(answer.status, headers, b"")
    headers = {"content-type": answer.media_type, **headers}
    if isinstance(answer.body, BaseModel):
        return Rendered(answer.status, headers, answer.body.model_dump_json().encode())
    if isinstance(answer.body, bytes):
        return Rendered(answer.status, headers, answer.body)
    return Rendered(answer.status, headers, b"", answer.body)


def render_problem(details: ProblemDetails) -> Rendered:
    """The wire form of a problem (`domain.problems.render_problem`)."""
    status, headers, body = problems.render_problem(details)
    return Rendered(status, {**_EVERY_ANSWER, **dict(headers)}, body)
