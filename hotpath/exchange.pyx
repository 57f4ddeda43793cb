"""One POST of an order in Granian: a hand-written awaitable, because a coroutine costs more than the work.

    headers -> token -> key -> body (Granian's future) -> lines -> ticket (this object) -> answer

Rare requests (an unknown sale, a body without a length, a stale definition) take the slow path, a coroutine of the
edge. Knows only the methods of Granian's RSGI scope and protocol; performs no I/O of its own.
"""

from libc.string cimport memcpy

from hotpath.batcher cimport monotonic_ns
from hotpath.counters cimport (
    V_BODY_TIMEOUT,
    V_BODY_TOO_LARGE,
    V_BODY_TRUNCATED,
    V_HEADER_REPEATED,
    V_INTERNAL_ERROR,
    V_KEY_MALFORMED,
    V_KEY_MISSING,
    V_MEDIA_TYPE,
    V_STALE,
    V_TOKEN_MISSING,
)
from hotpath.ids cimport UUID_CHARS, put_uuid
from hotpath.order_request cimport is_json_type
from hotpath.sales cimport SaleView

from hotpath.order_request import DEFINITION_STALE, LENGTH_UNKNOWN, SALE_UNKNOWN

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* length) except NULL
    object PyUnicode_New(Py_ssize_t length, Py_UCS4 largest)
    void* PyUnicode_DATA(object text)

cdef enum State:
    NEW
    READING
    WAITING
    ON_SLOW_PATH
    FINISHED

cdef str AUTHORIZATION = "authorization"
cdef str IDEMPOTENCY_KEY = "idempotency-key"
cdef str CONTENT_TYPE = "content-type"
cdef str CONTENT_LENGTH = "content-length"
cdef str CONTENT_ENCODING = "content-encoding"
cdef str JSON_TYPE = "application/json"
cdef tuple JSON_HEADER = ("content-type", "application/json")
cdef tuple REPLAYED_HEADER = ("idempotency-replayed", "true")


cdef class Exchange(OrderRequest):
    """Awaiting it answers the request."""

    def __init__(self, OrderCore core not None, scope, protocol, str sale_id not None, SaleView sale):
        self.core = core
        self.scope = scope
        self.protocol = protocol
        self.asked_sale = sale_id
        self.sale = sale
        self.started_ns = monotonic_ns()

    # ---- the awaitable -----------------------------------------------------------------------------------------

    def __next__(self):
        try:
            waited = self.step()
        except Exception as error:
            self.give_up(error)
        if self.state == FINISHED:
            raise StopIteration
        return waited

    cdef object step(self):
        """Advance without waiting. Returns the future to wait for, unless FINISHED."""
        cdef int reason
        if self.state == ON_SLOW_PATH:
            return self.step_slow_path()
        if self.state == NEW:
            reason = self.open()
            if reason:
                return self.enter_slow_path(reason)
            if self.answered:
                self.state = FINISHED
                return None
            self.state = READING
            self.body_future = self.protocol()
            self.core.bodies[self] = self.started_ns + self.core.body_deadline_ns
            return self.body_future
        if self.state == READING:
            self.core.bodies.pop(self, None)
            future, self.body_future = self.body_future, None
            body = future.result()
            if not self.read_order(body):
                self.state = FINISHED
                return None
            if not self.core.batcher.take(self):
                self.answer_request(self)
                self.state = FINISHED
                return None
            self.state = WAITING
        if not self.ended:
            self.blocking = True
            return self
        if self.outcome == V_STALE:
            return self.enter_slow_path(DEFINITION_STALE)
        self.answer_request(self)
        self.state = FINISHED
        return None

    cdef object enter_slow_path(self, int reason):
        self.state = ON_SLOW_PATH
        self.delegate = self.core.slow_path(self, reason)
        return self.step_slow_path()

    cdef object step_slow_path(self):
        try:
            return self.delegate.send(None)
        except StopIteration:
            self.state = FINISHED
            self.delegate = None

    cdef int give_up(self, error) except -1:
        """Handle an internal error: a typed answer for the client, the traceback for the log."""
        self.state = FINISHED
        self.core.bodies.pop(self, None)
        if not self.answered:
            self.respond_fixed(V_INTERNAL_ERROR)
        self.core.report(error)
        return 0

    def send(self, value):
        """For drivers that do not call `__next__`."""
        return self.__next__()

    def throw(self, kind, value=None, traceback=None):
        """Handle an error of the awaited future, or the cancellation of the task."""
        error = kind if isinstance(kind, BaseException) else (kind() if value is None else value)
        if self.state == ON_SLOW_PATH:
            try:
                return self.delegate.throw(error)
            except Exception as fault:
                if not isinstance(fault, StopIteration):
                    self.give_up(fault)
            self.state = FINISHED
            raise StopIteration
        if self.state == READING and (self.timed_out or isinstance(error, Exception)):
            self.core.bodies.pop(self, None)
            self.body_future = None
            # A truncated body: most likely the client is gone and will not read the answer.
            self.respond_fixed(V_BODY_TIMEOUT if self.timed_out else V_BODY_TRUNCATED)
            self.state = FINISHED
            raise StopIteration
        self.close()
        raise error

    def body_is_late(self):
        """Raise CancelledError in the exchange, and drop the body, so that the connection closes."""
        self.timed_out = True
        self.body_future.cancel()

    def close(self):
        """Stop, because the driver gives up."""
        self.core.bodies.pop(self, None)
        if self.delegate is not None:
            self.delegate.close()

    @property
    def rsgi_protocol(self):
        """Granian's protocol object."""
        return self.protocol

    @property
    def body(self):
        """None: the body is still to be read."""
        return None

    # ---- the steps -----------------------------------------------------------------------------------------------

    cdef int open(self) except -1:
        """Check the headers and answer on a fault. Returns 0, or the reason for the slow path."""
        cdef OrderCore core = self.core
        cdef const char* text
        cdef Py_ssize_t length = 0
        cdef int fault
        headers = self.scope.headers  # each access copies them
        # Refuse duplicates, because another reader may use the other value. `get_all` leaves out values that are not
        # ASCII; `get` shows that the first one is such a value. Granian hides one that follows.
        values = <list>headers.get_all(AUTHORIZATION)
        if len(values) != 1 or headers.get(AUTHORIZATION) is None:
            return self.respond_fixed(V_HEADER_REPEATED if values else V_TOKEN_MISSING)
        text = PyUnicode_AsUTF8AndSize(values[0], &length)
        fault = self.check_token(text, length)
        if fault:
            return self.respond_fixed(fault)
        if self.is_too_fast():
            return 0
        fault = self.read_key(headers)
        if fault:
            return self.respond_fixed(fault)
        values = <list>headers.get_all(CONTENT_TYPE)
        if len(values) > 1 or (values and headers.get(CONTENT_TYPE) is None):
            return self.respond_fixed(V_HEADER_REPEATED)
        media_type = values[0] if values else None
        if (media_type != JSON_TYPE and not is_json_type(media_type)) or CONTENT_ENCODING in headers:
            return self.respond_fixed(V_MEDIA_TYPE)
        self.content_length = parse_length(headers.get(CONTENT_LENGTH))
        if self.content_length > core.body_length_max:
            return self.respond_fixed(V_BODY_TOO_LARGE)
        if self.sale is None:
            return SALE_UNKNOWN
        return LENGTH_UNKNOWN if self.content_length < 0 else 0

    cdef int read_key(self, headers) except -1:
        cdef const char* text
        cdef Py_ssize_t length = 0
        values = <list>headers.get_all(IDEMPOTENCY_KEY)
        if len(values) > 1 or (values and headers.get(IDEMPOTENCY_KEY) is None):
            return V_HEADER_REPEATED
        if not values:
            # `get_all` leaves out a value that is not ASCII.
            return V_KEY_MALFORMED if IDEMPOTENCY_KEY in headers else V_KEY_MISSING
        text = PyUnicode_AsUTF8AndSize(values[0], &length)
        return self.check_key(text, length)

    cdef int send_answer(self, int verdict, answer) except -1:
        self.protocol.response_bytes(answer[0], answer[1], answer[2])
        return 0

    cdef int send_order(self, Ticket ticket, bint replayed) except -1:
        cdef OrderCore core = self.core
        location = PyUnicode_New(len(core.location_prefix) + UUID_CHARS, 127)
        memcpy(PyUnicode_DATA(location), PyUnicode_DATA(core.location_prefix), len(core.location_prefix))
        put_uuid(<char*>PyUnicode_DATA(location) + len(core.location_prefix), ticket.id)
        headers = [JSON_HEADER, ("location", location)]
        if replayed:
            headers.append(REPLAYED_HEADER)
        self.protocol.response_bytes(202, headers, ticket.answer())
        return 0


cdef Py_ssize_t parse_length(text) except -2:
    """Parse Content-Length: -1 without one, a number above every limit when it is malformed."""
    cdef const char* digits
    cdef Py_ssize_t length = 0, value = 0, i
    if text is None:
        return -1
    digits = PyUnicode_AsUTF8AndSize(text, &length)
    for i in range(length):
        if not c"0" <= digits[i] <= c"9" or i == 18:
            return <Py_ssize_t>1 << 62
        value = 10 * value + (digits[i] - c"0")
    return value
