"""One order on its way through Redis, and the body of its 202. Performs no I/O.

A ticket has the interface of an asyncio future, for one waiter: an order needs no separate future or callback object.
"""

import asyncio

cimport cython
from libc.string cimport memcpy

from hotpath.counters cimport V_ACCEPTED, V_PENDING, V_REPLAYED
from hotpath.ids cimport (
    TIMESTAMP_CHARS,
    UUID_CHARS,
    fnv1a_folded,
    literal,
    pack_key_in_place,
    put_decimal,
    put_rfc3339_ms,
    put_uuid,
)
from hotpath.validation cimport QUANTITY_MAX

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

cdef enum:
    ANSWER_BYTES_MAX = 4096


@cython.freelist(256)
cdef class Ticket:
    """One order on its way. Implements the interface of an asyncio future for one waiter."""

    def __init__(self, SaleView sale not None, bytes user_id not None, str key not None, lines):
        raw = key.encode("ascii")
        assert len(user_id) == 16 and 0 < len(raw) <= KEY_LENGTH_MAX and 0 < len(lines) <= LINES_MAX
        self.sale = sale
        memcpy(self.user, <const char*>user_id, 16)
        self.user_hash = fnv1a_folded(self.user)
        memcpy(self.key, <const char*>raw, len(raw))
        self.key_length = pack_key_in_place(self.key, <int>len(raw))
        for place, (index, quantity) in enumerate(lines):
            assert 0 <= index < sale.item_count and 0 < quantity <= QUANTITY_MAX
            self.sku_index[place] = index
            self.quantity[place] = quantity
        self.line_count = len(lines)

    def again(self, SaleView sale not None):
        """The same order for another version of the sale with the same items."""
        assert self.ended and sale.item_count == self.sale.item_count
        return self.copy_for(sale)

    cdef Ticket copy_for(self, SaleView sale):
        cdef Ticket other = Ticket.__new__(Ticket)
        other.sale = sale
        memcpy(other.user, self.user, sizeof(self.user))
        other.user_hash = self.user_hash
        memcpy(other.key, self.key, sizeof(self.key))
        other.key_length = self.key_length
        memcpy(other.sku_index, self.sku_index, sizeof(self.sku_index))
        memcpy(other.quantity, self.quantity, sizeof(self.quantity))
        other.line_count = self.line_count
        other.over_rate_ms = self.over_rate_ms
        other.deadline_ns = self.deadline_ns
        memcpy(other.id, self.id, sizeof(self.id))
        other.has_id = self.has_id
        other.may_have_run = self.may_have_run
        return other

    @property
    def verdict(self):
        """PENDING until the ticket ends."""
        return self.outcome if self.ended else V_PENDING

    @property
    def order_id(self):
        """16 bytes."""
        return (<char*>self.id)[:16]

    @property
    def is_replayed(self):
        """Whether an earlier request of the client was accepted."""
        return bool(self.replayed)

    def answer_body(self):
        """JSON of the 202."""
        assert self.ended and (self.outcome == V_ACCEPTED or self.outcome == V_REPLAYED)
        return self.answer()

    cdef bytes answer(self):
        """`{"order_id": ..., "expires_at": ...}`, members in the order of the contract."""
        cdef char text[ANSWER_BYTES_MAX]
        cdef char* at = text
        cdef SaleView sale = self.sale
        cdef bytes part
        cdef int64_t total = 0
        cdef int i
        at = literal(at, b'{"order_id":"')
        put_uuid(at, self.id)
        at = literal(at + UUID_CHARS, b'","sale_id":"')
        memcpy(at, sale.id_text, UUID_CHARS)
        at = literal(at + UUID_CHARS, b'","status":"reserved","items":[')
        for i in range(self.line_count):
            if i:
                at = literal(at, b",")
            part = <bytes>sale.json_items[self.sku_index[i]]
            at = literal(at, part)
            at += put_decimal(at, self.quantity[i])
            part = <bytes>sale.json_item_tails[self.sku_index[i]]
            at = literal(at, part)
            total += self.quantity[i] * sale.price[self.sku_index[i]]
        at = literal(at, b'],"total_minor":')
        at += put_decimal(at, <uint64_t>total)
        at = literal(at, b',"currency":"')
        memcpy(at, sale.currency, 3)
        at = literal(at + 3, b'","reserved_at":"')
        put_rfc3339_ms(at, self.reserved_at_ms)
        at = literal(at + TIMESTAMP_CHARS, b'","expires_at":"')
        put_rfc3339_ms(at, self.reserved_at_ms + sale.hold_ms)
        at = literal(at + TIMESTAMP_CHARS, b'"}')
        return text[: at - text]

    cdef int end(self, int verdict) except -1:
        self.outcome = verdict
        self.ended = True
        return 0

    cdef int settle(self, bint inside_task) except -1:
        """Wake the waiter: directly, or by the loop when a task is running, because tasks cannot be nested."""
        callback, context = self.callback, self.context
        self.callback = None
        self.context = None
        if inside_task:
            asyncio.get_running_loop().call_soon(callback, self, context=context)
            return 0
        if context is not None:
            PyContext_Enter(context)
        try:
            callback(self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a ticket failed to wake its waiter", "exception": error}
            )
        finally:
            if context is not None:
                PyContext_Exit(context)
        return 0

    # The protocol of futures (asyncio.isfuture looks for `_asyncio_future_blocking`).

    @property
    def _asyncio_future_blocking(self):
        return bool(self.blocking)

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, bint value):
        self.blocking = value

    def get_loop(self):
        """The running loop: tickets belong to one loop."""
        return asyncio.get_running_loop()

    def add_done_callback(self, callback, *, context=None):
        """Call `callback` once with the ticket when it ends. Keeps only one callback."""
        if self.ended:
            asyncio.get_running_loop().call_soon(callback, self, context=context)
            return
        if self.callback is not None:
            raise RuntimeError("a ticket has one waiter")
        self.callback = callback
        self.context = context

    def remove_done_callback(self, callback):
        """Remove the callback; returns how many were removed."""
        if self.callback is None or self.callback != callback:
            return 0
        self.callback = None
        return 1

    def cancel(self, msg=None):
        """Refuse: Redis cannot return an order. The deadline ends the ticket, and then the waiter is cancelled."""
        return False

    def cancelled(self):
        """Always false."""
        return False

    def done(self):
        """Whether the ticket ended."""
        return bool(self.ended)

    def result(self):
        """The verdict."""
        if not self.ended:
            raise asyncio.InvalidStateError("the ticket has not ended")
        return self.outcome

    def exception(self):
        """Always None: every end is a verdict."""
        return None

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self.ended:
            self.blocking = True
            return self
        raise StopIteration(self.outcome)
