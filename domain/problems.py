"""Problem codes of both services (RFC 9457) and their HTTP status.

The table is the contract: an answer that is not 2xx carries one of these codes. Performs no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


class Problem(StrEnum):
    """Every code an answer may carry, spelled as on the wire."""

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
    Problem.MALFORMED_REQUEST: (400, "The request could not be read"),
    Problem.IDEMPOTENCY_KEY_MISSING: (400, "An Idempotency-Key header is required"),
    Problem.TOKEN_MISSING: (401, "An access token is required"),
    Problem.TOKEN_INVALID: (401, "The access token is not valid here"),
    Problem.TOKEN_EXPIRED: (401, "The access token has expired"),
    Problem.CREDENTIALS_INVALID: (401, "The credentials are not valid"),
    Problem.FORBIDDEN: (403, "Not allowed"),
    Problem.NOT_FOUND: (404, "Nothing is here"),
    Problem.SALE_NOT_FOUND: (404, "There is no such sale"),
    Problem.SKU_NOT_FOUND: (404, "The sale has no such SKU"),
    Problem.ORDER_NOT_FOUND: (404, "There is no such order"),
    Problem.PRODUCT_NOT_FOUND: (404, "There is no such product"),
    Problem.USER_NOT_FOUND: (404, "There is no such user"),
    Problem.METHOD_NOT_ALLOWED: (405, "The method is not allowed here"),
    Problem.REQUEST_TIMEOUT: (408, "The request took too long to arrive"),
    Problem.BODY_TOO_LARGE: (413, "The request body is too large"),
    Problem.SALE_NOT_OPEN: (409, "The sale is not open"),
    Problem.SOLD_OUT: (409, "Sold out"),
    Problem.PURCHASE_LIMIT_EXCEEDED: (409, "The purchase limit is reached"),
    Problem.ORDER_STATE_CONFLICT: (409, "The order's state does not allow this"),
    Problem.SALE_STATE_CONFLICT: (409, "The sale's state does not allow this"),
    Problem.EMAIL_TAKEN: (409, "The address is in use"),
    Problem.SKU_TAKEN: (409, "The SKU is in use"),
    Problem.SALE_ENDED: (410, "The sale has ended"),
    Problem.PRECONDITION_FAILED: (412, "The resource has changed since it was read"),
    Problem.PRECONDITION_REQUIRED: (428, "An If-Match header is required"),
    Problem.UNSUPPORTED_MEDIA_TYPE: (415, "The body must be application/json, not encoded"),
    Problem.VALIDATION_FAILED: (422, "The request is not valid"),
    Problem.IDEMPOTENCY_KEY_REUSED: (422, "The Idempotency-Key was used with other lines"),
    Problem.RATE_LIMITED: (429, "Too many requests"),
    Problem.INTERNAL_ERROR: (500, "Something went wrong here"),
    Problem.OVERLOADED: (503, "Too busy, try again"),
    Problem.DEPENDENCY_UNAVAILABLE: (503, "A service this needs is unavailable"),
    Problem.OUTCOME_UNKNOWN: (504, "The outcome is unknown: repeat with the same key"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One offending place of a body: RFC 6901 `pointer` and what is wrong there."""

    pointer: str
    detail: str


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """What a `rate_limited` request was measured by: at most `quota` in `window_s` seconds."""

    name: str
    quota: int
    window_s: int

    def headers(self, wait_s: int) -> dict[str, str]:
        """The fields of draft-ietf-httpapi-ratelimit-headers when nothing is left for `wait_s` seconds."""
        return {
            "ratelimit": f'"{self.name}";r=0;t={wait_s}',
            "ratelimit-policy": f'"{self.name}";q={self.quota};w={self.window_s}',
        }


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """A problem on its way to a client.

    `retry_after_s` and, with it, `policy` become headers (`Retry-After`, `RateLimit`, `RateLimit-Policy`), not members of
    the body.
    """

    problem: Problem
    detail: str = ""
    errors: tuple[FieldError, ...] = field(default=())
    retry_after_s: int | None = None
    policy: RatePolicy | None = None

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
        return document
