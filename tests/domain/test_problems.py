"""The problem table is the contract with clients, repeated here as clients read it; and rendering for both services."""

from __future__ import annotations

import json

import pytest

from domain.problems import FieldError, Problem, ProblemDetails, RatePolicy, render_problem

CONTRACT = {
    400: {"malformed_request", "idempotency_key_missing"},
    401: {"token_missing", "token_invalid", "token_expired", "credentials_invalid"},
    403: {"forbidden"},
    404: {"not_found", "sale_not_found", "sku_not_found", "order_not_found", "product_not_found", "user_not_found"},
    405: {"method_not_allowed"},
    408: {"request_timeout"},
    409: {
        "sale_not_open",
        "sold_out",
        "purchase_limit_exceeded",
        "order_state_conflict",
        "sale_state_conflict",
        "email_taken",
        "sku_taken",
    },
    410: {"sale_ended"},
    412: {"precondition_failed"},
    413: {"body_too_large"},
    415: {"unsupported_media_type"},
    422: {"validation_failed", "idempotency_key_reused"},
    428: {"precondition_required"},
    429: {"rate_limited"},
    500: {"internal_error"},
    503: {"overloaded", "dependency_unavailable"},
    504: {"outcome_unknown"},
}


def test_table_is_the_contract() -> None:
    table: dict[int, set[str]] = {}
    for problem in Problem:
        table.setdefault(problem.status, set()).add(problem.value)
    assert table == CONTRACT


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_makes_a_document(problem: Problem) -> None:
    document = ProblemDetails(problem).as_document()
    assert document == {
        "type": f"/problems/{problem.value}",
        "title": problem.summary,
        "status": problem.status,
        "detail": problem.summary,
        "code": problem.value,
    }
    assert problem.summary


def test_summaries_tell_problems_apart() -> None:
    assert len({problem.summary for problem in Problem}) == len(Problem)


def test_detail_and_errors_are_members_of_the_body_and_the_wait_is_not() -> None:
    details = ProblemDetails(
        Problem.VALIDATION_FAILED, "one line is wrong", (FieldError("/items/0/quantity", "must be 1-100"),), 3
    )
    document = details.as_document()
    assert document["detail"] == "one line is wrong"
    assert document["errors"] == [{"pointer": "/items/0/quantity", "detail": "must be 1-100"}]
    assert set(document) == {"type", "title", "status", "detail", "code", "errors"}


def test_extensions_are_members() -> None:
    details = ProblemDetails(Problem.DEPENDENCY_UNAVAILABLE, extensions={"missing": ["redis"]})
    assert json.loads(render_problem(details).body)["missing"] == ["redis"]
    assert not details.is_plain


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_renders_with_the_headers_of_its_code(problem: Problem) -> None:
    status, headers, body = render_problem(ProblemDetails(problem))
    assert status == problem.status
    assert json.loads(body) == ProblemDetails(problem).as_document()
    names = dict(headers)
    assert len(names) == len(headers)
    expected = {"content-type": "application/problem+json", "cache-control": "no-store"}
    if status == 503:
        expected["retry-after"] = "1"
    if problem in (Problem.REQUEST_TIMEOUT, Problem.BODY_TOO_LARGE):
        expected["connection"] = "close"
    if status == 401:
        expected["www-authenticate"] = 'Bearer realm="flashsale"'
    if problem in (Problem.TOKEN_INVALID, Problem.TOKEN_EXPIRED):
        expected["www-authenticate"] += f', error="invalid_token", error_description="{problem.summary}"'
    assert names == expected


def test_particulars_become_headers() -> None:
    details = ProblemDetails(Problem.RATE_LIMITED, retry_after_s=7, policy=RatePolicy("orders", 20, 2))
    names = dict(render_problem(details).headers)
    assert names["retry-after"] == "7"
    assert names["ratelimit"] == '"orders";r=0;t=7'
    assert names["ratelimit-policy"] == '"orders";q=20;w=2'
    at_once = dict(render_problem(ProblemDetails(Problem.RATE_LIMITED, retry_after_s=0)).headers)
    assert at_once["retry-after"] == "1" and "ratelimit" not in at_once
    allowed = dict(render_problem(ProblemDetails(Problem.METHOD_NOT_ALLOWED, allow=("GET", "HEAD"))).headers)
    assert allowed["allow"] == "GET, HEAD"


def test_bodies_are_valid_json_for_any_text() -> None:
    """A message may quote a request: control characters, other scripts, unpaired surrogates."""
    detail = 'a "quote", \n, Grüße, 漢字, \ud800'
    body = render_problem(ProblemDetails(Problem.MALFORMED_REQUEST, detail)).body
    assert json.loads(body)["detail"] == detail
