"""One POST of an order from headers to answer, as a hand-written awaitable; what is rare is handed to coroutines."""

from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeAlias

from hotpath.batcher import Batcher
from hotpath.counters import Counters
from hotpath.sales import SaleView
from hotpath.tickets import Ticket
from hotpath.tokens import KeyRing

Answer: TypeAlias = tuple[int, list[tuple[str, str]], bytes]

SALE_UNKNOWN: int
LENGTH_UNKNOWN: int
DEFINITION_STALE: int
"""Why an exchange goes on elsewhere."""

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
        finish_elsewhere: Callable[[Exchange, int], Coroutine[Any, Any, None]],
        report: Callable[[BaseException], None],
        location_prefix: str,
        body_length_max: int,
        body_deadline_ms: int,
        local_interval_us: int,
        local_burst: int,
        verify_outside: Callable[[str, int], bytes | int] | None = None,
    ) -> None:
        """`fixed_answers`: by verdict, for each that can happen and is not an order.

        `answer_with_argument(verdict, wait_ms)`; `answer_invalid(verdict, [(pointer, detail)])`;
        `finish_elsewhere(exchange, reason)` makes the coroutine that goes on; `report` gets faults of ours.
        `verify_outside(token, now_s)` is asked about a token that is not by the ring's keys: 16 bytes of the user, or a verdict.
        """

    def sweep(self, now_ns: int) -> int:
        """Ends the wait for bodies past their deadline; the number ended."""

    @property
    def waiting_for_body(self) -> int: ...

class Exchange(Ticket):
    """Awaiting it answers the request. A fault of ours becomes `internal_error` and is reported, never raised."""

    def __init__(self, core: OrderCore, scope: Any, protocol: Any, sale_id: str, sale: SaleView | None) -> None:
        """`sale` None: not known to this worker; the exchange goes on elsewhere once the headers are good."""

    @property
    def rsgi_protocol(self) -> Any:
        """Granian's protocol object."""

    @property
    def sale_id(self) -> str:
        """As the client wrote it."""

    @property
    def known_sale(self) -> SaleView | None:
        """The view it was made with."""

    @property
    def has_length(self) -> bool:
        """Whether the client said how long the body is."""

    def ticket_for(self, sale: SaleView, body: bytes) -> Ticket | None:
        """The order of the body, not submitted yet; None when the request was answered instead."""

    def respond(self, ticket: Ticket) -> None:
        """Answer with the verdict of an ended ticket."""

    def refuse(self, verdict: int) -> None:
        """Answer with a fixed problem."""

    def __await__(self) -> Generator[Any, None, Any]: ...
