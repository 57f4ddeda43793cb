"""Verdicts as C numbers, and counters in C memory."""

from libc.stdint cimport int64_t, uint64_t

cdef enum VerdictCode:
    V_ACCEPTED = 0
    V_REPLAYED = 1
    V_KEY_REUSED = 2
    V_STALE = 3
    V_NOT_OPEN = 4
    V_ENDED = 5
    V_RATE_LIMITED = 6
    V_PURCHASE_LIMIT = 7
    V_SOLD_OUT = 8
    V_HAS_STOCK = 9
    V_STREAM_FULL = 10
    V_UNITS_ELSEWHERE = 11
    V_OVERLOADED = 16
    V_UNAVAILABLE = 17
    V_UNKNOWN = 18
    V_PENDING = 19
    V_TOKEN_MISSING = 32
    V_TOKEN_INVALID = 33
    V_TOKEN_EXPIRED = 34
    V_KEY_MISSING = 35
    V_KEY_MALFORMED = 36
    V_MEDIA_TYPE = 37
    V_BODY_TOO_LARGE = 38
    V_BODY_TIMEOUT = 39
    V_BODY_TRUNCATED = 40
    V_BODY_MALFORMED = 41
    V_BODY_INVALID = 42
    V_SKU_NOT_FOUND = 43
    V_SALE_NOT_FOUND = 44
    V_TOO_FAST = 45
    V_INTERNAL_ERROR = 46
    V_HEADER_REPEATED = 47
    V_TOKEN_ENDED = 48
    VERDICTS_MAX = 56

# 0..7 us, then one bucket per power of two, up to 67 s.
cdef enum:
    HISTOGRAM_BUCKETS = 24

cdef class Counters:
    cdef uint64_t verdicts[VERDICTS_MAX]
    cdef uint64_t buckets[HISTOGRAM_BUCKETS]
    cdef uint64_t observed
    cdef uint64_t sum_us

    cdef void add(self, int verdict) noexcept
    cdef void record_us(self, int64_t latency_us) noexcept
