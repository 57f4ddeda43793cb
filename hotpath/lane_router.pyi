"""Hands each order to the batcher of the node of a Redis Cluster that owns its lane. Performs no I/O."""

from hotpath.batcher import Batcher, OrderTaker

class LaneRouter(OrderTaker):
    """The batchers of all nodes, and which of them has which lane. One event loop owns it."""

    def __init__(self, *, lanes: int, first: Batcher) -> None:
        """`first` has every lane until `move` gives it to another batcher."""

    def add(self, batcher: Batcher) -> None:
        """Take a batcher in, without lanes."""

    def retire(self, batcher: Batcher) -> None:
        """Let a batcher go that has no lane and no order. Its counts stay."""

    def move(self, lane: int, to: Batcher) -> None:
        """Give a lane to another batcher, with its waiting orders. Orders in flight follow when they come back."""

    def owner(self, lane: int) -> Batcher:
        """The batcher that has the lane."""
