"""The process tier and its frequency sketch: bounds, popularity, expiry. No Redis."""

from __future__ import annotations

import pytest

from backoffice.caching.frequency import COUNT_MAX, Frequency
from backoffice.caching.process import ProcessTier


def test_the_process_tier_is_bounded_and_keeps_popular_entries() -> None:
    reasons: list[str] = []
    now = 0.0
    tier: ProcessTier[int] = ProcessTier(100, evicted=reasons.append, now=lambda: now)

    def read(n: int) -> bool:
        if tier.get(str(n)) is not None:
            return True
        tier.put(str(n), n, ttl_s=10.0)
        return False

    for _ in range(3):
        for n in range(90):
            read(n)
    for n in range(1000, 3000):  # a scan
        read(n)
        read(n % 90)
        assert len(tier) <= 100
    assert sum(read(n) for n in range(90)) >= 80  # plain LRU would keep almost none
    assert set(reasons) == {"size"}
    now = 10.0
    assert tier.get("1") is None
    assert reasons[-1] == "expired"
    assert not tier.drop("1")
    assert tier.drop("2")
    tier.clear()
    assert len(tier) == 0


@pytest.mark.parametrize("entries_max", [1, 2, 150])
def test_a_process_tier_of_any_size(entries_max: int) -> None:
    tier: ProcessTier[int] = ProcessTier(entries_max, evicted=lambda _: None)
    for n in range(1000):
        tier.put(str(n), n, ttl_s=10.0)
        assert len(tier) == min(n + 1, entries_max)
    entry = tier.get("999")
    assert entry is not None and entry.value == 999
    tier.put("999", None, ttl_s=10.0)
    assert len(tier) == entries_max
    entry = tier.get("999")
    assert entry is not None and entry.value is None


def test_frequencies_are_never_too_low_and_fade() -> None:
    frequency = Frequency(1000)
    for n in range(500):
        for _ in range(1 + n % 5):
            frequency.record(str(n))
    assert all(frequency.estimate(str(n)) >= 1 + n % 5 for n in range(500))
    exact = sum(frequency.estimate(str(n)) == 1 + n % 5 for n in range(500))
    assert exact > 450
    for _ in range(COUNT_MAX * 2):
        frequency.record("popular")
    assert frequency.estimate("popular") == COUNT_MAX
    for n in range(40_000):
        frequency.record(f"later {n}")
    assert frequency.estimate("popular") < COUNT_MAX
