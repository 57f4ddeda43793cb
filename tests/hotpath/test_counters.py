"""Counters and histogram: exact counts, also per bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from domain.outcomes import Outcome
from hotpath.counters import Counters, Verdict


def test_verdicts_begin_with_the_outcomes_of_the_scripts() -> None:
    assert {outcome.name: int(outcome) for outcome in Outcome} == {
        verdict.name: int(verdict) for verdict in Verdict if verdict < 16
    }


def test_counts() -> None:
    counters = Counters()
    for verdict in (Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.SOLD_OUT):
        counters.count(verdict)
    assert counters.snapshot()["verdicts"] == {"accepted": 2, "sold_out": 1}


@given(latencies=st.lists(st.integers(0, 60_000_000), min_size=1, max_size=200))
def test_buckets_count_all_latencies_up_to_their_bound(latencies: list[int]) -> None:
    counters = Counters()
    for latency in latencies:
        counters.observe_us(latency)
    histogram = counters.snapshot()["latency"]
    assert histogram["count"] == histogram["buckets"][-1][1] == len(latencies)
    assert [bound for bound, _ in histogram["buckets"]] == [((8 << step) - 1) / 1e6 for step in range(24)]
    for bound, count in histogram["buckets"]:
        assert count == sum(latency / 1e6 <= bound for latency in latencies)


def test_what_is_beyond_the_last_bucket_is_counted() -> None:
    counters = Counters()
    counters.observe_us(10**15)
    counters.observe_us(-5)
    assert counters.snapshot()["latency"]["count"] == 2
