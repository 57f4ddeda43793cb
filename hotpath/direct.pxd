"""The direct door: connections of one worker."""

from libc.stdint cimport int64_t, uint64_t

from hotpath.answer_queue cimport AnswerQueue, DoorState
from hotpath.order_request cimport OrderCore

cdef class Door(DoorState):
    cdef OrderCore core
    cdef object find_sale
    cdef object refuses_orders
    cdef object serve
    cdef object refusal
    cdef object make_room
    cdef object make_parser
    cdef bint with_origins  # requests with `Origin` need CORS headers: the application answers them
    cdef int connections_max
    cdef list connections
    cdef Py_ssize_t cursor
    cdef readonly bint draining
    cdef readonly uint64_t accepted
    cdef readonly uint64_t refused
    cdef readonly uint64_t malformed

    cdef int forget(self, Connection connection) except -1

cdef class Connection(AnswerQueue):
    cdef Door owner  # the same object as `door`
    cdef object parser
    cdef Py_ssize_t place  # in the door's list; -1: not in it
    cdef readonly str host  # the peer's address
    # the request that is being read
    cdef bint in_body
    cdef bytes target
    cdef list headers  # name, value, name, value ...
    cdef bytes authorization
    cdef bytes key
    cdef bytes content_type
    cdef int repeated  # a header occurred twice that must not
    cdef int hosts
    cdef bint has_encoding
    cdef bint has_origin
    cdef bint has_expect
    cdef bint has_upgrade
    cdef bint has_coding
    cdef bint is_version_1_0
    cdef Py_ssize_t content_length
    cdef Py_ssize_t head_length
    cdef Py_ssize_t body_length
    cdef Py_ssize_t body_length_max
    cdef bytes body
    cdef list parts

    cdef bint is_order(self) except -1
    cdef int body_is_too_long(self) except -1
    cdef int drop_request(self) except -1
    cdef int release(self) noexcept
    cdef bytes without_upgrade(self)
    cdef int complete(self, bint keep) except -1
    cdef int place_order(self, bint keep) except -1
    cdef int serve(self, bytes method, bint keep) except -1
    cdef int refuse(self, status) except -1
