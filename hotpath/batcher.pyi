"""The micro-batcher: orders in, script calls out, no timer and no I/O.

A batch leaves when the connection has room; what arrives meanwhile forms the next one.
"""

from collections.abc import Callable, Sequence

from hotpath.resp import Reply
from hotpath.tickets import Ticket

class Batcher:
    """Queues and batches of one connection. All times are CLOCK_MONOTONIC nanoseconds unless named otherwise."""

    clock_offset_ms: int
    """Redis' clock minus ours: set by whoever asks Redis, and anew by each batch."""

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
    ) -> None:
        """`reserve`, `lookup`: (SHA-1 in hex, source). `wake` is called once when there is something to write.

        A lone batch leaves at any size; a further one when at least `batch_size_early` orders wait (0: a full batch).
        """

    def submit(self, ticket: Ticket) -> bool:
        """Queue it; False when it was refused at once (its verdict tells)."""

    def connected(self) -> None:
        """Batches may leave from now on."""

    def lost(self) -> None:
        """The connection is gone: what was in flight goes back to the front of its queue."""

    def output(self) -> bytes:
        """All batches that may leave now; empty when there are none."""

    def receive(self, chunk: bytes) -> None:
        """Replies; ends tickets. ProtocolViolation when the connection must be dropped."""

    def settle(self) -> None:
        """Wake the waiters of all tickets that ended. Write `output` first: then Redis works meanwhile."""

    def call(self, parts: Sequence[bytes], on_reply: Callable[[Reply], None]) -> None:
        """Send a command of the link's own between batches; ReplyError when the connection is lost."""

    def sweep(self, now_ns: int) -> int:
        """End what is past its deadline; the number ended."""

    def refuse(self, refusing: bool) -> None:
        """While true, new orders are OVERLOADED (Redis' memory is high)."""

    @property
    def is_connected(self) -> bool:
        """Whether batches may leave."""

    @property
    def queued(self) -> int:
        """Orders waiting for a batch."""

    @property
    def in_flight(self) -> int:
        """Batches on the wire."""

    def take_error(self) -> str | None:
        """The last error reply to a batch since the last call, None without one: for the log."""

    def stats(self) -> dict[str, int]:
        """batches, orders_sent, lookups_sent, resubmitted, noscript, error_replies, expired: since the start."""
