"""Counters by verdict and a latency histogram of one worker. Performs no I/O."""

from enum import IntEnum

from libc.string cimport memset


class Verdict(IntEnum):
    """Outcome of one order request."""

    ACCEPTED = V_ACCEPTED
    REPLAYED = V_REPLAYED
    KEY_REUSED = V_KEY_REUSED
    STALE = V_STALE
    NOT_OPEN = V_NOT_OPEN
    ENDED = V_ENDED
    RATE_LIMITED = V_RATE_LIMITED
    PURCHASE_LIMIT = V_PURCHASE_LIMIT
    SOLD_OUT = V_SOLD_OUT
    HAS_STOCK = V_HAS_STOCK
    STREAM_FULL = V_STREAM_FULL
    UNITS_ELSEWHERE = V_UNITS_ELSEWHERE
    OVERLOADED = V_OVERLOADED
    UNAVAILABLE = V_UNAVAILABLE
    UNKNOWN = V_UNKNOWN
    PENDING = V_PENDING
    TOKEN_MISSING = V_TOKEN_MISSING
    TOKEN_INVALID = V_TOKEN_INVALID
    TOKEN_EXPIRED = V_TOKEN_EXPIRED
    KEY_MISSING = V_KEY_MISSING
    KEY_MALFORMED = V_KEY_MALFORMED
    MEDIA_TYPE = V_MEDIA_TYPE
    BODY_TOO_LARGE = V_BODY_TOO_LARGE
    BODY_TIMEOUT = V_BODY_TIMEOUT
    BODY_TRUNCATED = V_BODY_TRUNCATED
    BODY_MALFORMED = V_BODY_MALFORMED
    BODY_INVALID = V_BODY_INVALID
    SKU_NOT_FOUND = V_SKU_NOT_FOUND
    SALE_NOT_FOUND = V_SALE_NOT_FOUND
    TOO_FAST = V_TOO_FAST
    INTERNAL_ERROR = V_INTERNAL_ERROR
    HEADER_REPEATED = V_HEADER_REPEATED
    TOKEN_ENDED = V_TOKEN_ENDED


cdef class Counters:
    """Counts and latencies. One event loop owns it."""

    def __cinit__(self):
        memset(self.verdicts, 0, sizeof(self.verdicts))
        memset(self.buckets, 0, sizeof(self.buckets))

    cdef void add(self, int verdict) noexcept:
        if 0 <= verdict < VERDICTS_MAX:
            self.verdicts[verdict] += 1

    cdef void record_us(self, int64_t latency_us) noexcept:
        if latency_us < 0:
            latency_us = 0
        self.buckets[bucket_of(<uint64_t>latency_us)] += 1
        self.observed += 1
        self.sum_us += <uint64_t>latency_us

    def count(self, int verdict):
        """Add one."""
        assert 0 <= verdict < VERDICTS_MAX
        self.add(verdict)

    def observe_us(self, int64_t latency_us):
        """Record a latency."""
        self.record_us(latency_us)

    def snapshot(self):
        """All counts since the worker started."""
        cdef uint64_t seen = 0
        cdef int index
        cumulative = []
        for index in range(HISTOGRAM_BUCKETS):
            seen += self.buckets[index]
            cumulative.append(((8 * 2**index - 1) / 1e6, seen))
        return {
            "verdicts": {v.name.lower(): self.verdicts[<int>v] for v in Verdict if self.verdicts[<int>v]},
            "latency": {"buckets": cumulative, "count": self.observed, "sum_s": self.sum_us / 1e6},
        }


cdef inline int bucket_of(uint64_t value) noexcept:
    """0 for 0..7, then one more per power of two. The last bucket has no upper bound."""
    cdef int index = 0
    while value >= 8 and index < HISTOGRAM_BUCKETS - 1:
        value >>= 1
        index += 1
    return index
