"""Problem answers of the edge, rendered by `domain.problems`. Plain answers are built once. Performs no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

from domain.problems import FieldError, Problem, ProblemDetails, RatePolicy, render_problem
from domain.problems import Header as Header

Answer: TypeAlias = tuple[int, list[Header], bytes]
"""HTTP status, headers, body."""


def render(details: ProblemDetails) -> Answer:
    """The answer for a problem.

    All plain problems of one code share their list and bytes: callers must not change them.
    """
    return _PREBUILT[details.problem] if details.is_plain else _build(details)


def refuse(problem: Problem, detail: str = "") -> Answer:
    """`render` for a code with at most a sentence."""
    return render(ProblemDetails(problem, detail))


def invalid(pointer: str, detail: str) -> Answer:
    """`validation_failed` for one place; `pointer` names a query parameter as `/cursor`."""
    return render(ProblemDetails(Problem.VALIDATION_FAILED, errors=(FieldError(pointer, detail),)))


def method_not_allowed(methods: Sequence[str]) -> Answer:
    """405 with the methods of the path."""
    return render(ProblemDetails(Problem.METHOD_NOT_ALLOWED, allow=tuple(methods)))


def rate_limited(wait_ms: int, *, rate: int, burst: int, name: str = "orders") -> Answer:
    """429 with the rate fields; `rate` is requests a second, `burst` requests, `name` the kind of both."""
    wait_s = max(1, math.ceil(wait_ms / 1000))
    policy = RatePolicy(name, burst, max(1, math.ceil(burst / rate)))
    return render(ProblemDetails(Problem.RATE_LIMITED, retry_after_s=wait_s, policy=policy))


def _build(details: ProblemDetails) -> Answer:
    status, headers, body = render_problem(details)
    return status, list(headers), body


_PREBUILT: Final[dict[Problem, Answer]] = {problem: _build(ProblemDetails(problem)) for problem in Problem}
