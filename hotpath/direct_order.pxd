"""One order of a direct connection."""

from libc.stdint cimport uint64_t

from hotpath.answer_queue cimport AnswerQueue
from hotpath.order_request cimport OrderRequest

cdef class DirectOrder(OrderRequest):
    cdef AnswerQueue answers
    cdef uint64_t number  # of the request in its connection
    cdef bint keep  # the connection stays open
    cdef bytes body_bytes

    cdef int begin(
        self, bytes authorization, bytes key, bytes content_type, bint repeated, bint has_encoding
    ) except -1
    cdef int check_headers(
        self, bytes authorization, bytes key, bytes content_type, bint repeated, bint has_encoding
    ) except -1
    cdef int finish(self) except -1
