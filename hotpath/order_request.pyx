"""One POST of an order, whichever server read it: the checks of token, key and body, and the answer by verdict.

A server's part is a subclass: `hotpath.exchange` for Granian, `hotpath.direct` for the direct door. Performs no I/O of
its own.
"""

from libc.string cimport memcpy

from hotpath.batcher cimport monotonic_ns, unix_ms
from hotpath.counters cimport (
    V_ACCEPTED,
    V_BODY_INVALID,
    V_BODY_MALFORMED,
    V_BODY_TRUNCATED,
    V_KEY_MALFORMED,
    V_KEY_MISSING,
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
from hotpath.ids cimport fnv1a_folded, pack_key_in_place
from hotpath.validation cimport Invalid, Lines, examine, parse_key, parse_plain

# Reasons for the slow path.
SALE_UNKNOWN = 1
LENGTH_UNKNOWN = 2
DEFINITION_STALE = 3


cdef class OrderCore:
    """The shared state of all exchanges of a worker."""

    def __init__(
        self,
        *,
        KeyRing ring not None,
        OrderTaker batcher not None,
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
        late = []
        for exchange, deadline_ns in self.bodies.items():
            if <int64_t>deadline_ns > now_ns:
                break
            late.append(exchange)
        for exchange in late:
            del self.bodies[exchange]
            exchange.body_is_late()
        return len(late)

    @property
    def waiting_for_body(self):
        """Exchanges whose body has not arrived yet."""
        return len(self.bodies)


cdef class OrderRequest(Ticket):
    """The checks and the answer of one order."""

    # ---- for the slow path ---------------------------------------------------------------------------------------

    @property
    def sale_id(self):
        """The sale id in the client's spelling."""
        return self.asked_sale

    @property
    def known_sale(self):
        """The view that the worker had when the request came; None when the worker does not know the sale."""
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

    # ---- the checks ----------------------------------------------------------------------------------------------

    cdef int check_token(self, const char* text, Py_ssize_t length) except -1:
        """Read the user from the value of `Authorization`. Returns 0 or a verdict."""
        cdef OrderCore core = self.core
        cdef int64_t now_s
        cdef int fault
        if not is_bearer(text, length):
            return V_TOKEN_MISSING
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
        elif fault == V_TOKEN_INVALID and core.verify_outside is not None:
            fault = self.check_outside(text, length, now_s)
        return fault

    cdef bint is_too_fast(self) except -1:
        """Count the request of the user, before all other work. True when it has been answered.

        Above the rate, the lookup still answers an earlier order under the same key; above the ceiling, no request
        passes.
        """
        cdef OrderCore core = self.core
        cdef int64_t wait_us = core.ceiling.wait_us(self.user_hash, self.started_ns // 1000)
        if wait_us == 0:
            wait_us = core.rates.wait_us(self.user_hash, self.started_ns // 1000)
            if wait_us > 0 and self.sale is not None:
                self.over_rate_ms = wait_us // 1000 + 1
                return False
        if wait_us <= 0:
            return False
        self.respond_with(V_TOO_FAST, core.answer_with_argument(V_TOO_FAST, wait_us // 1000 + 1))
        return True

    cdef int check_outside(self, const char* text, Py_ssize_t length, int64_t now_s) except -1:
        """Read the user from a token of an outside issuer. Returns 0 or a verdict."""
        try:
            token = text[:length].decode("ascii")
        except UnicodeDecodeError:
            return V_TOKEN_INVALID
        found = self.core.verify_outside(token.strip(" "), now_s)
        if type(found) is not bytes:
            return found
        assert len(<bytes>found) == sizeof(self.user)
        memcpy(self.user, <const char*>(<bytes>found), sizeof(self.user))
        self.user_hash = fnv1a_folded(self.user)
        return 0

    cdef int check_key(self, const char* text, Py_ssize_t length) except -1:
        """Read the value of `Idempotency-Key`. Returns 0 or a verdict."""
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

    # ---- the answer ----------------------------------------------------------------------------------------------

    cdef int answer_request(self, Ticket ticket) except -1:
        """Answer with the verdict of an ended ticket."""
        cdef int verdict = ticket.outcome
        cdef OrderCore core = self.core
        if verdict == V_ACCEPTED or verdict == V_REPLAYED:
            self.note(verdict)
            return self.send_order(ticket, verdict == V_REPLAYED)
        if verdict == V_RATE_LIMITED or verdict == V_NOT_OPEN:
            return self.respond_with(verdict, core.answer_with_argument(verdict, ticket.argument))
        if verdict == V_STALE and ticket.may_have_run:
            verdict = V_UNKNOWN  # the script checks staleness before replays, so a lost attempt may have run
        return self.respond_fixed(verdict)

    cdef int respond_fixed(self, int verdict) except -1:
        self.note(verdict)
        return self.send_answer(verdict, self.core.fixed_answers[verdict])

    cdef int respond_with(self, int verdict, answer) except -1:
        self.note(verdict)
        return self.send_answer(-1, answer)

    cdef int note(self, int verdict) except -1:
        """Count the answer and its time."""
        cdef OrderCore core = self.core
        self.answered = True
        core.counters.add(verdict)
        core.counters.record_us((monotonic_ns() - self.started_ns) // 1000)
        if self.sale is not None:
            self.sale.tally.counts[verdict] += 1
        return 0

    cdef int send_answer(self, int verdict, answer) except -1:
        """Send the answer (status, headers, body); of a fixed one the verdict, else -1."""
        raise NotImplementedError

    cdef int send_order(self, Ticket ticket, bint replayed) except -1:
        """Send 202 with the ticket's order."""
        raise NotImplementedError


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
    if kind.strip(" \t") != "application/json":
        return False
    return all(p.strip(" \t") in ("", "charset=utf-8", 'charset="utf-8"') for p in parameters.split(";"))
