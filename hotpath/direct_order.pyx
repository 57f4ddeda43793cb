"""One POST of an order at the direct door. The batcher wakes it without a task, a future or a Python frame."""

from libc.string cimport memcmp

from hotpath.answer_queue cimport DoorState, finished, head_of
from hotpath.counters cimport V_HEADER_REPEATED, V_INTERNAL_ERROR, V_KEY_MISSING, V_MEDIA_TYPE, V_STALE, V_TOKEN_MISSING
from hotpath.ids cimport UUID_CHARS, literal, put_uuid
from hotpath.order_request cimport is_json_type
from hotpath.tickets cimport Ticket

from hotpath.order_request import DEFINITION_STALE, SALE_UNKNOWN

cdef enum:
    HEAD_BYTES_MAX = 512

cdef bytes ACCEPTED_HEAD = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\nlocation: /v1/orders/"
cdef bytes REPLAYED = b"idempotency-replayed: true\r\n"


cdef class DirectOrder(OrderRequest):
    """The body is whole when the order begins."""

    cdef int begin(
        self, bytes authorization, bytes key, bytes content_type, bint repeated, bint has_encoding
    ) except -1:
        """Check the request, and hand it to the batcher. Answers at once on a fault. Never raises."""
        try:
            if not self.check_headers(authorization, key, content_type, repeated, has_encoding):
                return 0
            if self.sale is None:
                self.answers.door.run_slow_path(self, SALE_UNKNOWN)
            elif self.read_order(self.body_bytes):
                if self.core.batcher.take(self):
                    self.callback = True  # the batcher calls `settle` only for a ticket with a waiter
                else:
                    self.answer_request(self)
        except Exception as error:
            self.give_up(error)
        return 0

    cdef int check_headers(
        self, bytes authorization, bytes key, bytes content_type, bint repeated, bint has_encoding
    ) except -1:
        """1 when all is well, 0 when the request has been answered."""
        cdef int fault
        if repeated:
            return self.respond_fixed(V_HEADER_REPEATED)
        if authorization is None:
            return self.respond_fixed(V_TOKEN_MISSING)
        fault = self.check_token(authorization, len(authorization))
        if fault:
            return self.respond_fixed(fault)
        if self.is_too_fast():
            return 0
        fault = V_KEY_MISSING if key is None else self.check_key(key, len(key))
        if fault == 0 and (has_encoding or not is_plain_json(content_type)):
            fault = V_MEDIA_TYPE
        if fault:
            return self.respond_fixed(fault)
        return 1

    @property
    def body(self):
        """The whole body, for the slow path."""
        return self.body_bytes

    cdef int settle(self, bint inside_task) except -1:
        self.callback = None
        try:
            self.finish()
        except Exception as error:
            self.give_up(error)
        return 0

    cdef int finish(self) except -1:
        if self.outcome == V_STALE:
            self.answers.door.run_slow_path(self, DEFINITION_STALE)
            return 0
        return self.answer_request(self)

    def give_up(self, error):
        """Handle an internal error: a typed answer for the client, the traceback for the log."""
        if not self.answered:
            self.respond_fixed(V_INTERNAL_ERROR)
        self.core.report(error)

    cdef int send_answer(self, int verdict, answer) except -1:
        cdef DoorState door = self.answers.door
        cdef bytes head, body
        if verdict >= 0:
            head = <bytes>door.fixed[verdict]
            body = <bytes>door.fixed_bodies[verdict]
        else:
            head = head_of(answer[0], answer[1])
            body = <bytes>answer[2]
        return self.answers.answer(self.number, finished(door, head, body, self.keep))

    cdef int send_order(self, Ticket ticket, bint replayed) except -1:
        cdef char text[HEAD_BYTES_MAX]
        cdef char* at = literal(text, ACCEPTED_HEAD)
        put_uuid(at, ticket.id)
        at = literal(at + UUID_CHARS, b"\r\n")
        if replayed:
            at = literal(at, REPLAYED)
        return self.answers.answer(
            self.number, finished(self.answers.door, text[: at - text], ticket.answer(), self.keep)
        )


cdef bint is_plain_json(bytes media_type) except -1:
    if media_type is None:
        return False
    if len(media_type) == 16 and memcmp(<const char*>media_type, b"application/json", 16) == 0:
        return True
    return is_json_type(media_type.decode("latin-1"))
