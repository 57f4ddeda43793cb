"""Problem answers (RFC 9457) of the edge: status, headers and body bytes, prebuilt where they never differ. Performs no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import orjson

from domain.problems import FieldError, Problem, ProblemDetails, RatePolicy

Header: TypeAlias = tuple[str, str]
Answer: TypeAlias = tuple[int, list[Header], bytes]
"""HTTP status, headers (names in lower case), body."""

RETRY_AFTER_S: Final = 1  # for a 503 that names no time of its own
_CLOSING: Final = frozenset({Problem.REQUEST_TIMEOUT, Problem.BODY_TOO_LARGE})
_CHALLENGE: Final = 'Bearer realm="flashsale"'


def render(details: ProblemDetails, *, headers: Sequence[Header] = ()) -> Answer:
    """The answer for a problem; `headers` are added to those that the code itself asks for.

    The lists and bytes of an answer without particulars are shared: callers must not change them.
    """
    if not (details.detail or details.errors or details.retry_after_s is not None or headers):
        return _PREBUILT[details.problem]
    return _build(details, headers)


def refuse(problem: Problem, detail: str = "") -> Answer:
    """`render` for a code with at most a sentence of its own."""
    return render(ProblemDetails(problem, detail))


def invalid(pointer: str, detail: str) -> Answer:
    """`validation_failed` for one place; `pointer` names a query parameter as `/cursor`."""
    return render(ProblemDetails(Problem.VALIDATION_FAILED, errors=(FieldError(pointer, detail),)))


def method_not_allowed(methods: Sequence[str]) -> Answer:
    """405 with the methods that are allowed here."""
    return render(ProblemDetails(Problem.METHOD_NOT_ALLOWED), headers=[("allow", ", ".join(methods))])


def rate_limited(wait_ms: int, *, rate: int, burst: int) -> Answer:
    """429 with the rate fields; `rate` is orders a second, `burst` orders."""
    wait_s = max(1, math.ceil(wait_ms / 1000))
    policy = RatePolicy("orders", burst, max(1, math.ceil(burst / rate)))
    return render(ProblemDetails(Problem.RATE_LIMITED, retry_after_s=wait_s, policy=policy))


def _build(details: ProblemDetails, headers: Sequence[Header]) -> Answer:
    problem = details.problem
    built: list[Header] = [("content-type", "application/problem+json"), ("cache-control", "no-store")]
    if problem.status == 401:
        # RFC 6750, section 3.1: no error code when the request carried no token at all.
        error = "" if problem is Problem.TOKEN_MISSING else ', error="invalid_token"'
        built.append(("www-authenticate", _CHALLENGE + error))
    retry_after_s = details.retry_after_s
    if retry_after_s is None and problem.status == 503:
        retry_after_s = RETRY_AFTER_S
    if retry_after_s is not None:
        built.append(("retry-after", str(retry_after_s)))
    if details.policy is not None and retry_after_s is not None:
        built.extend(details.policy.headers(retry_after_s).items())
    if problem in _CLOSING:
        built.append(("connection", "close"))  # the rest of the body would be read as the next request
    built.extend(headers)
    return problem.status, built, orjson.dumps(details.as_document())


_PREBUILT: Final[dict[Problem, Answer]] = {problem: _build(ProblemDetails(problem), ()) for problem in Problem}
