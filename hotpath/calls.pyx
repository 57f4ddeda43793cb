"""One call of `reserve` or `lookup` as RESP. Performs no I/O.

    *<10 + 2g + 5n> EVALSHA <sha> <2 + 2n> state stream (user order)*n
    n g interval burst bound (sale edition)*g (field lines body)*n
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from hotpath.ids cimport ID_BYTES, literal, put_decimal
from hotpath.resp cimport Writer, bulk_head
from hotpath.sales cimport LaneNames, SaleView
from hotpath.tickets cimport Ticket

cdef enum:
    BODY_HEAD_MAX = 16 + 16 + 3 + 1 + 64 + 1
    # One request: two ids in keys (their prefixes are counted apart), the field, the lines, the body, the RESP heads.
    ORDER_BYTES_MAX = 2 * (16 + 2) + 32 + 66 + 32 + 18 + 32 + BODY_HEAD_MAX + 8 * (2 + 5 + 1 + 64)


cdef bytes lane_keys(LaneNames names):
    return _bulk(names.state_key) + _bulk(names.stream_key)


cdef class CallEncoder:
    """Writes script calls with the batcher's settings."""

    def __init__(
        self, *, str reserve_sha, str lookup_sha, int emission_interval_us, int burst, long stream_length_max
    ):
        self.reserve_head = _evalsha(reserve_sha)
        self.lookup_head = _evalsha(lookup_sha)
        self.limits = b"".join(_bulk(b"%d" % n) for n in (emission_interval_us, burst, stream_length_max))

    cdef int put(self, Writer writer, bint lookup, bytes keys, list tickets, list sales) except -1:
        cdef int n = len(tickets)
        cdef int g = len(sales)
        cdef Ticket ticket
        cdef SaleView sale
        cdef LaneNames names
        cdef char* at
        writer.put_head(c"*", 10 + 2 * g + 5 * n)
        writer.put(self.lookup_head if lookup else self.reserve_head)
        at = bulk_number(writer.reserve(64), 2 + 2 * n)
        writer.length = at - writer.start
        writer.put(keys)
        for ticket in tickets:
            names = ticket.sale.lane_for(ticket.user_hash)
            at = writer.reserve(len(names.user_key_head) + len(names.order_key_head) + 2 * (ID_BYTES + 2))
            at = id_key(at, names.user_key_head, ticket.user)
            at = id_key(at, names.order_key_head, ticket.id)
            writer.length = at - writer.start
        at = bulk_number(writer.reserve(64), n)
        at = bulk_number(at, g)
        writer.length = at - writer.start
        writer.put(self.limits)
        for sale in sales:
            writer.put(sale.script_arguments)
        for ticket in tickets:
            self.put_order(writer, ticket)
        return 0

    cdef int put_order(self, Writer writer, Ticket ticket) except -1:
        """Write field, lines and body of one request (`docs/redis-layout.md`, `domain.orders.encode_body`)."""
        cdef char* at = writer.reserve(ORDER_BYTES_MAX)
        cdef SaleView sale = ticket.sale
        cdef bytes part
        cdef Py_ssize_t length
        cdef int i
        at = bulk_head(at, ticket.key_length)
        memcpy(at, ticket.key, ticket.key_length)
        at += ticket.key_length
        at = literal(at, b"\r\n")
        at = bulk_head(at, 1 + 2 * ticket.line_count)
        at[0] = <char>ticket.place
        at += 1
        for i in range(ticket.line_count):
            at[0] = <char>ticket.sku_index[i]
            at[1] = <char>ticket.quantity[i]
            at += 2
        at = literal(at, b"\r\n")
        length = 16 + 16 + 3 + 1 + ticket.key_length + 1
        for i in range(ticket.line_count):
            length += 2 + len(<bytes>sale.entry_items[ticket.sku_index[i]])
        at = bulk_head(at, length)
        memcpy(at, ticket.user, 16)
        memcpy(at + 16, sale.id, 16)
        memcpy(at + 32, sale.currency, 3)
        at[35] = <char>ticket.key_length
        memcpy(at + 36, ticket.key, ticket.key_length)
        at += 36 + ticket.key_length
        at[0] = <char>ticket.line_count
        at += 1
        for i in range(ticket.line_count):
            at[0] = <char>ticket.sku_index[i]
            at[1] = <char>ticket.quantity[i]
            part = <bytes>sale.entry_items[ticket.sku_index[i]]
            at = literal(at + 2, part)
        at = literal(at, b"\r\n")
        writer.length = at - writer.start
        return 0


cdef inline char* bulk_number(char* at, uint64_t number) noexcept nogil:
    """Write a number as a bulk string."""
    cdef char digits[20]
    cdef int count = put_decimal(digits, number)
    at = bulk_head(at, count)
    memcpy(at, digits, count)
    memcpy(at + count, b"\r\n", 2)
    return at + count + 2


cdef inline char* id_key(char* at, bytes head, const uint8_t* sixteen) noexcept:
    """Write a key that ends in an id."""
    at = literal(at, head)
    memcpy(at, sixteen, ID_BYTES)
    memcpy(at + ID_BYTES, b"\r\n", 2)
    return at + ID_BYTES + 2


cdef bytes _bulk(bytes part):
    return b"$%d\r\n%b\r\n" % (len(part), part)


cdef bytes _evalsha(str sha):
    assert len(sha) == 40
    return _bulk(b"EVALSHA") + _bulk(sha.encode("ascii"))
