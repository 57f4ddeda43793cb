"""Answers of one connection of the direct door: their order, their bytes, and the socket.

Requests of a connection may be answered in any order (pipelining, RFC 9112, section 9.3.2); their answers leave in the
order of the requests. An answer goes to the socket at once. If the socket is full, the transport keeps the rest, and
the connection reads no further request until the peer has read it. The door bounds the bytes of all answers that wait
for their turn or for their peer.
"""

from libc.errno cimport EAGAIN, errno
from libc.string cimport memcpy

from hotpath.batcher cimport monotonic_ns
from hotpath.ids cimport literal, put_decimal

cdef extern from "sys/socket.h":
    ssize_t send(int fd, const void* data, size_t length, int flags) nogil
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

cdef extern from "Python.h":
    object PyBytes_FromStringAndSize(char* text, Py_ssize_t length)
    char* PyBytes_AS_STRING(object text)

cdef enum:
    LINGER_MS = 1000  # after the last answer, for the peer to close

cdef bytes CLOSE = b"connection: close\r\n"
cdef dict REASONS = {
    200: b"OK", 202: b"Accepted", 204: b"No Content", 304: b"Not Modified", 400: b"Bad Request", 401: b"Unauthorized",
    403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict",
    410: b"Gone", 413: b"Content Too Large", 414: b"URI Too Long", 415: b"Unsupported Media Type",
    417: b"Expectation Failed", 422: b"Unprocessable Content", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


cdef class DoorState:
    """The part of a door that its answers need."""


cdef class AnswerQueue:
    """The sending half of a connection."""

    cdef int answer(self, uint64_t number, bytes data) except -1:
        """Send the answer of one request, or keep it until it is its turn."""
        if self.closing:
            return 0
        if number != self.sent + 1:
            if self.early is None:
                self.early = {}
            self.early[number] = data
            self.early_bytes += len(data)
            return self.keep_waiting(len(data))
        self.sent = number
        self.door.unanswered -= 1
        self.write(data)
        while self.early and not self.closing:
            data = self.early.pop(self.sent + 1, None)
            if data is None:
                break
            self.early_bytes -= len(data)
            self.door.waiting_bytes -= len(data)
            self.sent += 1
            self.door.unanswered -= 1
            self.write(data)
        if self.closing:
            return 0
        if self.last and self.sent >= self.last:
            if not self.corked:
                self.end()
        elif self.sent == self.begun and not self.congested:
            self.expect(self.door.idle_ns)
        return 0

    cdef int write(self, bytes data) except -1:
        """Send now, or with the other answers of the same chunk."""
        cdef ssize_t written
        cdef Py_ssize_t length = len(data)
        cdef const char* text = data
        if self.corked:
            if self.cork is None:
                self.cork = []
            self.cork.append(data)
            return 0
        if self.closing or self.fd < 0:
            return 0
        if not self.congested:
            with nogil:
                written = send(self.fd, text, length, MSG_DONTWAIT | MSG_NOSIGNAL)
            if written == length:
                return 0
            if written < 0:
                if errno != EAGAIN:
                    return self.abort()
                written = 0
            data = text[written:length]
        self.transport.write(data)  # calls `pause_writing`, because the transport's limit is 0
        if not self.congested:
            return 0  # the socket had room again
        self.unread_bytes += len(data)
        return self.keep_waiting(len(data))

    cdef int keep_waiting(self, Py_ssize_t length) except -1:
        """Count the bytes of an answer that waits. At the door's bound the connection closes."""
        self.door.waiting_bytes += length
        if self.door.waiting_bytes > self.door.waiting_bytes_max:
            self.door.unread += 1
            self.abort()
        return 0

    cdef int uncork(self) except -1:
        """Send the collected answers."""
        self.corked = False
        if self.cork:
            cork, self.cork = self.cork, None
            self.write(cork[0] if len(cork) == 1 else b"".join(cork))
        if self.last and self.sent >= self.last and not self.closing:
            self.end()
        return 0

    cdef int end(self) except -1:
        """Close after the last answer.

        First only our half: a full close with unread bytes of the peer is a reset, which can destroy the answer before
        the peer reads it (RFC 9112, section 9.6).
        """
        self.closing = True
        if self.fd < 0:
            return 0
        if self.peer_ended:
            self.transport.close()
        elif not self.congested:
            self.linger()
        return 0

    cdef int linger(self) except -1:
        """Close our half, and wait for the peer to close its own."""
        self.expect(LINGER_MS * <int64_t>1000000)
        self.received = 0
        self.transport.write_eof()
        return 0

    cdef int abort(self) except -1:
        """Close at once."""
        self.closing = True
        self.deadline_ns = 0
        if self.fd >= 0:
            self.transport.abort()
        return 0

    cdef int expect(self, int64_t wait_ns) noexcept:
        """Set the deadline; 0: none."""
        self.deadline_ns = monotonic_ns() + wait_ns if wait_ns else 0
        return 0

    cdef int expect_next(self) noexcept:
        """Set the deadline of a connection whose peer reads again."""
        if self.reading:
            return self.expect(self.door.head_ns)
        return self.expect(self.door.idle_ns if self.sent == self.begun else 0)

    def pause_writing(self):
        """The peer does not read its answers: read no more of its requests."""
        self.congested = True
        self.expect(self.door.write_ns)
        if not self.peer_ended and not self.closing:
            self.transport.pause_reading()

    def resume_writing(self):
        """The peer has read everything."""
        self.congested = False
        self.door.waiting_bytes -= self.unread_bytes
        self.unread_bytes = 0
        if self.closing:
            if not self.peer_ended and self.fd >= 0:
                self.linger()
                self.transport.resume_reading()
            return
        self.expect_next()
        if not self.peer_ended:
            self.transport.resume_reading()


cdef bytes head_of(int status, headers):
    """Status line and header lines, except `Connection`."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b""))]
    for name, value in headers:
        if name != "connection":
            lines.append(b"%b: %b\r\n" % (name.encode("ascii"), value.encode("latin-1")))
    return b"".join(lines)


cdef bytes finished(DoorState door, bytes head, bytes body, bint keep):
    """A whole answer with a body: head, date, length, body."""
    cdef char length_text[24]
    cdef int digits = put_decimal(length_text, <uint64_t>len(body))
    cdef Py_ssize_t whole = len(head) + len(door.date) + (0 if keep else len(CLOSE)) + 16 + digits + 4 + len(body)
    cdef bytes text = PyBytes_FromStringAndSize(NULL, whole)
    cdef char* at = PyBytes_AS_STRING(text)
    at = literal(at, head)
    at = literal(at, door.date)
    if not keep:
        at = literal(at, CLOSE)
    at = literal(at, b"content-length: ")
    memcpy(at, length_text, digits)
    at = literal(at + digits, b"\r\n\r\n")
    literal(at, body)
    return text
