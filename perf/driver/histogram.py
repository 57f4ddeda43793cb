"""Histograms of the driver's loop: percentiles, sums, and the sparse form of the JSON lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from perf.driver.loop import bucket_index, bucket_start_us

Sparse = list[list[int]]  # [bucket, count] for counts above 0, buckets ascending
_SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def sparse(counts: Sequence[int]) -> Sparse:
    """The buckets that are not empty."""
    return [[bucket, count] for bucket, count in enumerate(counts) if count]


def summed(histograms: Iterable[Sparse]) -> Sparse:
    """The sum of histograms."""
    total: Counter[int] = Counter()
    for histogram in histograms:
        for bucket, count in histogram:
            total[bucket] += count
    return [[bucket, count] for bucket, count in sorted(total.items())]


def percentiles_ms(histogram: Sparse) -> dict[str, float]:
    """p50, p95, p99, p99.9 and max in milliseconds, as lower bounds of buckets; empty without values."""
    total = sum(count for _, count in histogram)
    answer: dict[str, float] = {}
    for name, share in _SHARES.items():
        left = share * total
        for bucket, count in histogram:
            left -= count
            if left <= 1e-9:
                answer[name] = bucket_start_us(bucket) / 1000
                break
    return answer


def count_from(histogram: Sparse, latency_us: int) -> int:
    """The number of values in the bucket of `latency_us` and above."""
    return sum(count for bucket, count in histogram if bucket >= bucket_index(latency_us))
