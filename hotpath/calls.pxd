"""One call of `reserve` or `lookup` as RESP."""

from hotpath.resp cimport Writer
from hotpath.sales cimport LaneNames
from hotpath.tickets cimport Ticket

# RESP: the two keys of a lane.
cdef bytes lane_keys(LaneNames names)

cdef class CallEncoder:
    cdef bytes reserve_head  # RESP: EVALSHA and the hash
    cdef bytes lookup_head
    cdef bytes limits  # RESP: interval, burst, bound of the stream

    # The orders of one lane; `place` of a ticket is the index of its sale in `sales`.
    cdef int put(self, Writer writer, bint lookup, bytes keys, list tickets, list sales) except -1
    cdef int put_order(self, Writer writer, Ticket ticket) except -1
