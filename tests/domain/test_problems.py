"""The problem table is the contract with clients: written out here once more, as clients read it."""

from __future__ import annotations

import pytest

from domain.problems import FieldError, Problem, ProblemDetails

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


def test_detail_and_errors_are_members_and_the_wait_is_not() -> None:
    details = ProblemDetails(
        Problem.VALIDATION_FAILED, "one line is wrong", (FieldError("/items/0/quantity", "must be 1-100"),), 3
    )
    document = details.as_document()
    assert document["detail"] == "one line is wrong"
    assert document["errors"] == [{"pointer": "/items/0/quantity", "detail": "must be 1-100"}]
    assert set(document) == {"type", "title", "status", "detail", "code", "errors"}
