"""One POST of an order, independent of the server that read it."""

from libc.stdint cimport int64_t, uint64_t

from hotpath.batcher cimport OrderTaker
from hotpath.counters cimport VERDICTS_MAX, Counters
from hotpath.rates cimport UserRates
from hotpath.sales cimport SaleView
from hotpath.tickets cimport Ticket
from hotpath.tokens cimport Claims, KeyRing

cdef class OrderCore:
    cdef KeyRing ring
    cdef OrderTaker batcher
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

cdef class OrderRequest(Ticket):
    cdef OrderCore core
    cdef str asked_sale
    cdef bint answered
    cdef Py_ssize_t content_length  # -1: not known before the body is read
    cdef int64_t started_ns

    cdef int check_token(self, const char* text, Py_ssize_t length) except -1
    cdef bint is_too_fast(self) except -1
    cdef int check_outside(self, const char* text, Py_ssize_t length, int64_t now_s) except -1
    cdef int check_key(self, const char* text, Py_ssize_t length) except -1
    cdef bint read_order(self, bytes body) except -1
    cdef int answer_request(self, Ticket ticket) except -1
    cdef int respond_fixed(self, int verdict) except -1
    cdef int respond_with(self, int verdict, answer) except -1
    cdef int note(self, int verdict) except -1
    # Of the server:
    cdef int send_answer(self, int verdict, answer) except -1
    cdef int send_order(self, Ticket ticket, bint replayed) except -1

cdef bint is_json_type(media_type)
