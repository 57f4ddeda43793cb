"""Verdicts of the order path, counters by verdict and a latency histogram; all of one worker, in C memory."""

from enum import IntEnum
from typing import TypedDict

class Verdict(IntEnum):
    """Outcome of one order request. 0..11 are the outcomes of the reservation scripts (`domain.outcomes.Outcome`)."""

    ACCEPTED = 0
    REPLAYED = 1
    KEY_REUSED = 2
    STALE = 3
    NOT_OPEN = 4
    ENDED = 5
    RATE_LIMITED = 6
    PURCHASE_LIMIT = 7
    SOLD_OUT = 8
    HAS_STOCK = 9
    STREAM_FULL = 10
    UNITS_ELSEWHERE = 11
    OVERLOADED = 16  # no byte was sent: queue full, memory use high, or the deadline passed in the queue
    UNAVAILABLE = 17  # no byte was sent, or Redis reported that it did nothing and cannot
    UNKNOWN = 18  # a byte was sent and no reply came in time
    PENDING = 19  # not ended yet
    TOKEN_MISSING = 32
    TOKEN_INVALID = 33
    TOKEN_EXPIRED = 34
    KEY_MISSING = 35
    KEY_MALFORMED = 36
    MEDIA_TYPE = 37
    BODY_TOO_LARGE = 38
    BODY_TIMEOUT = 39
    BODY_TRUNCATED = 40
    BODY_MALFORMED = 41
    BODY_INVALID = 42
    SKU_NOT_FOUND = 43
    SALE_NOT_FOUND = 44
    TOO_FAST = 45  # refused by the loose local limiter
    INTERNAL_ERROR = 46
    HEADER_REPEATED = 47
    TOKEN_ENDED = 48  # issued before the user's sessions were ended

class Histogram(TypedDict):
    """`buckets`: (upper bound in seconds, number of observations up to it)."""

    buckets: list[tuple[float, int]]
    count: int
    sum_s: float

class Snapshot(TypedDict):
    """`verdicts`: name in lower case -> count, without zeros."""

    verdicts: dict[str, int]
    latency: Histogram

class Counters:
    """Counts and latencies of one worker. Not thread-safe: one event loop owns it."""

    def count(self, verdict: int) -> None:
        """Add one."""

    def observe_us(self, latency_us: int) -> None:
        """Record a latency in microseconds (one bucket per power of two, from 8 us to 67 s)."""

    def snapshot(self) -> Snapshot:
        """All counts since the worker started, for Prometheus."""
