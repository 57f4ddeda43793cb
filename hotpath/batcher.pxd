"""Queues of lanes, and batches on the wire."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from hotpath.calls cimport CallEncoder
from hotpath.ids cimport OrderIds
from hotpath.resp cimport Writer
from hotpath.sales cimport LaneNames, SaleView
from hotpath.tickets cimport Ticket

cdef enum:
    NS_PER_MS = 1000000

cdef int64_t monotonic_ns() noexcept nogil
cdef int64_t unix_ms() noexcept nogil

cdef class OrderTaker:
    cdef public int64_t clock_offset_ms  # Redis' clock minus the local one

    cdef bint take(self, Ticket ticket) except -1
    cdef int put_front(self, Ticket ticket) except -1

cdef class LaneQueue:
    cdef readonly int lane
    cdef bytes beat  # RESP: a write that WAIT can wait for
    cdef int64_t hold_until_ns  # 0, or the pause after the node said that the lane's slot moves
    cdef bytes keys  # RESP: the two keys of the lane
    cdef object reserve  # deque of Ticket
    cdef object lookup

cdef class Batch:
    cdef int kind
    cdef LaneQueue lane
    cdef list tickets
    cdef object on_reply
    cdef Batch confirm  # of a reserve batch that waits for replicas: the batch of its WAIT
    cdef list verdicts  # of a batch of WAIT: the verdict of each of its tickets
    cdef bint is_beaten  # of a batch of WAIT: the write before it was answered
    cdef bint is_written  # and the write succeeded

cdef class Batcher(OrderTaker):
    cdef OrderTaker router  # takes orders that must be sent again; None: this batcher
    cdef object on_redirect
    cdef int replicas  # that must have an order before its buyer is told
    cdef bytes wait_command
    cdef Batch confirming  # of the batch whose reply is being processed
    cdef int64_t lanes_held_until_ns
    cdef bytes reserve_source
    cdef bytes lookup_source
    cdef CallEncoder encoder
    cdef int batch_size_max
    cdef int batch_size_early
    cdef int batches_in_flight_max
    cdef int queue_length_max
    cdef int queue_bound[2]  # current bounds, at most queue_length_max; [0] reserve, [1] lookup, as in all pairs below
    cdef int64_t deadline_ns
    cdef object wake
    cdef OrderIds ids
    cdef Writer writer
    cdef dict lanes
    cdef list lane_list
    cdef int last_busy[2]  # place in lane_list of the busy lane with the latest turn
    cdef int last_rest[2]
    cdef int busy_turns[2]  # since the latest turn of a lane with less
    cdef object flight  # deque of Batch, in wire order
    cdef list done
    cdef bytes rest
    cdef int reserve_flight
    cdef int lookup_flight
    cdef int waiting[2]
    cdef bint is_up
    cdef bint is_woken
    cdef bint scripts_missing
    cdef bint refusing
    cdef int64_t hold_until_ns
    cdef uint64_t served[2]  # orders that Redis answered
    cdef uint64_t served_before[2]
    cdef int64_t measured_ns[2]
    cdef double pace[2]  # orders per nanosecond while orders wait; 0: not known
    cdef bint was_empty[2]  # none waited at some moment since the last measurement
    cdef uint64_t sent_batches
    cdef uint64_t sent_orders
    cdef uint64_t sent_lookups
    cdef uint64_t resubmitted
    cdef uint64_t noscript
    cdef uint64_t redirected
    cdef uint64_t unconfirmed
    cdef uint64_t error_replies
    cdef uint64_t expired
    cdef str last_error

    cdef int choose_script(self, Ticket ticket) noexcept
    cdef int enqueue(self, Ticket ticket, bint front) except -1
    cdef int requeue(self, Ticket ticket) except -1
    cdef bint has_room(self, int in_flight, int waiting) noexcept
    cdef int call_wake(self) except -1
    cdef int put_batches(self, bint lookup) except -1
    cdef int next_lane(self, bint lookup, int last, Py_ssize_t least, Py_ssize_t most) except -2
    cdef int bound_queue(self, bint lookup, int64_t now_ns) except -1
    cdef int put_batch(self, LaneQueue lane, object source, bint lookup) except -1
    cdef int put_confirm(self, Batch batch) except -1
    cdef int digest(self, Batch batch, const char* at) except -1
    cdef int decide(self, Ticket ticket, int64_t value) except -1
    cdef int replay(self, Ticket ticket, const uint8_t* record, Py_ssize_t length) except -1
    cdef int refuse_batch(self, Batch batch, str text) except -1
    cdef int redirect(self, Batch batch, str text) except -1
    cdef int promise(self, Ticket ticket, int verdict) except -1
    cdef int digest_confirm(self, Batch batch, const char* at) except -1
    cdef int put_back(self, Batch batch, bint may_have_run) except -1
    cdef int end_ticket(self, Ticket ticket, int verdict) except -1
