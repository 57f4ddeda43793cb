"""One POST of an order in Granian, as a state machine over a ticket."""

from libc.stdint cimport int64_t

from hotpath.order_request cimport OrderCore, OrderRequest
from hotpath.tickets cimport Ticket

cdef class Exchange(OrderRequest):
    cdef object scope
    cdef object protocol
    cdef object body_future
    cdef object delegate
    cdef int state
    cdef bint timed_out

    cdef object step(self)
    cdef object enter_slow_path(self, int reason)
    cdef object step_slow_path(self)
    cdef int give_up(self, error) except -1
    cdef int open(self) except -1
    cdef int read_key(self, headers) except -1
