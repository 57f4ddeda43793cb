"""One POST of an order as a state machine over a ticket."""

from libc.stdint cimport int64_t, uint64_t

from hotpath.batcher cimport Batcher
from hotpath.tickets cimport Ticket
from hotpath.counters cimport VERDICTS_MAX, Counters
from hotpath.rates cimport UserRates
from hotpath.sales cimport SaleView
from hotpath.tokens cimport Claims, KeyRing

cdef enum:
    PLAIN_TYPE_CHARS = 16  # application/json

cdef class OrderCore:
    cdef KeyRing ring
    cdef Batcher batcher
    cdef Counters counters
    cdef list fixed_answers  # verdict -> answer or None
    cdef object answer_with_argument
    cdef object answer_invalid
    cdef object slow_path
    cdef object report
    cdef object verify_outside  # None: no tokens but ours
    cdef str location_prefix
    cdef Py_ssize_t body_length_max
    cdef int64_t body_deadline_ns
    cdef UserRates rates
    cdef UserRates ceiling
    cdef dict bodies  # exchanges that wait for a body, oldest first
    cdef Claims claims  # scratch

cdef class Exchange(Ticket):
    cdef OrderCore core
    cdef object scope
    cdef object protocol
    cdef str asked_sale
    cdef object body_future
    cdef object delegate
    cdef int state
    cdef bint timed_out
    cdef bint answered
    cdef Py_ssize_t content_length
    cdef int64_t started_ns
    cdef int64_t body_deadline

    cdef object step(self)
    cdef object enter_slow_path(self, int reason)
    cdef object step_slow_path(self)
    cdef int give_up(self, error) except -1
    cdef int open(self) except -1
    cdef int check_outside(self, str authorization, int64_t now_s) except -1
    cdef int read_key(self, headers) except -1
    cdef bint read_order(self, bytes body) except -1
    cdef int answer_request(self, Ticket ticket) except -1
    cdef int respond_fixed(self, int verdict) except -1
    cdef int respond_with(self, int verdict, answer) except -1
