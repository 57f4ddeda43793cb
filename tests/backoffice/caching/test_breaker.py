"""The circuit breaker, with a clock of the test."""

from __future__ import annotations

from backoffice.caching.breaker import FAILURES_MAX, Breaker


def test_a_breaker_opens_and_admits_one_probe_at_a_time() -> None:
    now = 0.0
    breaker = Breaker(now=lambda: now)
    for _ in range(FAILURES_MAX - 1):
        assert breaker.admits()
        breaker.failed()
    assert breaker.admits() and not breaker.is_open
    breaker.succeeded()
    for _ in range(FAILURES_MAX):
        assert breaker.admits()
        breaker.failed()
    assert breaker.is_open and not breaker.admits()
    for _ in range(100):
        breaker.failed()  # calls admitted before it opened do not lengthen the pause
    now = 0.1
    assert breaker.admits()
    assert not breaker.admits()  # one at a time
    breaker.abandoned()
    assert breaker.admits()
    breaker.failed()
    assert not breaker.admits()
    now = 10.0
    assert breaker.admits()
    breaker.succeeded()
    assert breaker.admits() and not breaker.is_open
