"""Outcome numbers are spoken by scripts and by compiled code."""

from __future__ import annotations

from domain.outcomes import OUTCOME_BITS, Outcome, Transition


def test_numbers_fit_and_are_fixed() -> None:
    assert [outcome.name for outcome in Outcome] == [
        "ACCEPTED",
        "REPLAYED",
        "KEY_REUSED",
        "STALE",
        "NOT_OPEN",
        "ENDED",
        "RATE_LIMITED",
        "PURCHASE_LIMIT",
        "SOLD_OUT",
        "HAS_STOCK",
        "STREAM_FULL",
        "UNITS_ELSEWHERE",
    ]
    assert [int(outcome) for outcome in Outcome] == list(range(len(Outcome)))
    assert len(Outcome) <= 1 << OUTCOME_BITS
    assert [t.name for t in Transition] == ["DONE", "REPEATED", "CONFLICT", "NOT_FOUND", "NOT_DUE"]
    assert [int(t) for t in Transition] == list(range(len(Transition)))
