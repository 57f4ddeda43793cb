"""One POST of an order from headers to answer, as a hand-written awaitable; what is rare is handed to coroutines."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any

from hotpath.batcher import Batcher, Ticket
from hotpath.counters import Counters
from hotpath.sales import SaleView
from hotpath.tokens import KeyRing

type Answer = tuple[int, list[tuple[str, str]], bytes]

class OrderCore:
    """What every exchange of a worker shares."""

    def __init__(
        self,
        *,
        ring: KeyRing,
        batcher: Batcher,
        counters: Counters,
        fixed_answers: dict[int, Answer],
        answer_with_argument: Callable[[int, int], Answer],
        answer_invalid: Callable[[int, list[tuple[str, str]]], Answer],
        finish_elsewhere: Callable[[Exchange, int], Awaitable[None]],
        location_prefix: str,
        body_length_max: int,
        body_deadline_ms: int,
        local_interval_us: int,
        local_burst: int,
    ) -> None: ...
    def sweep(self, now_ns: int) -> int:
        """Ends the wait for bodies past their deadline; the number ended."""

    @property
    def waiting_for_body(self) -> int: ...

class Exchange(Ticket):
    """Awaiting it answers the request."""

    def __init__(self, core: OrderCore, scope: Any, protocol: Any, sale: SaleView | None) -> None:
        """`sale` None: not known to this worker; the exchange goes on elsewhere once the headers are good."""

    def place_body(self, sale: SaleView, body: bytes) -> bool:
        """Validate and submit; False when it was answered at once."""

    def respond(self, ticket: Ticket) -> None:
        """Answer with the ticket's verdict."""

    def refuse(self, verdict: int) -> None:
        """Answer with a fixed problem."""

    def __await__(self) -> Generator[Any, None, None]: ...
