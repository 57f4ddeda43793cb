"""The direct door: HTTP/1.1 on the worker's own event loop, with the parser of httptools (llhttp).

An order runs from its last byte to its answer without a task, a future or a Python frame:

    data_received -> parser's callbacks -> DirectOrder.begin -> batcher ... settle -> AnswerQueue.answer -> send(2)

Every other request becomes a task of the application that both doors share. Each connection has one deadline: for its
next request, the rest of one, or the peer that does not read.
"""

import asyncio
import re

from httptools import HttpParserInvalidMethodError, HttpParserUpgrade

from libc.string cimport memcmp

from hotpath.answer_queue cimport finished, head_of
from hotpath.batcher cimport monotonic_ns
from hotpath.direct_order cimport DirectOrder

cdef extern from "strings.h":
    int strncasecmp(const char* a, const char* b, size_t length) nogil

cdef enum:
    HEAD_BYTES_MAX = 65536  # request line and headers
    HEADERS_MAX = 100
    TARGET_BYTES_MAX = 8192
    OTHER_BODY_BYTES_MAX = 65536  # of webhooks; the remaining routes read no body
    REQUEST_BYTES_MAX = 262144  # of a request on the wire, framing included
    LINGER_BYTES_MAX = 262144  # that a peer may still send after the last answer
    PIPELINED_MAX = 64  # unanswered requests of a connection; after more of them it closes
    ORDER_TARGET_BYTES = 53
    SWEEP_PARTS = 40  # a sweep looks at this part of the connections
    SLOW_MS = 1000  # a request that takes longer to arrive counts as silence

TRUNCATED = 0  # instead of a status: the body ended early

cdef bytes CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# In place of a body that was not read, so that its route refuses it.
cdef bytes OVERLONG = bytes(OTHER_BODY_BYTES_MAX + 1)
# A request line whose method the parser does not know (RFC 9112, section 3).
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e]{1,8192}) HTTP/1\.[01]\r?\n")


class RequestRefused(Exception):
    """Ends the parse. Carries a status or TRUNCATED; None when the answers that are due are the last ones."""


cdef class Door(DoorState):
    """All connections of one worker. `connection` makes the protocol of a new one."""

    def __init__(
        self,
        *,
        OrderCore core not None,
        make_parser,
        find_sale,
        refuses_orders,
        serve,
        refusal,
        run_slow_path,
        make_room,
        bint with_origins,
        int connections_max,
        int64_t head_ms,
        int64_t idle_ms,
        int64_t write_ms,
        int64_t waiting_bytes_max,
    ):
        self.core = core
        self.make_parser = make_parser
        self.find_sale = find_sale
        self.refuses_orders = refuses_orders
        self.serve = serve
        self.refusal = refusal
        self.run_slow_path = run_slow_path
        self.make_room = make_room
        self.with_origins = with_origins
        self.connections_max = connections_max
        self.head_ns = head_ms * 1000000
        self.body_ns = core.body_deadline_ns
        self.idle_ns = idle_ms * 1000000
        self.write_ns = write_ms * 1000000
        self.waiting_bytes_max = waiting_bytes_max
        self.connections = []
        self.date = b""
        self.fixed = [None if answer is None else head_of(answer[0], answer[1]) for answer in core.fixed_answers]
        self.fixed_bodies = [None if answer is None else answer[2] for answer in core.fixed_answers]

    def connection(self):
        """The protocol of a new connection."""
        cdef Connection connection = Connection.__new__(Connection)
        connection.door = connection.owner = self
        return connection

    def set_date(self, bytes value not None):
        """The value of `Date` from now on."""
        self.date = b"date: %b\r\n" % value

    def drain(self):
        """From now on each answer closes its connection."""
        self.draining = True

    def close(self):
        """Close every connection at once."""
        cdef Connection connection
        for connection in list(self.connections):
            connection.abort()

    def __len__(self):
        return len(self.connections)

    def __iter__(self):
        return iter(list(self.connections))

    def sweep(self, int64_t now_ns):
        """End the wait of connections past their deadline. Looks at a part of them, so that each call is short."""
        cdef Py_ssize_t most = len(self.connections) // SWEEP_PARTS + 1
        cdef Connection connection
        cdef int ended = 0
        while most > 0 and self.connections:
            most -= 1
            if self.cursor >= len(self.connections):
                self.cursor = 0
            connection = <Connection>self.connections[self.cursor]
            self.cursor += 1
            if 0 < connection.deadline_ns <= now_ns:
                connection.late()
                ended += 1
        return ended

    cdef int forget(self, Connection connection) except -1:
        """Remove it from the list; the last one takes its place."""
        cdef Connection last = <Connection>self.connections.pop()
        if last is not connection:
            self.connections[connection.place] = last
            last.place = connection.place
        connection.place = -1
        return 0


cdef class Connection(AnswerQueue):
    """One connection: an asyncio protocol, and the callbacks of its parser."""

    # ---- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport):
        """Begin to read, unless the worker has too many connections."""
        cdef Door door = self.owner
        self.transport = transport
        self.place = self.fd = -1
        peer = transport.get_extra_info("peername")
        is_reset = peer is None
        if is_reset or (len(door.connections) >= door.connections_max and not door.make_room()):
            door.refused += not is_reset
            self.closing = True
            transport.abort()
            return
        door.accepted += 1
        transport.set_write_buffer_limits(0)
        self.fd = transport.get_extra_info("socket").fileno()
        self.host = peer[0]
        self.place = len(door.connections)
        door.connections.append(self)
        self.parser = door.make_parser(self)
        self.expect(door.head_ns)

    def connection_lost(self, error):
        """Answers that are still on their way have no reader any more."""
        self.fd = -1
        self.closing = True
        self.parser = None  # a cycle
        self.early = None
        self.cork = None
        self.release()
        self.door.waiting_bytes -= self.early_bytes + self.unread_bytes
        self.early_bytes = self.unread_bytes = 0
        self.door.unanswered -= <int64_t>(self.begun - self.sent)
        self.sent = self.begun
        if self.place >= 0:
            self.owner.forget(self)

    def data_received(self, bytes data not None):
        """Parse, and start what is complete."""
        cdef uint64_t begun = self.begun
        cdef bint reading = self.reading
        if self.closing:
            self.received += len(data)  # after the last answer
            if self.received > LINGER_BYTES_MAX:
                self.abort()
            return
        if self.last and not self.reading:
            return  # after the last request
        if self.reading:
            self.received += len(data)
            if self.received > REQUEST_BYTES_MAX:
                self.end_reading(413 if self.in_body else 431)
                return
        self.corked = True
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except HttpParserUpgrade as upgrade:
                data = self.without_upgrade() + data[upgrade.args[0]:] if self.reading else b""  # CONNECT is served
            except Exception as error:
                self.parse_failed(error, b"" if reading or self.begun > begun + 1 else data)
                data = b""
        self.uncork()

    def eof_received(self):
        """The peer sends no more: answer the complete requests, then close."""
        self.peer_ended = True
        if self.closing:
            return False
        if self.reading and self.in_body:
            self.end_reading(TRUNCATED)
        elif self.reading:
            self.drop_request()  # a head that broke off gets no answer
        if self.last == 0 or self.last > self.begun:
            self.last = self.begun
        if self.sent >= self.last:
            self.closing = True
            return False
        return True

    def late(self):
        """The deadline is over."""
        if self.congested or self.closing or not self.reading:
            self.door.unread += self.congested
            self.abort()  # a silent connection, or a peer that does not read
            return
        self.end_reading(408)

    cdef int drop_request(self) except -1:
        """Forget the request that is being read."""
        self.reading = False
        self.deadline_ns = 0
        self.begun -= 1
        self.door.unanswered -= 1
        return 0

    cdef bytes without_upgrade(self):
        """The head of a request that offers another protocol, without the offer.

        A server may ignore it (RFC 9110, section 7.8), but the parser has stopped before the body.
        """
        kept = [b"%b %b HTTP/%b" % (
            self.parser.get_method(), self.target, self.parser.get_http_version().encode("ascii")
        )]
        for i in range(0, len(self.headers), 2):
            name, value = self.headers[i], self.headers[i + 1]
            if name.lower() == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip(b" \t").lower() != b"upgrade")
            if name.lower() != b"upgrade":
                kept.append(b"%b: %b" % (name, value))
        self.parser = self.owner.make_parser(self)
        self.drop_request()
        return b"\r\n".join(kept) + b"\r\n\r\n"

    # ---- for the table of addresses ------------------------------------------------------------------------------

    def idle_ms(self, int64_t now_ns):
        """Time without a request, None while one is in progress. A request that arrives slowly is none."""
        cdef int64_t since_ns
        if self.closing or self.congested or self.deadline_ns == 0 or self.begun - self.sent > (1 if self.reading else 0):
            return None
        if self.reading:
            since_ns = self.deadline_ns - (self.door.body_ns if self.in_body else self.door.head_ns)
            return None if now_ns - since_ns < SLOW_MS * <int64_t>1000000 else (now_ns - since_ns) // 1000000
        since_ns = self.deadline_ns - (self.door.idle_ns if self.begun else self.door.head_ns)
        return max(<int64_t>0, (now_ns - since_ns) // 1000000)

    def displace(self, int64_t now_ns):
        """Close at once if it is idle. Whether it was."""
        if self.idle_ms(now_ns) is None:
            return False
        self.abort()
        if self.place >= 0:
            self.owner.forget(self)
        return True

    # ---- the parser's callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self):
        """A request begins."""
        if self.begun - self.sent >= PIPELINED_MAX:
            self.last = self.begun
        if self.last and self.begun >= self.last:
            raise RequestRefused(None)
        self.begun += 1
        self.door.unanswered += 1
        self.reading = True
        self.in_body = False
        self.expect(self.door.head_ns)
        self.target = None
        self.headers = []
        self.authorization = self.key = self.content_type = None
        self.repeated = self.hosts = 0
        self.has_encoding = self.has_origin = self.has_expect = self.has_upgrade = self.has_coding = False
        self.content_length = -1
        self.head_length = self.body_length = self.received = 0
        self.body = b""
        self.parts = None

    def on_url(self, bytes part not None):
        """A part of the request target."""
        self.target = part if self.target is None else self.target + part
        if len(self.target) > TARGET_BYTES_MAX:
            raise RequestRefused(414)

    def on_header(self, bytes name not None, bytes value):
        """One header."""
        cdef Py_ssize_t length = len(name)
        cdef const char* text = name
        if self.in_body:
            raise RequestRefused(400)  # a trailer
        value = b"" if value is None else value.rstrip(b" \t") if value.endswith((b" ", b"\t")) else value
        self.head_length += length + len(value) + 4
        self.headers.append(name)
        self.headers.append(value)
        if self.head_length > HEAD_BYTES_MAX or len(self.headers) > 2 * HEADERS_MAX:
            raise RequestRefused(431)
        if length == 13 and strncasecmp(text, b"authorization", 13) == 0:
            self.repeated |= self.authorization is not None
            self.authorization = value
        elif length == 15 and strncasecmp(text, b"idempotency-key", 15) == 0:
            self.repeated |= self.key is not None
            self.key = value
        elif length == 12 and strncasecmp(text, b"content-type", 12) == 0:
            self.repeated |= self.content_type is not None
            self.content_type = value
        elif length == 14 and strncasecmp(text, b"content-length", 14) == 0:
            self.content_length = parse_length(value)
        elif length == 16 and strncasecmp(text, b"content-encoding", 16) == 0:
            self.has_encoding = True
        elif length == 17 and strncasecmp(text, b"transfer-encoding", 17) == 0:
            if value.lower() != b"chunked":
                raise RequestRefused(400)  # a front server may see another end of the body
            self.has_coding = True
        elif length == 4 and strncasecmp(text, b"host", 4) == 0:
            if not is_host(value):
                raise RequestRefused(400)
            self.hosts += 1
        elif length == 6 and strncasecmp(text, b"origin", 6) == 0:
            self.has_origin = True
        elif length == 6 and strncasecmp(text, b"expect", 6) == 0:
            self.has_expect = True
        elif length == 7 and strncasecmp(text, b"upgrade", 7) == 0:
            self.has_upgrade = True

    def on_headers_complete(self):
        """Refuse requests that cannot be served; allow the body to come."""
        version = <str>self.parser.get_http_version()
        self.is_version_1_0 = version == "1.0"
        if version != "1.1" and not self.is_version_1_0:
            raise RequestRefused(400)
        if self.hosts != 1 and (self.hosts or not self.is_version_1_0):
            raise RequestRefused(400)
        if self.has_coding and self.is_version_1_0:
            raise RequestRefused(400)  # RFC 9112, section 6.1
        self.in_body = True
        self.expect(self.door.body_ns)
        self.body_length_max = self.owner.core.body_length_max if self.is_order() else OTHER_BODY_BYTES_MAX
        if self.content_length > self.body_length_max:
            self.body_is_too_long()
        if self.has_expect:
            for i in range(0, len(self.headers), 2):
                if self.headers[i].lower() == b"expect" and self.headers[i + 1].lower() != b"100-continue":
                    raise RequestRefused(417)
            if self.sent + 1 == self.begun and not self.is_version_1_0:
                self.write(CONTINUE)

    def on_body(self, bytes part not None):
        """A part of the body."""
        self.body_length += len(part)
        if self.body_length > self.body_length_max:
            self.body_is_too_long()
        if self.body_length == len(part):
            self.body = part
            return
        if self.parts is None:
            self.parts = [self.body]
        self.parts.append(part)

    def on_message_complete(self):
        """Serve the request."""
        cdef bint keep = self.parser.should_keep_alive() and not self.owner.draining
        if self.parser.get_method() == b"CONNECT":
            keep = False
        elif self.has_upgrade and self.parser.should_upgrade():
            return  # the request comes again, `without_upgrade`
        if self.parts is not None:
            self.body = b"".join(self.parts)
            self.parts = None
        # A connection of version 1.0 stays open only with a header of its own; it is too rare for one.
        self.complete(keep and not self.is_version_1_0 and self.begun != self.last)

    # ---- reading -------------------------------------------------------------------------------------------------

    cdef int body_is_too_long(self) except -1:
        """Refuse an order. Serve another request without its body, and close instead of reading the rest."""
        if self.is_order():
            raise RequestRefused(413)
        self.body = OVERLONG
        self.complete(False)
        raise RequestRefused(None)

    cdef int complete(self, bint keep) except -1:
        """Serve the request that was read."""
        cdef Door door = self.owner
        self.reading = self.in_body = False
        self.deadline_ns = 0
        self.received = 0
        if not keep:
            self.last = self.begun
        method = self.parser.get_method()
        if (
            self.is_order()
            and method == b"POST"
            and not (door.with_origins and self.has_origin)
            and not door.draining
            and not door.refuses_orders()
        ):
            self.place_order(keep)
        else:
            self.serve(method, keep)
        return self.release()

    cdef int release(self) noexcept:
        """Free the memory of the request: the connection may be idle for long."""
        self.target = self.authorization = self.key = self.content_type = self.body = None
        self.headers = self.parts = None
        return 0

    cdef bint is_order(self) except -1:
        """Whether the target has the form `/v1/sales/{36 characters}/orders`."""
        cdef const char* text
        if self.target is None or len(self.target) != ORDER_TARGET_BYTES:
            return False
        text = self.target
        return memcmp(text, b"/v1/sales/", 10) == 0 and memcmp(text + 46, b"/orders", 7) == 0

    cdef int place_order(self, bint keep) except -1:
        cdef DirectOrder order = DirectOrder.__new__(DirectOrder)
        order.core = self.owner.core
        order.started_ns = monotonic_ns()
        order.answers = self
        order.number = self.begun
        order.keep = keep
        order.body_bytes = self.body
        order.content_length = self.body_length
        try:
            order.asked_sale = self.target[10:46].decode("ascii")
        except UnicodeDecodeError:
            order.asked_sale = ""  # no sale has it
        order.sale = self.owner.find_sale(order.asked_sale)
        return order.begin(self.authorization, self.key, self.content_type, self.repeated, self.has_encoding)

    cdef int serve(self, bytes method, bint keep) except -1:
        """Give a request other than an order to the application."""
        cdef Answer answer = Answer.__new__(Answer)
        answer.connection = self
        answer.number = self.begun
        answer.keep = keep
        answer.body = self.body
        answer.is_head = method == b"HEAD"
        self.owner.serve(answer, method, self.target, self.headers)
        return 0

    def parse_failed(self, error, bytes data not None):
        """Answer a request that is refused before its end, and close: the rest of it cannot be told from the next."""
        reason = error
        while reason is not None and not isinstance(reason, RequestRefused):
            reason = reason.__context__
        if self.closing or (reason is not None and reason.args[0] is None):
            return  # the answers that are due are the last ones
        self.owner.malformed += 1
        if not self.reading:
            if self.last:
                return
            self.begun += 1  # bytes that begin no request
            self.door.unanswered += 1
        line = _REQUEST_LINE.match(data) if isinstance(error, HttpParserInvalidMethodError) else None
        if line is not None and self.sent + 1 == self.begun:
            self.target = line[2]
            self.headers = []
            self.body = b""
            self.reading = False
            self.deadline_ns = 0
            self.last = self.begun
            self.serve(line[1], False)
            return
        self.end_reading(400 if reason is None else reason.args[0])

    def end_reading(self, status):
        """Refuse the request that is being read; it is the last one."""
        self.reading = False
        self.deadline_ns = 0
        self.received = 0
        self.last = self.begun
        self.refuse(status)

    cdef int refuse(self, status) except -1:
        """Answer the latest request with a fixed problem."""
        answer_status, headers, body = self.owner.refusal(status)
        return self.answer(self.begun, finished(self.door, head_of(answer_status, headers), body, False))


cdef class Answer:
    """The answer of one request that the application serves: an RSGI protocol."""

    cdef Connection connection
    cdef uint64_t number
    cdef bint keep
    cdef bint is_head
    cdef bint answered
    cdef bytes body

    def __call__(self):
        """A future with the whole body, as Granian's protocol returns one."""
        future = asyncio.get_running_loop().create_future()
        future.set_result(self.body)
        future._asyncio_future_blocking = True  # for a waiter that yields it as it is
        return future

    async def __aiter__(self):
        """The body in parts, as Granian's protocol gives them: an empty part is the end."""
        if self.body:
            yield self.body
        yield b""

    def response_bytes(self, int status, headers, bytes body not None):
        """Answer with a body."""
        cdef Connection connection = self.connection
        cdef bytes text
        cdef bint keep = self.keep
        if self.answered:
            raise RuntimeError("a request has one answer")
        self.answered = True
        if any(name == "connection" for name, _ in headers):
            if connection.last == 0:
                connection.last = connection.begun  # requests that have begun still get their answers
            keep = keep and connection.last > self.number
        text = finished(connection.door, head_of(status, headers), body, keep)
        if status == 204 or status == 304:
            text = text.replace(b"content-length: 0\r\n", b"", 1)
        connection.answer(self.number, text[: len(text) - len(body)] if self.is_head else text)

    def response_empty(self, int status, headers):
        """Answer without a body."""
        self.response_bytes(status, headers, b"")


cdef bint is_host(bytes value) noexcept:
    """Whether the value of `Host` has only characters of a host and a port (RFC 9112, section 3.2)."""
    cdef unsigned char each
    for each in value:
        if each <= c" " or each >= 0x7F or each in b'"#/<>?@\\^`{|}':
            return False
    return True


cdef Py_ssize_t parse_length(bytes text) except -2:
    """A length that the parser has accepted; a number above every limit when it has too many digits."""
    cdef const char* digits = text
    cdef Py_ssize_t value = 0, i
    if len(text) > 18:
        return <Py_ssize_t>1 << 62
    for i in range(len(text)):
        if not c"0" <= digits[i] <= c"9":
            return <Py_ssize_t>1 << 62
        value = 10 * value + (digits[i] - c"0")
    return value
