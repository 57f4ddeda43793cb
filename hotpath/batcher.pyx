"""The micro-batcher of one connection: bytes in, bytes out. Performs no I/O and sets no timer; the owner calls
`sweep`.

A batch leaves when the connection has room; orders that arrive meanwhile form the next one. Orders for SKUs last seen
sold out use the read-only lookup script, in batches, room and a queue bound of their own, so that an order that can be
accepted neither waits behind hopeless ones nor is refused because of them. Replies end tickets; `settle` then wakes
their waiters directly from the caller's stack.

    submit -> queue of the lane -> output -> in flight -> receive -> settle
                 ^ lost connection, NOSCRIPT, LOADING, HAS_STOCK |

With `replicas`, each reserve batch is followed by a write and one WAIT; accepted and repeated orders end with its
reply. The write is necessary: WAIT after reads only returns at once, even when no replica has the order.

In a Redis Cluster each node has a batcher, and `hotpath.lane_router` has them all. When a lane's slot moves, its orders
wait in its queue, and other lanes of the connection go on.
"""

import asyncio
from collections import deque

from libc.string cimport memcmp, memcpy
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from hotpath.calls cimport CallEncoder, lane_keys
from hotpath.counters cimport (
    V_ACCEPTED,
    V_HAS_STOCK,
    V_OVERLOADED,
    V_RATE_LIMITED,
    V_REPLAYED,
    V_SOLD_OUT,
    V_UNAVAILABLE,
    V_UNKNOWN,
)
from hotpath.resp cimport build, read_number, scan
from hotpath.tickets cimport Ticket

from hotpath.resp import ProtocolViolation, ReplyError, encode_command

cdef enum Kind:
    RESERVE
    LOOKUP
    COMMAND
    CONFIRM  # a write, then WAIT: twice in flight, once for each reply

cdef enum:
    OUTCOME_BITS = 4
    OUTCOME_MASK = 15
    RECORD_HEAD = 21  # 16 bytes order id, 5 bytes milliseconds since RECORD_SINCE_MS
    HOLD_MS = 50  # pause after LOADING and similar errors
    BUSY_TURNS_MAX = 15  # turns of lanes with a full batch, or an early one, before a turn of a lane with less
    WAITING_MAX = 2147483647
    MEASURE_MS = 100  # interval of the pace measurement
    REPLY_BYTES_MAX = 1048576

cdef int64_t RECORD_SINCE_MS = 1577836800000  # as in `domain.orders`
# Errors after which the script did not run and may soon run.
_RETRY = ("LOADING", "BUSY", "MASTERDOWN")
# The same, for one lane of a Redis Cluster. ASK needs no ASKING: each order has a new key, so the node that takes over
# the slot would answer TRYAGAIN until it has the whole slot; then the node of before answers MOVED.
_REDIRECTS = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")


# Number of the newest batch of any batcher. Several batchers may share a sale's view, which notes its latest batch.
cdef uint64_t serial = 0


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef int64_t unix_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef class OrderTaker:
    """Takes orders: the batcher of the only connection, or a router to those of the nodes of a cluster."""

    cdef bint take(self, Ticket ticket) except -1:
        raise NotImplementedError

    cdef int put_front(self, Ticket ticket) except -1:
        raise NotImplementedError


cdef class LaneQueue:
    """The orders that wait for one lane."""

    def __cinit__(self, LaneNames names not None):
        self.lane = names.lane
        self.keys = lane_keys(names)
        self.beat = encode_command([b"SET", names.beat_key, b""])
        self.reserve = deque()
        self.lookup = deque()


cdef class Batch:
    """One command on the wire, and its orders."""


cdef class Batcher(OrderTaker):
    """Queues and batches of one connection. One event loop owns it."""

    def __init__(
        self,
        *,
        reserve,
        lookup,
        int emission_interval_us,
        int burst,
        long stream_length_max,
        int batch_size_max,
        int batches_in_flight_max,
        int queue_length_max,
        int deadline_ms,
        wake,
        int batch_size_early=0,
        int replicas=0,
        int replica_wait_ms=0,
        on_redirect=None,
    ):
        assert replicas == 0 or replica_wait_ms > 0  # WAIT 0 has no end
        assert 1 <= batch_size_max <= 64 and batches_in_flight_max >= 1 and queue_length_max >= 1
        self.reserve_source = reserve[1]
        self.lookup_source = lookup[1]
        self.encoder = CallEncoder(
            reserve_sha=reserve[0], lookup_sha=lookup[0], emission_interval_us=emission_interval_us, burst=burst,
            stream_length_max=stream_length_max,
        )
        self.batch_size_max = batch_size_max
        self.batch_size_early = batch_size_early if batch_size_early > 0 else batch_size_max
        self.batches_in_flight_max = batches_in_flight_max
        self.queue_length_max = queue_length_max
        for lookup in range(2):
            self.queue_bound[lookup] = queue_length_max
            self.was_empty[lookup] = True
        self.deadline_ns = <int64_t>deadline_ms * NS_PER_MS
        self.wake = wake
        self.replicas = replicas
        self.wait_command = encode_command([b"WAIT", b"%d" % replicas, b"%d" % replica_wait_ms])
        self.on_redirect = on_redirect
        self.ids = OrderIds()
        self.writer = Writer()
        self.lanes = {}
        self.lane_list = []
        self.flight = deque()
        self.done = []
        self.rest = b""

    # ---- in ----------------------------------------------------------------------------------------------------

    def submit(self, Ticket ticket not None):
        """Queue the order. False when it was refused at once."""
        return self.take(ticket)

    cdef bint take(self, Ticket ticket) except -1:
        assert not ticket.ended and not ticket.in_flight
        self.choose_script(ticket)
        if self.waiting[ticket.by_lookup] >= self.queue_bound[ticket.by_lookup] or self.refusing:
            ticket.end(V_UNKNOWN if ticket.may_have_run else V_OVERLOADED)
            return False
        if ticket.deadline_ns == 0:
            ticket.deadline_ns = monotonic_ns() + self.deadline_ns
        cdef int waiting = self.enqueue(ticket, False)
        if self.is_up and not self.is_woken and self.has_room(
            self.lookup_flight if ticket.by_lookup else self.reserve_flight, waiting
        ):
            self.call_wake()
        return True

    cdef int choose_script(self, Ticket ticket) noexcept:
        """The lookup for an order with a SKU last seen sold out, or above the user's rate; else reserve."""
        cdef int i
        if ticket.by_reserve:
            ticket.by_lookup = False
            return 0
        ticket.by_lookup = ticket.over_rate_ms > 0
        for i in range(ticket.line_count):
            if ticket.sale.sold_out[ticket.sku_index[i]]:
                ticket.by_lookup = True
                break
        return 0

    cdef int enqueue(self, Ticket ticket, bint front) except -1:
        """Queue the order for its script. Returns how many wait for its lane and script."""
        cdef LaneNames names = ticket.sale.lane_for(ticket.user_hash)
        cdef LaneQueue lane = <LaneQueue>self.lanes.get(names.lane)
        if lane is None:
            lane = LaneQueue(names)
            self.lanes[names.lane] = lane
            self.lane_list.append(lane)
        source = lane.lookup if ticket.by_lookup else lane.reserve
        if front:
            source.appendleft(ticket)
        else:
            source.append(ticket)
        self.waiting[ticket.by_lookup] += 1
        return len(source)

    cdef int requeue(self, Ticket ticket) except -1:
        """Queue the order again, in front, at the node that owns its lane now."""
        if self.router is not None:
            return self.router.put_front(ticket)
        return self.put_front(ticket)

    cdef int put_front(self, Ticket ticket) except -1:
        """Queue the order in front. No bound applies: it was admitted once."""
        self.choose_script(ticket)
        return self.enqueue(ticket, True)

    def release_lane(self, int lane):
        """Remove and return the waiting orders of a lane, in order. Those in flight come back with their reply."""
        cdef LaneQueue queue = <LaneQueue>self.lanes.get(lane)
        if queue is None:
            return []
        released = [*queue.reserve, *queue.lookup]
        self.waiting[0] -= len(queue.reserve)
        self.waiting[1] -= len(queue.lookup)
        queue.reserve.clear()
        queue.lookup.clear()
        queue.hold_until_ns = 0
        return released

    cdef bint has_room(self, int in_flight, int waiting) noexcept:
        """A lone batch leaves at any size; another one only when its lane has enough orders for the round trip."""
        return waiting > 0 and (
            in_flight == 0 or (in_flight < self.batches_in_flight_max and waiting >= self.batch_size_early)
        )

    cdef int call_wake(self) except -1:
        self.is_woken = True
        self.wake()
        return 0

    def call(self, parts, on_reply):
        """Send a command other than a batch; `on_reply` gets its reply, or a ReplyError when the connection is lost."""
        cdef Batch batch = Batch.__new__(Batch)
        assert self.is_up
        batch.kind = COMMAND
        batch.on_reply = on_reply
        self.flight.append(batch)
        self.writer.put(encode_command(parts))
        if not self.is_woken:
            self.call_wake()

    def refuse(self, bint refusing):
        """While true, new orders are OVERLOADED."""
        self.refusing = refusing

    # ---- out ---------------------------------------------------------------------------------------------------

    def connected(self):
        """Allow batches to leave, after loading the scripts: this server may not have them."""
        assert not self.is_up
        self.is_up = True
        self.scripts_missing = True
        self.hold_until_ns = 0
        self.call_wake()

    def output(self):
        """All batches that may leave now."""
        cdef int lookup
        self.is_woken = False
        if not self.is_up:
            return b""
        if self.scripts_missing:
            self.scripts_missing = False
            self.call([b"SCRIPT", b"LOAD", self.reserve_source], _check_loaded)
            self.call([b"SCRIPT", b"LOAD", self.lookup_source], _check_loaded)
            self.is_woken = False
        if self.hold_until_ns != 0:
            if monotonic_ns() < self.hold_until_ns:
                return self.writer.take()
            self.hold_until_ns = 0
        self.put_batches(False)
        self.put_batches(True)
        for lookup in range(2):
            if self.waiting[lookup] == 0:
                self.was_empty[lookup] = True
        return self.writer.take()

    cdef int put_batches(self, bint lookup) except -1:
        """Write batches of one kind while there is room.

        Lanes with a full batch go first, in turn. While a batch is on the wire and no lane has a full one, lanes with
        an early batch go. Lanes with less wait for `BUSY_TURNS_MAX` turns of the others, because small batches would
        otherwise take half of the round trips when room is short; the bound limits their delay.
        """
        cdef LaneQueue lane
        cdef int in_flight, busy, rest
        while True:
            in_flight = self.lookup_flight if lookup else self.reserve_flight
            if in_flight >= self.batches_in_flight_max:
                return 0
            busy = self.next_lane(lookup, self.last_busy[lookup], self.batch_size_max, WAITING_MAX)
            rest = self.next_lane(lookup, self.last_rest[lookup], 1, self.batch_size_max - 1)
            if busy < 0 and in_flight > 0:
                busy = self.next_lane(lookup, self.last_busy[lookup], self.batch_size_early, WAITING_MAX)
                if busy < 0:
                    return 0
                rest = self.next_lane(lookup, self.last_rest[lookup], 1, self.batch_size_early - 1)
            if busy >= 0 and (rest < 0 or self.busy_turns[lookup] < BUSY_TURNS_MAX):
                self.busy_turns[lookup] += rest >= 0
                self.last_busy[lookup] = busy
            elif rest >= 0:
                self.busy_turns[lookup] = 0
                self.last_rest[lookup] = busy = rest
            else:
                return 0
            lane = <LaneQueue>self.lane_list[busy]
            self.put_batch(lane, lane.lookup if lookup else lane.reserve, lookup)

    cdef int next_lane(self, bint lookup, int last, Py_ssize_t least, Py_ssize_t most) except -2:
        """Index of the next lane after `last` with `least` to `most` waiting orders; -1 when there is none."""
        cdef int lanes = len(self.lane_list)
        cdef int step, place
        cdef Py_ssize_t waiting
        cdef LaneQueue lane
        for step in range(1, lanes + 1):
            place = (last + step) % lanes
            lane = <LaneQueue>self.lane_list[place]
            waiting = len(lane.lookup if lookup else lane.reserve)
            if least <= waiting <= most and (lane.hold_until_ns == 0 or lane.hold_until_ns <= monotonic_ns()):
                return place
        return -1

    cdef int put_batch(self, LaneQueue lane, object source, bint lookup) except -1:
        """Write one script call with the first orders of the queue, at most a full batch. Returns their number."""
        cdef Batch batch = Batch.__new__(Batch)
        cdef list tickets = []
        cdef list sales = []
        cdef Ticket ticket
        cdef SaleView sale, other
        cdef int64_t now_ms = unix_ms() + self.clock_offset_ms
        cdef int n, place
        global serial
        serial += 1
        while source and len(tickets) < self.batch_size_max:
            ticket = <Ticket>source.popleft()
            if ticket.alone and tickets:
                source.appendleft(ticket)
                break
            sale = ticket.sale
            if sale.batch_serial != serial:
                # Another view of a sale that the batch has already. The same version shares its place; another version
                # waits for the next batch, because a script call must contain a sale once.
                place = 0
                for other in sales:
                    if memcmp(other.id, sale.id, 16) == 0:
                        break
                    place += 1
                if place < len(sales):
                    other = <SaleView>sales[place]
                    if other.epoch != sale.epoch or other.version != sale.version:
                        source.appendleft(ticket)
                        break
                else:
                    sales.append(sale)
                sale.batch_serial = serial
                sale.batch_place = place
            self.waiting[lookup] -= 1
            ticket.place = sale.batch_place
            if not ticket.has_id:
                self.ids.put(ticket.id, now_ms, lane.lane, <int>(ticket.user_hash & 1023))
                ticket.has_id = True
            ticket.in_flight = True
            tickets.append(ticket)
            if ticket.alone:
                break
        self.encoder.put(self.writer, lookup, lane.keys, tickets, sales)
        n = len(tickets)
        batch.kind = LOOKUP if lookup else RESERVE
        batch.lane = lane
        batch.tickets = tickets
        self.flight.append(batch)
        if self.replicas and not lookup:
            self.put_confirm(batch)
        self.sent_batches += 1
        if lookup:
            self.lookup_flight += 1
            self.sent_lookups += n
        else:
            self.reserve_flight += 1
            self.sent_orders += n
        return n

    cdef int put_confirm(self, Batch batch) except -1:
        cdef Batch confirm = Batch.__new__(Batch)
        confirm.kind = CONFIRM
        confirm.lane = batch.lane
        confirm.tickets = []
        confirm.verdicts = []
        batch.confirm = confirm
        self.writer.put(batch.lane.beat)
        self.writer.put(self.wait_command)
        self.flight.append(confirm)
        self.flight.append(confirm)
        return 0

    # ---- back --------------------------------------------------------------------------------------------------

    def receive(self, bytes chunk not None):
        """Process replies. `settle` wakes the waiters: first write the next batches, so that Redis works meanwhile."""
        cdef bytes data = self.rest + chunk if self.rest else chunk
        cdef const char* at = data
        cdef const char* end = at + len(data)
        cdef Py_ssize_t length
        while True:
            length = scan(at, end, 0)
            if length == 0:
                break
            if length < 0 or not self.flight:
                raise ProtocolViolation(f"unexpected reply: {at[: min(end - at, 32)]!r}")
            # Digest before removing: an exception loses the connection, and `lost` must find the batch in flight.
            self.digest(<Batch>self.flight[0], at)
            self.flight.popleft()
            at += length
        self.rest = at[: end - at]
        if len(self.rest) > REPLY_BYTES_MAX:
            raise ProtocolViolation("a reply exceeds its size limit")

    def settle(self):
        """Wake the waiters of all ended tickets."""
        cdef Ticket ticket
        cdef list done = self.done
        cdef int inside_task = -1
        if not done:
            return
        self.done = []
        for ticket in done:
            if ticket.callback is None:
                continue  # a later waiter finds it ended
            if inside_task < 0:
                inside_task = asyncio.current_task() is not None
            ticket.settle(inside_task)

    cdef int digest(self, Batch batch, const char* at) except -1:
        cdef const char* after = NULL
        cdef Ticket ticket
        cdef int64_t number, now_ms
        if batch.kind == COMMAND:
            batch.on_reply(build(at, &after))
            return 0
        if batch.kind == CONFIRM:
            return self.digest_confirm(batch, at)
        if batch.kind == LOOKUP:
            self.lookup_flight -= 1
        elif batch.confirm is None:
            self.reserve_flight -= 1
        self.confirming = batch.confirm
        if at[0] == c"-":
            self.refuse_batch(batch, (<object>build(at, &after)).text)
            return 0
        if at[0] != c"*" or read_number(at, &after) != 1 + len(batch.tickets) or after[0] != c":":
            raise ProtocolViolation("a reply does not have the shape of the script's replies")
        now_ms = read_number(after, &after)
        at = after
        self.served[batch.kind] += len(batch.tickets)
        batch.lane.hold_until_ns = 0
        self.clock_offset_ms = now_ms - unix_ms()
        for ticket in batch.tickets:
            ticket.reserved_at_ms = now_ms
            if at[0] == c":":
                number = read_number(at, &after)
                at = after
                self.decide(ticket, number)
            elif at[0] == c"$":
                number = read_number(at, &after)
                at = after + number + 2
                self.replay(ticket, <const uint8_t*>after, number)
            else:
                raise ProtocolViolation("a reply does not have the shape of the script's replies")
        return 0

    cdef int decide(self, Ticket ticket, int64_t value) except -1:
        """Process an integer reply: argument * 16 + outcome."""
        cdef int outcome = <int>(value & OUTCOME_MASK)
        cdef int i
        ticket.in_flight = False
        if outcome == V_SOLD_OUT and ticket.line_count == 1:
            ticket.sale.sold_out[ticket.sku_index[0]] = 1
        elif outcome == V_HAS_STOCK:
            for i in range(ticket.line_count):
                ticket.sale.sold_out[ticket.sku_index[i]] = 0
        if ticket.ended:
            return 0
        if outcome == V_HAS_STOCK and ticket.over_rate_ms > 0:
            ticket.argument = ticket.over_rate_ms
            return self.end_ticket(ticket, V_RATE_LIMITED)
        if outcome == V_HAS_STOCK:
            self.requeue(ticket)
            return 0
        ticket.argument = value >> OUTCOME_BITS
        if outcome == V_ACCEPTED:
            return self.promise(ticket, outcome)
        return self.end_ticket(ticket, outcome)

    cdef int promise(self, Ticket ticket, int verdict) except -1:
        """End an order that Redis has: at once, or when enough replicas have it."""
        cdef Batch confirm = self.confirming
        if confirm is None:
            return self.end_ticket(ticket, verdict)
        ticket.in_flight = True
        confirm.tickets.append(ticket)
        confirm.verdicts.append(verdict)
        return 0

    cdef int digest_confirm(self, Batch batch, const char* at) except -1:
        """Process the reply to the write, then the one to WAIT: the number of replicas that have the write."""
        cdef const char* after = NULL
        cdef Ticket ticket
        if not batch.is_beaten:
            batch.is_beaten = True
            batch.is_written = at[0] != c"-"
            return 0
        self.reserve_flight -= 1
        if not batch.is_written or at[0] != c":":
            # The slot has moved in between, or the node takes no writes any more: the order is replayed elsewhere.
            return self.put_back(batch, True)
        if read_number(at, &after) >= self.replicas:
            for ticket, verdict in zip(batch.tickets, batch.verdicts):
                ticket.in_flight = False
                if not ticket.ended:
                    self.end_ticket(ticket, verdict)
            return 0
        self.unconfirmed += len(batch.tickets)
        for ticket in batch.tickets:
            ticket.in_flight = False
            if not ticket.ended:
                self.end_ticket(ticket, V_UNKNOWN)
        return 0

    cdef int replay(self, Ticket ticket, const uint8_t* record, Py_ssize_t length) except -1:
        """Process an apply-once record: 16 order id, 5 reserved_at_ms, 2 per line in the order of the first request."""
        cdef int count = <int>((length - RECORD_HEAD) // 2)
        cdef int i
        if length < RECORD_HEAD or (length - RECORD_HEAD) % 2 or count != ticket.line_count:
            raise ProtocolViolation("not an apply-once record")
        for i in range(count):
            if record[RECORD_HEAD + 2 * i] >= ticket.sale.item_count:
                raise ProtocolViolation("not an apply-once record")
        ticket.in_flight = False
        if ticket.ended:
            return 0
        if self.replicas and ticket.by_lookup:
            ticket.by_reserve = True  # the lookup writes nothing: WAIT would not tell whether a replica has the order
            self.requeue(ticket)
            return 0
        for i in range(count):
            ticket.sku_index[i] = record[RECORD_HEAD + 2 * i]
            ticket.quantity[i] = record[RECORD_HEAD + 2 * i + 1]
        # Same id: our own attempt ran and its reply was lost. For the client, this is the first answer.
        ticket.replayed = ticket.replayed or memcmp(ticket.id, record, 16) != 0
        memcpy(ticket.id, record, 16)
        ticket.reserved_at_ms = 0
        for i in range(5):
            ticket.reserved_at_ms = ticket.reserved_at_ms << 8 | record[16 + i]
        ticket.reserved_at_ms += RECORD_SINCE_MS
        return self.promise(ticket, V_REPLAYED if ticket.replayed else V_ACCEPTED)

    cdef int refuse_batch(self, Batch batch, str text) except -1:
        """Process an error reply. The script changed nothing: it checks first and writes afterwards."""
        cdef Ticket ticket
        cdef int verdict
        word = text.partition(" ")[0]
        if word == "NOSCRIPT":
            self.noscript += 1
            self.scripts_missing = True
            return self.put_back(batch, False)
        if word in _REDIRECTS:
            return self.redirect(batch, text)
        self.error_replies += 1
        self.last_error = text
        if word in _RETRY:
            self.hold_until_ns = monotonic_ns() + HOLD_MS * NS_PER_MS
            return self.put_back(batch, False)
        if word == "CORRUPT" and len(batch.tickets) > 1:
            # The damaged record of one buyer must not refuse 63 others: resubmit each order once, in its own batch.
            for ticket in batch.tickets:
                ticket.alone = True
            return self.put_back(batch, False)
        verdict = V_OVERLOADED if word == "OOM" else V_UNAVAILABLE
        for ticket in batch.tickets:
            ticket.in_flight = False
            if not ticket.ended:
                self.end_ticket(ticket, V_UNKNOWN if ticket.may_have_run else verdict)
        return 0

    cdef int redirect(self, Batch batch, str text) except -1:
        """The lane's slot moves, or has moved. The lane waits; the owner may give it to another batcher."""
        self.redirected += 1
        batch.lane.hold_until_ns = monotonic_ns() + HOLD_MS * NS_PER_MS
        self.lanes_held_until_ns = batch.lane.hold_until_ns
        if self.on_redirect is not None:
            self.on_redirect(batch.lane.lane, text)
        return self.put_back(batch, False)

    def lost(self):
        """Put the orders in flight back to the front of their queues; the connection is lost."""
        cdef Batch batch
        self.is_up = False
        self.is_woken = False
        self.rest = b""
        self.writer.length = 0
        flight = self.flight
        self.flight = deque()
        self.reserve_flight = 0
        self.lookup_flight = 0
        self.was_empty[0] = self.was_empty[1] = True  # the next connection has its own pace
        while flight:
            batch = <Batch>flight.pop()
            if batch.kind == COMMAND:
                batch.on_reply(ReplyError("LOST the connection"))
            else:
                self.put_back(batch, True)

    cdef int put_back(self, Batch batch, bint may_have_run) except -1:
        cdef Ticket ticket
        for ticket in reversed(batch.tickets):
            if not ticket.in_flight:
                continue  # answered before the reply that broke the protocol
            ticket.in_flight = False
            if may_have_run:
                ticket.may_have_run = True
            if not ticket.ended:
                self.resubmitted += 1
                self.requeue(ticket)
        return 0

    cdef int end_ticket(self, Ticket ticket, int verdict) except -1:
        ticket.end(verdict)
        self.done.append(ticket)
        return 0

    cdef int bound_queue(self, bint lookup, int64_t now_ns) except -1:
        """Bound the orders that wait for a script to those answered within half a deadline at the script's pace.

        A longer queue gives every order to Redis just before its deadline: all run, and all answers come too late
        (measured: goodput fell to 40 % of the peak). The pace shows the capacity only while orders wait.
        """
        cdef int64_t elapsed_ns = now_ns - self.measured_ns[lookup]
        cdef uint64_t served = self.served[lookup] - self.served_before[lookup]
        cdef double pace, bound
        if elapsed_ns < MEASURE_MS * NS_PER_MS:
            return 0
        if self.was_empty[lookup]:
            self.was_empty[lookup] = self.waiting[lookup] == 0
            self.pace[lookup] = 0
            self.queue_bound[lookup] = self.queue_length_max
        elif served:
            pace = <double>served / elapsed_ns
            self.pace[lookup] = pace if self.pace[lookup] == 0 else 0.7 * self.pace[lookup] + 0.3 * pace
            bound = max(self.pace[lookup] * self.deadline_ns / 2, self.batch_size_max * (self.batches_in_flight_max + 1))
            self.queue_bound[lookup] = <int>min(bound, <double>self.queue_length_max)
        elif elapsed_ns < self.deadline_ns:
            return 0  # a round trip may take longer; and silence does not mean a slow Redis
        self.measured_ns[lookup] = now_ns
        self.served_before[lookup] = self.served[lookup]
        return 0

    def sweep(self, int64_t now_ns):
        """End and settle orders past their deadline, bound the queues, wake the owner when a pause is over."""
        cdef LaneQueue lane
        cdef Batch batch
        cdef Ticket ticket
        cdef int ended = 0
        cdef int lookup
        for lane in self.lane_list:
            for lookup, source in enumerate((lane.reserve, lane.lookup)):
                # Resubmitted orders stand before older ones, so the whole queue must be searched.
                late = [ticket for ticket in source if (<Ticket>ticket).deadline_ns <= now_ns]
                if not late:
                    continue
                kept = [ticket for ticket in source if (<Ticket>ticket).deadline_ns > now_ns]
                source.clear()
                source.extend(kept)
                self.waiting[lookup] -= len(late)
                for ticket in late:
                    if ticket.may_have_run:
                        self.end_ticket(ticket, V_UNKNOWN)
                    else:
                        self.end_ticket(ticket, V_OVERLOADED if self.is_up and not lane.hold_until_ns else V_UNAVAILABLE)
                ended += len(late)
        for batch in self.flight:
            if batch.kind != COMMAND:
                for ticket in batch.tickets:
                    if not ticket.ended and ticket.deadline_ns <= now_ns:
                        self.end_ticket(ticket, V_UNKNOWN)
                        ended += 1
        self.expired += ended
        self.bound_queue(False, now_ns)
        self.bound_queue(True, now_ns)
        if self.is_up and not self.is_woken and self.queued and (
            (self.hold_until_ns and now_ns >= self.hold_until_ns)
            or (self.lanes_held_until_ns and now_ns >= self.lanes_held_until_ns)
        ):
            self.lanes_held_until_ns = 0
            self.call_wake()
        self.settle()
        return ended

    @property
    def queued(self):
        """Orders that wait for a batch of either script."""
        return self.waiting[0] + self.waiting[1]

    @property
    def in_flight(self):
        """Script calls without a reply yet."""
        return self.reserve_flight + self.lookup_flight

    @property
    def is_connected(self):
        """Whether batches may leave."""
        return bool(self.is_up)

    def take_error(self):
        """The latest error reply to a batch since the last call, or None. For the log."""
        taken, self.last_error = self.last_error, None
        return taken

    def stats(self):
        """Counts since the start."""
        return {
            "batches": self.sent_batches,
            "orders_sent": self.sent_orders,
            "lookups_sent": self.sent_lookups,
            "resubmitted": self.resubmitted,
            "noscript": self.noscript,
            "redirected": self.redirected,
            "unconfirmed": self.unconfirmed,
            "error_replies": self.error_replies,
            "expired": self.expired,
        }


def _check_loaded(reply):
    # A lost reply is no error of the server: the next connection loads the scripts again.
    if isinstance(reply, ReplyError) and not reply.text.startswith("LOST"):
        if reply.text.partition(" ")[0] not in _RETRY:
            raise ProtocolViolation(f"Redis did not load a script: {reply.text}")
