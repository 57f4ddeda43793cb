"""One order: its request, its progress, its waiter."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from hotpath.sales cimport SaleView
from hotpath.validation cimport KEY_LENGTH_MAX, LINES_MAX

cdef class Ticket:
    # the request
    cdef SaleView sale
    cdef uint8_t user[16]
    cdef uint64_t user_hash
    cdef char key[KEY_LENGTH_MAX]
    cdef int key_length  # of the packed key (`domain.orders.pack_key`)
    cdef uint8_t sku_index[LINES_MAX]
    cdef uint8_t quantity[LINES_MAX]
    cdef int line_count
    cdef int64_t over_rate_ms  # the wait of a user above the rate: only an earlier order may be answered. 0: none
    # the progress
    cdef int64_t deadline_ns  # 0: set by the first submit
    cdef uint8_t id[16]
    cdef bint has_id  # an order keeps its id over all attempts
    cdef bint by_lookup  # waits for the read-only script
    cdef bint in_flight
    cdef bint may_have_run  # an attempt was lost after it was sent
    cdef bint by_reserve  # a repeated request that only the script that writes can confirm on a replica
    cdef bint alone  # needs a batch of its own
    cdef int place  # index of its sale in the batch that is being built
    # the end
    cdef bint ended
    cdef int outcome
    cdef readonly int64_t argument
    cdef int64_t reserved_at_ms
    cdef bint replayed
    # the waiter
    cdef bint blocking
    cdef object callback
    cdef object context

    cdef int end(self, int verdict) except -1
    cdef int settle(self, bint inside_task) except -1
    cdef bytes answer(self)
    cdef Ticket copy_for(self, SaleView sale)
