"""RESP2 in C memory: a growing buffer for commands, and a scanner for replies."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    REPLY_LENGTH_MAX = 1048576
    ELEMENTS_MAX = 100000

cdef class Writer:
    cdef char* start
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity

    # Make room; afterwards the caller may advance `length` by at most `more`.
    cdef char* reserve(self, Py_ssize_t more) except NULL
    cdef int put(self, bytes data) except -1
    cdef int put_bulk(self, bytes data) except -1
    cdef int put_head(self, char kind, uint64_t number) except -1
    cdef bytes take(self)

# Write `$<length>\r\n`; returns the end. At most 23 characters.
cdef char* bulk_head(char* at, uint64_t length) noexcept nogil

# Length of the first complete reply at `at`. 0: incomplete. -1: not RESP2, or above the limits.
cdef Py_ssize_t scan(const char* at, const char* end, int depth) noexcept nogil

# The decimal after the first character of a reply; sets `after` past its line end. Only for text that `scan` accepted.
cdef int64_t read_number(const char* at, const char** after) noexcept nogil

# The reply as a Python object; sets `after` past it. Only for text that `scan` accepted.
cdef object build(const char* at, const char** after)

cdef class ReplyError:
    cdef readonly str text

cdef class ReplyDecoder:
    cdef bytes rest
