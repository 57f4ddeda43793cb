"""Rates of users (GCRA) in memory that the workers of an edge share. Performs no I/O.

Every order request of a user counts, at whatever sale and with whatever answer, except those that this limit refuses.
A user's rate is in one of four slots; without a free one it replaces the one that has been quiet longest, whose user
then has a fresh burst. Two workers may race for a slot: the later one finds the arrival time changed and looks again.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    static inline int replace_if_equal(int64_t *place, int64_t before, int64_t after) {
        return __atomic_compare_exchange_n(place, &before, after, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    bint replace_if_equal(int64_t* place, int64_t before, int64_t after) noexcept nogil

cdef enum:
    RACES_MAX = 8


cdef class UserRates:
    """At most `burst` requests at once and one more each `interval_us`, for each user."""

    def __init__(self, memory, *, int64_t interval_us, int64_t burst):
        cdef unsigned char[::1] writable = memory
        cdef uint64_t sets = <uint64_t>writable.shape[0] // (WAYS * sizeof(RateSlot))
        assert interval_us > 0 and burst > 0 and sets > 0 and sets & (sets - 1) == 0
        self.memory = memory
        self.view = writable
        self.slots = <RateSlot*>&writable[0]
        self.mask = sets - 1
        self.interval_us = interval_us
        self.allowance_us = interval_us * burst

    def take(self, uint64_t user_hash, int64_t now_us):
        """Count a request; 0, or the microseconds to wait when it is refused."""
        return self.wait_us(user_hash, now_us)

    cdef int64_t wait_us(self, uint64_t user_hash, int64_t now_us) noexcept:
        cdef RateSlot* first = &self.slots[(user_hash & self.mask) * WAYS]
        cdef RateSlot* slot = NULL
        cdef int64_t before, arrival
        cdef int way, _race
        for way in range(WAYS):
            if first[way].user_hash == user_hash:
                slot = &first[way]
                break
            if slot == NULL or first[way].arrival_us < slot.arrival_us:
                slot = &first[way]
        if slot.user_hash != user_hash:
            slot.user_hash = user_hash
            slot.arrival_us = now_us
        for _race in range(RACES_MAX):
            before = slot.arrival_us
            arrival = (before if before > now_us else now_us) + self.interval_us
            if arrival - now_us > self.allowance_us:
                return arrival - now_us - self.allowance_us
            if replace_if_equal(&slot.arrival_us, before, arrival):
                return 0
        return self.interval_us  # a user who sends to all workers in the same microsecond
