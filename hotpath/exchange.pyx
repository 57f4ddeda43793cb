"""One POST of an order, from headers to answer: a hand-written awaitable, because a coroutine costs more than the
work.

    headers -> token -> key -> body (Granian's future) -> lines -> ticket (this object) -> answer

Rare requests (an unknown sale, a body without a length, a stale definition) take the slow path, a coroutine of the
edge. Knows only the methods of Granian's RSGI scope and protocol; performs no I/O of its own.
"""

from libc.string cimport memcpy

from hotpath.batcher cimport monotonic_ns, unix_ms
from hotpath.counters cimport (
    V_ACCEPTED,
    V_BODY_INVALID,
    V_BODY_MALFORMED,
    V_BODY_TIMEOUT,
    V_BODY_TOO_LARGE,
    V_BODY_TRUNCATED,
    V_HEADER_REPEATED,
    V_INTERNAL_ERROR,
    V_KEY_MALFORMED,
    V_KEY_MISSING,
    V_MEDIA_TYPE,
    V_NOT_OPEN,
    V_RATE_LIMITED,
    V_REPLAYED,
    V_SKU_NOT_FOUND,
    V_STALE,
    V_TOKEN_INVALID,
    V_TOKEN_MISSING,
    V_TOO_FAST,
    V_UNKNOWN,
)
from hotpath.ids cimport UUID_CHARS, fnv1a_folded, pack_key_in_place, put_uuid
from hotpath.validation cimport Invalid, Lines, examine, parse_key, parse_plain

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* length) except NULL
    object PyUnicode_New(Py_ssize_t length, Py_UCS4 largest)
    void* PyUnicode_DATA(object text)
    bint PyUnicode_IS_ASCII(object text)

cdef enum State:
    NEW
    READING
    WAITING
    ON_SLOW_PATH
    FINISHED

# Reasons for the slow path.
SALE_UNKNOWN = 1
LENGTH_UNKNOWN = 2
DEFINITION_STALE = 3

cdef str AUTHORIZATION = "authorization"
cdef str IDEMPOTENCY_KEY = "idempotency-key"
cdef str CONTENT_TYPE = "content-type"
cdef str CONTENT_LENGTH = "content-length"
cdef str CONTENT_ENCODING = "content-encoding"
cdef str JSON_TYPE = "application/json"
cdef tuple JSON_HEADER = ("content-type", "application/json")
cdef tuple REPLAYED_HEADER = ("idempotency-replayed", "true")


cdef class OrderCore:
    """The shared state of all exchanges of a worker."""

    def __init__(
        self,
        *,
        KeyRing ring not None,
        Batcher batcher not None,
        Counters counters not None,
        dict fixed_answers not None,
        answer_with_argument,
        answer_invalid,
        slow_path,
        report,
        str location_prefix not None,
        Py_ssize_t body_length_max,
        int64_t body_deadline_ms,
        UserRates rates not None,
        UserRates ceiling not None,
        verify_outside=None,
    ):
        assert location_prefix.isascii()
        self.ring = ring
        self.batcher = batcher
        self.counters = counters
        self.fixed_answers = [fixed_answers.get(verdict) for verdict in range(VERDICTS_MAX)]
        self.answer_with_argument = answer_with_argument
        self.answer_invalid = answer_invalid
        self.slow_path = slow_path
        self.report = report
        self.verify_outside = verify_outside
        self.location_prefix = location_prefix
        self.body_length_max = body_length_max
        self.body_deadline_ns = body_deadline_ms * 1000000
        self.rates = rates
        self.ceiling = ceiling
        self.bodies = {}
        self.claims = Claims.__new__(Claims)

    def sweep(self, int64_t now_ns):
        """End the wait for bodies past their deadline."""
        cdef Exchange exchange
        late = []
        for exchange in self.bodies:
            if exchange.body_deadline > now_ns:
                break
            late.append(exchange)
        for exchange in late:
            del self.bodies[exchange]
            exchange.timed_out = True
            # Raises CancelledError in the exchange, and drops the body, so that the connection closes.
            exchange.body_future.cancel()
        return len(late)

    @property
    def waiting_for_body(self):
        """Exchanges whose body has not arrived yet."""
        return len(self.bodies)


cdef class Exchange(Ticket):
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
            self.body_deadline = self.started_ns + self.core.body_deadline_ns
            self.core.bodies[self] = None
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

    def close(self):
        """Stop, because the driver gives up."""
        self.core.bodies.pop(self, None)
        if self.delegate is not None:
            self.delegate.close()

    # ---- for the slow path ---------------------------------------------------------------------------------------

    @property
    def rsgi_protocol(self):
        """Granian's protocol object."""
        return self.protocol

    @property
    def sale_id(self):
        """The sale id in the client's spelling."""
        return self.asked_sale

    @property
    def known_sale(self):
        """The view from the constructor; None when the worker does not know the sale."""
        return self.sale

    @property
    def has_length(self):
        """Whether the request has a Content-Length."""
        return self.content_length >= 0

    def ticket_for(self, SaleView sale not None, bytes body not None):
        """The order in the body, not submitted yet; None when the request has been answered."""
        self.sale = sale
        return self.copy_for(sale) if self.read_order(body) else None

    def respond(self, Ticket ticket not None):
        """Answer with the ticket's verdict."""
        self.answer_request(ticket)

    def refuse(self, int verdict):
        """Answer with a fixed problem."""
        self.respond_fixed(verdict)

    # ---- the steps ---------------------------------------------------------------------------------------------

    cdef int open(self) except -1:
        """Check the headers and answer on a fault. Returns 0, or the reason for the slow path."""
        cdef OrderCore core = self.core
        cdef const char* text
        cdef Py_ssize_t length = 0
        cdef int64_t now_s, wait_us
        cdef int fault
        headers = self.scope.headers  # each access copies them
        # Refuse duplicates, because another reader may use the other value. `get_all` leaves out values that are not
        # ASCII; `get` shows that the first one is such a value. Granian hides one that follows.
        values = <list>headers.get_all(AUTHORIZATION)
        if len(values) != 1 or headers.get(AUTHORIZATION) is None:
            return self.respond_fixed(V_HEADER_REPEATED if values else V_TOKEN_MISSING)
        authorization = <str>values[0]
        text = PyUnicode_AsUTF8AndSize(authorization, &length)
        if not is_bearer(text, length):
            return self.respond_fixed(V_TOKEN_MISSING)
        text += 7
        length -= 7
        while length > 0 and text[0] == c" ":
            text += 1
            length -= 1
        now_s = (unix_ms() + core.batcher.clock_offset_ms) // 1000
        fault = core.ring.check(text, length, now_s, core.claims)
        if fault == 0:
            memcpy(self.user, core.claims.user, sizeof(self.user))
            self.user_hash = core.claims.user_hash
        else:
            if fault == V_TOKEN_INVALID and core.verify_outside is not None:
                fault = self.check_outside(authorization, now_s)
            if fault:
                return self.respond_fixed(fault)
        # Before all other work: a request counts whatever becomes of it. Above the rate, the lookup still answers an
        # earlier order under the same key; above the ceiling, no request passes.
        wait_us = core.ceiling.wait_us(self.user_hash, self.started_ns // 1000)
        if wait_us == 0:
            wait_us = core.rates.wait_us(self.user_hash, self.started_ns // 1000)
            if wait_us > 0 and self.sale is not None:
                self.over_rate_ms = wait_us // 1000 + 1
                wait_us = 0
        if wait_us > 0:
            return self.respond_with(V_TOO_FAST, core.answer_with_argument(V_TOO_FAST, wait_us // 1000 + 1))
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

    cdef int check_outside(self, str authorization, int64_t now_s) except -1:
        """Read the user from a token of an outside issuer. Returns 0 or a verdict."""
        found = self.core.verify_outside(authorization[7:].strip(" "), now_s)
        if type(found) is not bytes:
            return found
        assert len(<bytes>found) == sizeof(self.user)
        memcpy(self.user, <const char*>(<bytes>found), sizeof(self.user))
        self.user_hash = fnv1a_folded(self.user)
        return 0

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
        self.key_length = parse_key(text, length, self.key)
        if self.key_length > 0:
            self.key_length = pack_key_in_place(self.key, self.key_length)
            return 0
        return V_KEY_MISSING if self.key_length == 0 else V_KEY_MALFORMED

    cdef bint read_order(self, bytes body) except -1:
        """Read the order's lines from the body. False when the request has been answered."""
        cdef OrderCore core = self.core
        cdef Lines lines
        cdef int i, index
        if self.content_length >= 0 and len(body) != self.content_length:
            return self.respond_fixed(V_BODY_TRUNCATED)
        if not parse_plain(body, len(body), &lines):
            parsed = examine(body)
            if type(parsed) is Invalid:
                return self.respond_with(V_BODY_INVALID, core.answer_invalid(V_BODY_INVALID, parsed.errors))
            if type(parsed) is not list:
                return self.respond_with(V_BODY_MALFORMED, core.answer_invalid(V_BODY_MALFORMED, [("", parsed.detail)]))
            kept = [sku.encode("ascii") for sku, _ in parsed]  # owns the memory of the lines
            lines.count = len(kept)
            for i in range(lines.count):
                lines.line[i].sku = <const char*>(<bytes>kept[i])
                lines.line[i].sku_length = len(<bytes>kept[i])
                lines.line[i].quantity = parsed[i][1]
        for i in range(lines.count):
            index = self.sale.find_sku(lines.line[i].sku, lines.line[i].sku_length)
            if index < 0:
                return self.respond_fixed(V_SKU_NOT_FOUND)
            self.sku_index[i] = index
            self.quantity[i] = lines.line[i].quantity
        self.line_count = lines.count
        return True

    cdef int answer_request(self, Ticket ticket) except -1:
        """Answer with the verdict of an ended ticket."""
        cdef int verdict = ticket.outcome
        cdef OrderCore core = self.core
        if verdict == V_ACCEPTED or verdict == V_REPLAYED:
            location = PyUnicode_New(len(core.location_prefix) + UUID_CHARS, 127)
            memcpy(PyUnicode_DATA(location), PyUnicode_DATA(core.location_prefix), len(core.location_prefix))
            put_uuid(<char*>PyUnicode_DATA(location) + len(core.location_prefix), ticket.id)
            headers = [JSON_HEADER, ("location", location)]
            if verdict == V_REPLAYED:
                headers.append(REPLAYED_HEADER)
            self.answered = True
            core.counters.add(verdict)
            core.counters.record_us((monotonic_ns() - self.started_ns) // 1000)
            self.sale.tally.counts[verdict] += 1
            self.protocol.response_bytes(202, headers, ticket.answer())
            return 0
        if verdict == V_RATE_LIMITED or verdict == V_NOT_OPEN:
            return self.respond_with(verdict, core.answer_with_argument(verdict, ticket.argument))
        if verdict == V_STALE and ticket.may_have_run:
            verdict = V_UNKNOWN  # the script checks staleness before replays, so a lost attempt may have run
        return self.respond_fixed(verdict)

    cdef int respond_fixed(self, int verdict) except -1:
        return self.respond_with(verdict, self.core.fixed_answers[verdict])

    cdef int respond_with(self, int verdict, answer) except -1:
        cdef OrderCore core = self.core
        self.answered = True
        core.counters.add(verdict)
        core.counters.record_us((monotonic_ns() - self.started_ns) // 1000)
        if self.sale is not None:
            self.sale.tally.counts[verdict] += 1
        self.protocol.response_bytes(answer[0], answer[1], answer[2])
        return 0


cdef inline bint is_bearer(const char* text, Py_ssize_t length) noexcept nogil:
    """Whether it begins with `Bearer ` in any case (RFC 9110, section 11.1)."""
    return (
        length > 7
        and text[0] | 0x20 == c"b"
        and text[1] | 0x20 == c"e"
        and text[2] | 0x20 == c"a"
        and text[3] | 0x20 == c"r"
        and text[4] | 0x20 == c"e"
        and text[5] | 0x20 == c"r"
        and text[6] == c" "
    )


cdef bint is_json_type(media_type):
    """Whether it is `application/json`, alone or with `charset=utf-8`."""
    if media_type is None:
        return False
    kind, _, parameters = media_type.lower().partition(";")
    if kind.strip(" \t") != JSON_TYPE:
        return False
    return all(p.strip(" \t") in ("", "charset=utf-8", 'charset="utf-8"') for p in parameters.split(";"))


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
