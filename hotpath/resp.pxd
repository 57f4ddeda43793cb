"""RESP2 on C memory: a growing buffer to write commands into, and a scanner for replies."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    REPLY_LENGTH_MAX = 1048576
    ELEMENTS_MAX = 100000

cdef class Writer:
    cdef char* start
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity

    # Makes room; afterwards `length` may be advanced over at most `more` bytes.
    cdef char* reserve(self, Py_ssize_t more) except NULL
    cdef int put(self, bytes data) except -1
    cdef int put_bulk(self, bytes data) except -1
    cdef int put_head(self, char kind, uint64_t number) except -1
    cdef bytes take(self)

# `$<length>\r\n`; the place after it. At most 23 characters.
cdef char* bulk_head(char* at, uint64_t length) noexcept nogil

# Length of the first whole reply at `at`, 0: incomplete, -1: not RESP2 or beyond the bounds.
cdef Py_ssize_t scan(const char* at, const char* end, int depth) noexcept nogil

# The decimal after a reply's first character; `after` is set past its line end. For text that `scan` accepted.
cdef int64_t read_number(const char* at, const char** after) noexcept nogil

# The reply as a Python object; `after` is set past it. For text that `scan` accepted.
cdef object build(const char* at, const char** after)

cdef class ReplyError:
    cdef readonly str text

cdef class ReplyDecoder:
    cdef bytes rest
