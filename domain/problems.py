"""Problem codes of both services (RFC 9457), and the one place where a problem becomes status, headers and body.

The table is the contract: every answer that is not 2xx carries one of these codes. Performs no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from json import JSONEncoder
from typing import Any, Final, NamedTuple, TypeAlias

PROBLEM_JSON: Final = "application/problem+json"


class Problem(StrEnum):
    """Every code that an answer may carry, spelled as on the wire."""

    MALFORMED_REQUEST = "malformed_request"
    IDEMPOTENCY_KEY_MISSING = "idempotency_key_missing"
    TOKEN_MISSING = "token_missing"
    TOKEN_INVALID = "token_invalid"
    TOKEN_EXPIRED = "token_expired"
    CREDENTIALS_INVALID = "credentials_invalid"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    SALE_NOT_FOUND = "sale_not_found"
    SKU_NOT_FOUND = "sku_not_found"
    ORDER_NOT_FOUND = "order_not_found"
    PRODUCT_NOT_FOUND = "product_not_found"
    USER_NOT_FOUND = "user_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    SALE_NOT_OPEN = "sale_not_open"
    SOLD_OUT = "sold_out"
    PURCHASE_LIMIT_EXCEEDED = "purchase_limit_exceeded"
    ORDER_STATE_CONFLICT = "order_state_conflict"
    SALE_STATE_CONFLICT = "sale_state_conflict"
    EMAIL_TAKEN = "email_taken"
    SKU_TAKEN = "sku_taken"
    SALE_ENDED = "sale_ended"
    PRECONDITION_FAILED = "precondition_failed"
    PRECONDITION_REQUIRED = "precondition_required"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    VALIDATION_FAILED = "validation_failed"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    RATE_LIMITED = "rate_limited"
    INTERNAL_ERROR = "internal_error"
    OVERLOADED = "overloaded"
    DEPENDENCY_UNAVAILABLE = "dependency_unavailable"
    OUTCOME_UNKNOWN = "outcome_unknown"

    @property
    def status(self) -> int:
        """HTTP status of the code."""
        return _TABLE[self][0]

    @property
    def summary(self) -> str:
        """Short summary, the same for every occurrence of the code."""
        return _TABLE[self][1]


_TABLE: Final[dict[Problem, tuple[int, str]]] = {
    Problem.MALFORMED_REQUEST: (400, "The request is not well formed"),
    Problem.IDEMPOTENCY_KEY_MISSING: (400, "The Idempotency-Key header is required"),
    Problem.TOKEN_MISSING: (401, "An access token is required"),
    Problem.TOKEN_INVALID: (401, "The access token is not valid"),
    Problem.TOKEN_EXPIRED: (401, "The access token has expired"),
    Problem.CREDENTIALS_INVALID: (401, "The credentials are not valid"),
    Problem.FORBIDDEN: (403, "You are not allowed to do this"),
    Problem.NOT_FOUND: (404, "This path does not exist"),
    Problem.SALE_NOT_FOUND: (404, "The sale does not exist"),
    Problem.SKU_NOT_FOUND: (404, "The sale does not offer this SKU"),
    Problem.ORDER_NOT_FOUND: (404, "The order does not exist"),
    Problem.PRODUCT_NOT_FOUND: (404, "The product does not exist"),
    Problem.USER_NOT_FOUND: (404, "The user does not exist"),
    Problem.METHOD_NOT_ALLOWED: (405, "This path does not allow the method"),
    Problem.REQUEST_TIMEOUT: (408, "The request took too long to arrive"),
    Problem.BODY_TOO_LARGE: (413, "The request body is too large"),
    Problem.SALE_NOT_OPEN: (409, "The sale is not open"),
    Problem.SOLD_OUT: (409, "Sold out"),
    Problem.PURCHASE_LIMIT_EXCEEDED: (409, "The order would exceed the purchase limit"),
    Problem.ORDER_STATE_CONFLICT: (409, "The state of the order does not allow this"),
    Problem.SALE_STATE_CONFLICT: (409, "The state of the sale does not allow this"),
    Problem.EMAIL_TAKEN: (409, "Another account uses this e-mail address"),
    Problem.SKU_TAKEN: (409, "Another product uses this SKU"),
    Problem.SALE_ENDED: (410, "The sale has ended"),
    Problem.PRECONDITION_FAILED: (412, "The resource has changed; read it again"),
    Problem.PRECONDITION_REQUIRED: (428, "The If-Match header is required"),
    Problem.UNSUPPORTED_MEDIA_TYPE: (415, "The body must be application/json without a content coding"),
    Problem.VALIDATION_FAILED: (422, "The request is not valid"),
    Problem.IDEMPOTENCY_KEY_REUSED: (422, "The Idempotency-Key was used with a different request"),
    Problem.RATE_LIMITED: (429, "Too many requests; wait and try again"),
    Problem.INTERNAL_ERROR: (500, "Internal error"),
    Problem.OVERLOADED: (503, "The server is overloaded; try again"),
    Problem.DEPENDENCY_UNAVAILABLE: (503, "A required service is unavailable; try again"),
    Problem.OUTCOME_UNKNOWN: (504, "The outcome is unknown; repeat the request with the same Idempotency-Key"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One invalid part of a request: RFC 6901 `pointer` and the reason."""

    pointer: str
    detail: str


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """The limit that a `rate_limited` request exceeded: at most `quota` requests in `window_s` seconds."""

    name: str
    quota: int
    window_s: int


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """A problem to be rendered.

    `errors` and `extensions` (RFC 9457, section 3.2) become members of the body. `retry_after_s`, `policy` and `allow`
    (the methods of the path) become headers. `policy` needs `retry_after_s`.
    """

    problem: Problem
    detail: str = ""
    errors: tuple[FieldError, ...] = ()
    retry_after_s: int | None = None
    policy: RatePolicy | None = None
    allow: tuple[str, ...] = ()
    extensions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the code is given, so that the answer is always the same."""
        return not (
            self.detail
            or self.errors
            or self.retry_after_s is not None
            or self.policy is not None
            or self.allow
            or self.extensions
        )

    def as_document(self) -> dict[str, Any]:
        """The members of the `application/problem+json` body, in their usual order."""
        document: dict[str, Any] = {
            "type": f"/problems/{self.problem.value}",
            "title": self.problem.summary,
            "status": self.problem.status,
            "detail": self.detail or self.problem.summary,
            "code": self.problem.value,
        }
        if self.errors:
            document["errors"] = [{"pointer": e.pointer, "detail": e.detail} for e in self.errors]
        return {**document, **self.extensions}


Header: TypeAlias = tuple[str, str]
"""Name in lower case, and value."""


class RenderedProblem(NamedTuple):
    """A problem as an HTTP answer."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


RETRY_AFTER_S: Final = 1  # of a 503 that names no other time
# The rest of the body would be read as the next request.
_CLOSES_CONNECTION: Final = frozenset({Problem.REQUEST_TIMEOUT, Problem.BODY_TOO_LARGE})
_CHALLENGE: Final = 'Bearer realm="flashsale"'
_encode: Final = JSONEncoder(separators=(",", ":")).encode


def render_problem(details: ProblemDetails) -> RenderedProblem:
    """Status, headers and body of a problem, including the headers that its code requires.

    A `retry_after_s` below 1 becomes 1, so that no client tries again at once.
    """
    problem = details.problem
    headers: list[Header] = [("content-type", PROBLEM_JSON), ("cache-control", "no-store")]
    if problem.status == 401:
        headers.append(("www-authenticate", _challenge(problem)))
    if details.allow:
        headers.append(("allow", ", ".join(details.allow)))
    retry_after_s = details.retry_after_s
    if retry_after_s is None and problem.status == 503:
        retry_after_s = RETRY_AFTER_S
    if retry_after_s is not None:
        headers += _rate_headers(max(1, retry_after_s), details.policy)
    if problem in _CLOSES_CONNECTION:
        headers.append(("connection", "close"))
    plain = not (details.detail or details.errors or details.extensions)
    body = _PLAIN_BODIES[problem] if plain else _encode(details.as_document()).encode("ascii")
    return RenderedProblem(problem.status, tuple(headers), body)


def _challenge(problem: Problem) -> str:
    # RFC 6750, section 3.1: no error code when the request carried no token.
    if problem not in (Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED):
        return _CHALLENGE
    return f'{_CHALLENGE}, error="invalid_token", error_description="{problem.summary}"'


def _rate_headers(wait_s: int, policy: RatePolicy | None) -> list[Header]:
    """`Retry-After`; with a policy also the fields of draft-ietf-httpapi-ratelimit-headers, with nothing left."""
    headers = [("retry-after", str(wait_s))]
    if policy is not None:
        headers.append(("ratelimit", f'"{policy.name}";r=0;t={wait_s}'))
        headers.append(("ratelimit-policy", f'"{policy.name}";q={policy.quota};w={policy.window_s}'))
    return headers


_PLAIN_BODIES: Final[dict[Problem, bytes]] = {
    problem: _encode(ProblemDetails(problem).as_document()).encode("ascii") for problem in Problem
}
