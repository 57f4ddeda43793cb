"""What handlers take and give: a call, an answer, a refusal. Performs no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol
from uuid import UUID

import orjson
from pydantic import BaseModel

from domain import ids
from domain.problems import FieldError, Problem, ProblemDetails, RatePolicy

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"


class Role(StrEnum):
    """Who a caller is."""

    BUYER = "buyer"
    STAFF = "staff"
    ADMIN = "admin"


STAFF = frozenset({Role.STAFF, Role.ADMIN})
EVERYONE = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified token's subject; `expires_at_s` is the token's `exp`, seconds since 1970."""

    user_id: UUID
    role: Role
    expires_at_s: int


class Refused(Exception):
    """An answer that is a problem; carries what to tell the client."""

    def __init__(
        self,
        problem: Problem,
        detail: str = "",
        *,
        errors: tuple[FieldError, ...] = (),
        retry_after_s: int | None = None,
        policy: RatePolicy | None = None,
    ) -> None:
        """As `ProblemDetails`."""
        super().__init__(problem.value, detail)
        self.details = ProblemDetails(problem, detail, errors, retry_after_s, policy)


def invalid(pointer: str, detail: str) -> Refused:
    """`validation_failed` about one place of the body or the query."""
    return Refused(Problem.VALIDATION_FAILED, errors=(FieldError(pointer, detail),))


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a handler sees it. Header names are in small letters; `client` is the peer's address."""

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
        """The caller of a route that has roles."""
        assert self.caller is not None, "the route admits anonymous callers"
        return self.caller

    def path_id(self, name: str, missing: Problem) -> UUID:
        """An id in the path; one that cannot exist is `missing`, like one that does not."""
        value = ids.parse_uuid(self.path_params[name])
        if value is None:
            raise Refused(missing)
        return value


class Stream(Protocol):
    """A body that comes piece by piece, for as long as its reader stays. Closed by whoever reads it."""

    async def next_piece(self) -> bytes | None:
        """The next piece; None at the end. Cancelling loses no piece."""
        ...

    def close(self) -> None:
        """Nobody reads on. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer. `body` is a model (sent as JSON), ready bytes, a stream, or nothing."""

    status: int = 200
    body: BaseModel | bytes | Stream | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer as it goes on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    stream: Stream | None = None


def render(answer: Answer) -> Rendered:
    """The wire form of an answer."""
    headers = {"x-content-type-options": "nosniff", "cache-control": "no-store", **answer.headers}
    if answer.body is None:
        return Rendered(answer.status, headers, b"")
    headers = {"content-type": answer.media_type, **headers}
    if isinstance(answer.body, BaseModel):
        return Rendered(answer.status, headers, answer.body.model_dump_json().encode())
    if isinstance(answer.body, bytes):
        return Rendered(answer.status, headers, answer.body)
    return Rendered(answer.status, headers, b"", answer.body)


def render_problem(details: ProblemDetails, **headers: str) -> Rendered:
    """The wire form of a problem (RFC 9457), with the headers its code asks for."""
    problem = details.problem
    fields = {"content-type": PROBLEM_JSON, "x-content-type-options": "nosniff", "cache-control": "no-store"}
    if details.retry_after_s is not None:
        wait_s = max(1, details.retry_after_s)
        fields["retry-after"] = str(wait_s)
        if details.policy is not None:
            fields.update(details.policy.headers(wait_s))
    if problem in (Problem.TOKEN_MISSING, Problem.CREDENTIALS_INVALID):
        # RFC 6750, section 3.1: no error code when the request carried no token at all.
        fields["www-authenticate"] = 'Bearer realm="flashsale"'
    elif problem in (Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED):
        fields["www-authenticate"] = (
            f'Bearer realm="flashsale", error="invalid_token", error_description="{problem.summary}"'
        )
    fields.update(headers)
    return Rendered(problem.status, fields, orjson.dumps(details.as_document()))
