"""Hands each order to the batcher of the node of a Redis Cluster that owns its lane. Performs no I/O.

    take -> owner of the lane -> its batcher        an order comes back in front of the owner's queue when it must be
              ^ move                                sent again: the owner may be another one by then
"""

from hotpath.batcher cimport Batcher, OrderTaker
from hotpath.tickets cimport Ticket


cdef class LaneRouter(OrderTaker):
    """The batchers of all nodes, and which of them has which lane. One event loop owns it."""

    def __init__(self, *, int lanes, Batcher first not None):
        """`first` has every lane until `move` gives it to another batcher."""
        assert lanes >= 1
        self.batchers = []
        self.retired = {}
        self.add(first)
        self.owners = [first] * lanes

    def add(self, Batcher batcher not None):
        """Take a batcher in, without lanes."""
        batcher.router = self
        batcher.refuse(self.refusing)
        self.batchers.append(batcher)

    def retire(self, Batcher batcher not None):
        """Let a batcher go that has no lane and no order. Its counts stay."""
        assert batcher not in self.owners and not batcher.queued and not batcher.in_flight
        self.batchers.remove(batcher)
        for name, count in batcher.stats().items():
            self.retired[name] = self.retired.get(name, 0) + count

    def move(self, int lane, Batcher to not None):
        """Give a lane to another batcher, with its waiting orders. Orders in flight follow when they come back."""
        cdef Ticket ticket
        assert 0 <= lane < len(self.owners)
        cdef Batcher before = <Batcher>self.owners[lane]
        if before is to:
            return
        self.owners[lane] = to
        for ticket in reversed(before.release_lane(lane)):
            to.put_front(ticket)
        self.wake(to)

    def owner(self, int lane):
        """The batcher that has the lane."""
        return self.owner_of(lane)

    cdef Batcher owner_of(self, int lane):
        # A sale may name a lane that this cluster does not have; any node refuses it.
        return <Batcher>self.owners[lane if 0 <= lane < len(self.owners) else 0]

    cdef int wake(self, Batcher batcher) except -1:
        if batcher.is_up and not batcher.is_woken:
            batcher.call_wake()
        return 0

    def submit(self, Ticket ticket not None):
        """Queue the order. False when it was refused at once."""
        return self.take(ticket)

    cdef bint take(self, Ticket ticket) except -1:
        return self.owner_of(ticket.sale.lane_for(ticket.user_hash).lane).take(ticket)

    cdef int put_front(self, Ticket ticket) except -1:
        cdef Batcher batcher = self.owner_of(ticket.sale.lane_for(ticket.user_hash).lane)
        cdef int waiting = batcher.put_front(ticket)
        self.wake(batcher)
        return waiting

    def refuse(self, bint refusing):
        """While true, new orders are OVERLOADED."""
        self.refusing = refusing
        for batcher in self.batchers:
            batcher.refuse(refusing)

    @property
    def queued(self):
        """Orders that wait for a batch."""
        return sum(batcher.queued for batcher in self.batchers)

    @property
    def in_flight(self):
        """Batches without a reply yet."""
        return sum(batcher.in_flight for batcher in self.batchers)

    def stats(self):
        """Counts since the start, of all batchers."""
        counts = dict(self.retired)
        for batcher in self.batchers:
            for name, count in batcher.stats().items():
                counts[name] = counts.get(name, 0) + count
        return counts
