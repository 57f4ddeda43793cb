"""Which batcher has which lane of a Redis Cluster."""

from hotpath.batcher cimport Batcher, OrderTaker

cdef class LaneRouter(OrderTaker):
    cdef list batchers
    cdef list owners  # of Batcher, by lane
    cdef dict retired  # counts of batchers that are gone
    cdef bint refusing

    cdef Batcher owner_of(self, int lane)
    cdef int wake(self, Batcher batcher) except -1
