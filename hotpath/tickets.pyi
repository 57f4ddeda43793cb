"""One order on its way through Redis, and the body of its 202."""

from collections.abc import Generator, Sequence
from typing import Any

from hotpath.sales import SaleView

class Ticket:
    """One order on its way through Redis. Awaitable once, by one waiter, in the loop that owns the batcher."""

    def __init__(self, sale: SaleView, user_id: bytes, key: str, lines: Sequence[tuple[int, int]]) -> None:
        """`lines`: (SKU index, quantity) in request order."""

    @property
    def verdict(self) -> int:
        """`hotpath.counters.Verdict`; PENDING until the ticket ends."""

    @property
    def argument(self) -> int:
        """The argument of the script's outcome (a wait in ms)."""

    @property
    def order_id(self) -> bytes:
        """16 bytes; the id of the first order when replayed."""

    @property
    def is_replayed(self) -> bool:
        """Whether an earlier request of the client was accepted. Attempts of the edge do not count."""

    def answer_body(self) -> bytes:
        """JSON of the 202. Only for ACCEPTED and REPLAYED."""

    def again(self, sale: SaleView) -> Ticket:
        """The same order for another version of the sale, with the same order id and deadline."""

    def __await__(self) -> Generator[Any, None, int]: ...
