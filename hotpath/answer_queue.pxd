"""The answers of one connection of the direct door, in the order of its requests."""

from libc.stdint cimport int64_t, uint64_t

cdef class DoorState:
    cdef int64_t head_ns
    cdef int64_t body_ns
    cdef int64_t idle_ns
    cdef int64_t write_ns
    cdef bytes date  # `date: ...\r\n`
    cdef list fixed  # verdict -> head of a fixed answer, without its end; or None
    cdef list fixed_bodies
    cdef object run_slow_path
    cdef readonly int64_t unanswered  # requests of all connections
    cdef int64_t waiting_bytes_max
    cdef readonly int64_t waiting_bytes  # of answers that wait for their turn, or for a peer that does not read
    cdef readonly uint64_t unread  # connections closed because of such answers

cdef class AnswerQueue:
    cdef DoorState door
    cdef object transport
    cdef int fd  # -1: closed
    cdef int64_t deadline_ns  # 0: none
    cdef bint reading  # a request has begun and is not complete
    cdef bint congested  # the transport holds bytes that the peer has not read
    cdef bint closing  # the last answer is sent
    cdef bint peer_ended  # the peer sends no more
    cdef Py_ssize_t received  # bytes in chunks after the one in which the request began; after the last answer, too
    cdef bint corked  # answers are collected until the chunk is parsed
    cdef list cork
    cdef uint64_t begun  # number of requests so far
    cdef uint64_t sent  # number of answers so far
    cdef uint64_t last  # no request after this number is served; 0: open
    cdef dict early  # number -> an answer that is ready before its turn
    cdef int64_t early_bytes
    cdef int64_t unread_bytes  # in the transport

    cdef int answer(self, uint64_t number, bytes data) except -1
    cdef int write(self, bytes data) except -1
    cdef int keep_waiting(self, Py_ssize_t length) except -1
    cdef int uncork(self) except -1
    cdef int end(self) except -1
    cdef int linger(self) except -1
    cdef int abort(self) except -1
    cdef int expect(self, int64_t wait_ns) noexcept
    cdef int expect_next(self) noexcept

cdef bytes head_of(int status, headers)
cdef bytes finished(DoorState door, bytes head, bytes body, bint keep)
