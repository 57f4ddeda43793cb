"""The micro-batcher: orders in, script calls out. Sets no timer and performs no I/O.

A batch leaves when the connection has room; orders that arrive meanwhile form the next one.
"""

from collections.abc import Callable, Sequence

from hotpath.resp import Reply
from hotpath.tickets import Ticket

class OrderTaker:
    """Takes orders: the batcher of the only connection, or `hotpath.lane_router.LaneRouter`."""

    clock_offset_ms: int
    """Redis' clock minus the local one. The owner may set it; each batch of a batcher measures it again."""

    def submit(self, ticket: Ticket) -> bool:
        """Queue the order. False when it was refused at once; its verdict gives the reason."""

    def refuse(self, refusing: bool) -> None:
        """While true, new orders are OVERLOADED (Redis memory use is high)."""

    @property
    def queued(self) -> int:
        """Orders that wait for a batch."""

    @property
    def in_flight(self) -> int:
        """Batches without a reply yet."""

    def stats(self) -> dict[str, int]:
        """Counts since the start: batches, orders_sent, lookups_sent, resubmitted, noscript, redirected, unconfirmed,
        error_replies, expired."""

class Batcher(OrderTaker):
    """Queues and batches of one connection. Times are CLOCK_MONOTONIC nanoseconds unless their name says otherwise."""

    def __init__(
        self,
        *,
        reserve: tuple[str, bytes],
        lookup: tuple[str, bytes],
        emission_interval_us: int,
        burst: int,
        stream_length_max: int,
        batch_size_max: int,
        batches_in_flight_max: int,
        queue_length_max: int,
        deadline_ms: int,
        wake: Callable[[], object],
        batch_size_early: int = 0,
        replicas: int = 0,
        replica_wait_ms: int = 0,
        on_redirect: Callable[[int, str], object] | None = None,
    ) -> None:
        """`reserve`, `lookup`: (SHA-1 in hex, source). Calls `wake` once when there is something to write.

        A lone batch leaves at any size; another one when at least `batch_size_early` orders wait (0: a full batch).
        With `replicas`, an order ends when so many replicas have it; after `replica_wait_ms` it is UNKNOWN.
        `on_redirect` gets the lane and the error of a cluster's node (MOVED, ASK, TRYAGAIN, CLUSTERDOWN).
        """

    def release_lane(self, lane: int) -> list[Ticket]:
        """Remove and return the waiting orders of a lane. For `LaneRouter`."""

    def connected(self) -> None:
        """Allow batches to leave from now on."""

    def lost(self) -> None:
        """Put the orders in flight back to the front of their queues, after the connection is lost."""

    def output(self) -> bytes:
        """All batches that may leave now; empty when there are none."""

    def receive(self, chunk: bytes) -> None:
        """Process replies and end their tickets. Raises ProtocolViolation when the connection must be dropped."""

    def settle(self) -> None:
        """Wake the waiters of all ended tickets. Write `output` first, so that Redis works meanwhile."""

    def call(self, parts: Sequence[bytes], on_reply: Callable[[Reply], None]) -> None:
        """Send a command other than a batch. `on_reply` gets its reply, or a ReplyError when the connection is lost."""

    def sweep(self, now_ns: int) -> int:
        """End the orders past their deadline; returns their number."""

    @property
    def is_connected(self) -> bool:
        """Whether batches may leave."""

    def take_error(self) -> str | None:
        """The latest error reply to a batch since the last call, or None. For the log."""
