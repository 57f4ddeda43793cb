"""RESP2 encoding and decoding. Performs no I/O.

https://redis.io/docs/latest/develop/reference/protocol-spec/

    command  *<n>\\r\\n then n times $<length>\\r\\n<bytes>\\r\\n
    reply    +text\\r\\n | -error\\r\\n | :integer\\r\\n | $<length>\\r\\n<bytes>\\r\\n | $-1\\r\\n
             | *<n>\\r\\n then n replies
"""

from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

from hotpath.ids cimport put_decimal

cdef enum:
    DEPTH_MAX = 4
    DIGITS_MAX = 18  # fits 64 bits without a check


class ProtocolViolation(Exception):
    """The peer's bytes are not RESP2, or a reply exceeds the limits."""


cdef class ReplyError:
    """An error reply, as a value."""

    def __init__(self, str text not None):
        self.text = text

    def __repr__(self):
        return f"ReplyError({self.text!r})"


def encode_command(parts):
    """Encode `parts` as one command."""
    cdef Writer writer = Writer()
    writer.put_head(c"*", len(parts))
    for part in parts:
        writer.put_bulk(part)
    return writer.take()


cdef class Writer:
    """A growing buffer that keeps its memory between commands."""

    def __cinit__(self):
        self.start = NULL
        self.length = 0
        self.capacity = 0

    def __dealloc__(self):
        free(self.start)

    cdef char* reserve(self, Py_ssize_t more) except NULL:
        cdef Py_ssize_t wanted = self.length + more
        cdef char* larger
        if wanted > self.capacity:
            wanted = wanted * 2 if wanted > 4096 else 8192
            larger = <char*>realloc(self.start, wanted)
            if larger == NULL:
                raise MemoryError
            self.start = larger
            self.capacity = wanted
        return self.start + self.length

    cdef int put(self, bytes data) except -1:
        cdef Py_ssize_t length = len(data)
        memcpy(self.reserve(length), <const char*>data, length)
        self.length += length
        return 0

    cdef int put_bulk(self, bytes data) except -1:
        cdef Py_ssize_t length = len(data)
        cdef char* at = self.reserve(length + 32)
        at = bulk_head(at, length)
        memcpy(at, <const char*>data, length)
        memcpy(at + length, b"\r\n", 2)
        self.length = at + length + 2 - self.start
        return 0

    cdef int put_head(self, char kind, uint64_t number) except -1:
        cdef char* at = self.reserve(32)
        at[0] = kind
        at += 1
        at += put_decimal(at, number)
        memcpy(at, b"\r\n", 2)
        self.length = at + 2 - self.start
        return 0

    cdef bytes take(self):
        taken = self.start[: self.length] if self.length else b""
        self.length = 0
        return taken


cdef char* bulk_head(char* at, uint64_t length) noexcept nogil:
    at[0] = c"$"
    at += 1
    at += put_decimal(at, length)
    memcpy(at, b"\r\n", 2)
    return at + 2


cdef Py_ssize_t scan(const char* at, const char* end, int depth) noexcept nogil:
    cdef const char* start = at
    cdef const char* line_end
    cdef int64_t number
    cdef Py_ssize_t part
    cdef char kind
    if at == end:
        return 0
    kind = at[0]
    line_end = <const char*>memchr(at, c"\r", end - at)
    if line_end == NULL or line_end + 1 == end:
        return 0 if end - at <= REPLY_LENGTH_MAX else -1
    if line_end[1] != c"\n":
        return -1
    if kind == c"+" or kind == c"-":
        return line_end + 2 - start
    if (kind != c":" and kind != c"$" and kind != c"*") or not is_number(at + 1, line_end):
        return -1
    if kind == c":":
        return line_end + 2 - start
    number = read_number(at, &at)
    if kind == c"$":
        if number == -1:
            return at - start
        if number < 0 or number > REPLY_LENGTH_MAX:
            return -1
        if end - at < number + 2:
            return 0
        return at + number + 2 - start if at[number] == c"\r" and at[number + 1] == c"\n" else -1
    if number == -1:
        return at - start
    if number < 0 or number > ELEMENTS_MAX or depth == DEPTH_MAX:
        return -1
    while number > 0:
        part = scan(at, end, depth + 1)
        if part <= 0:
            return part
        at += part
        number -= 1
    return at - start


cdef inline bint is_number(const char* at, const char* end) noexcept nogil:
    if at < end and at[0] == c"-":
        at += 1
    if at == end or end - at > DIGITS_MAX:
        return False
    while at < end:
        if not c"0" <= at[0] <= c"9":
            return False
        at += 1
    return True


cdef int64_t read_number(const char* at, const char** after) noexcept nogil:
    cdef int64_t value = 0
    cdef bint negative
    at += 1
    negative = at[0] == c"-"
    if negative:
        at += 1
    while at[0] != c"\r":
        value = 10 * value + (at[0] - c"0")
        at += 1
    after[0] = at + 2
    return -value if negative else value


cdef object build(const char* at, const char** after):
    cdef const char* line_end
    cdef int64_t number
    cdef char kind = at[0]
    if kind == c"+" or kind == c"-":
        line_end = at
        while line_end[0] != c"\r":
            line_end += 1
        after[0] = line_end + 2
        if kind == c"+":
            return at[1 : line_end - at]
        return ReplyError(at[1 : line_end - at].decode("utf-8", "replace"))
    number = read_number(at, &at)
    after[0] = at
    if kind == c":":
        return number
    if number == -1:
        return None
    if kind == c"$":
        after[0] = at + number + 2
        return at[:number]
    replies = []
    while number > 0:
        replies.append(build(at, &at))
        number -= 1
    after[0] = at
    return replies


cdef class ReplyDecoder:
    """Cuts chunks of any size into complete replies."""

    def __cinit__(self):
        self.rest = b""

    def feed(self, bytes chunk not None):
        """The replies that `chunk` completed."""
        cdef bytes data = self.rest + chunk if self.rest else chunk
        cdef const char* at = data
        cdef const char* end = at + len(data)
        cdef Py_ssize_t length
        replies = []
        while True:
            length = scan(at, end, 0)
            if length < 0:
                raise ProtocolViolation(f"not a reply: {at[: min(end - at, 32)]!r}")
            if length == 0:
                break
            replies.append(build(at, &at))
        self.rest = at[: end - at]
        if len(self.rest) > 2 * REPLY_LENGTH_MAX:
            raise ProtocolViolation("a reply exceeds its size limit")
        return replies
