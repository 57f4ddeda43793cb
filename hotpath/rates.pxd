"""Rates of users in memory that the workers of an edge share."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    WAYS = 4  # slots in which a user's rate may be

cdef struct RateSlot:
    uint64_t user_hash
    int64_t arrival_us  # GCRA theoretical arrival time (CLOCK_MONOTONIC)

cdef class UserRates:
    cdef object memory
    cdef unsigned char[::1] view
    cdef RateSlot* slots
    cdef uint64_t mask
    cdef int64_t interval_us
    cdef int64_t allowance_us

    cdef int64_t wait_us(self, uint64_t user_hash, int64_t now_us) noexcept
