"""One POST of an order, independent of the server that read it: checks, and the answer by verdict."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from hotpath.batcher import OrderTaker
from hotpath.counters import Counters
from hotpath.rates import UserRates
from hotpath.sales import SaleView
from hotpath.tickets import Ticket
from hotpath.tokens import KeyRing

Answer: TypeAlias = tuple[int, list[tuple[str, str]], bytes]

SALE_UNKNOWN: int
LENGTH_UNKNOWN: int
DEFINITION_STALE: int
"""Reasons for the slow path."""

class OrderCore:
    """The shared state of all order requests of a worker."""

    def __init__(
        self,
        *,
        ring: KeyRing,
        batcher: OrderTaker,
        counters: Counters,
        fixed_answers: dict[int, Answer],
        answer_with_argument: Callable[[int, int], Answer],
        answer_invalid: Callable[[int, list[tuple[str, str]]], Answer],
        slow_path: Callable[[OrderRequest, int], Coroutine[Any, Any, None]],
        report: Callable[[BaseException], None],
        location_prefix: str,
        body_length_max: int,
        body_deadline_ms: int,
        rates: UserRates,
        ceiling: UserRates,
        verify_outside: Callable[[str, int], bytes | int] | None = None,
    ) -> None:
        """`fixed_answers`: by verdict, for each verdict whose answer has no parameters.

        `answer_with_argument(verdict, wait_ms)`; `answer_invalid(verdict, [(pointer, detail)])`;
        `slow_path(request, reason)` makes the coroutine that answers a rare request; `report` gets internal errors.
        `verify_outside(token, now_s)` gets tokens that no key of the ring signed: 16 bytes of the user, or a verdict.
        """

    def sweep(self, now_ns: int) -> int:
        """End the wait for bodies past their deadline; returns the number ended."""

    @property
    def waiting_for_body(self) -> int: ...

class OrderRequest(Ticket):
    """A subclass for each server sends the answer. An internal error becomes `internal_error`, and is reported."""

    @property
    def rsgi_protocol(self) -> Any:
        """Granian's protocol object. Only of requests whose body is still to be read."""

    @property
    def body(self) -> bytes | None:
        """The whole body; None when it is still to be read."""

    @property
    def sale_id(self) -> str:
        """The sale id in the client's spelling."""

    @property
    def known_sale(self) -> SaleView | None:
        """The view that the worker had when the request came; None when the worker does not know the sale."""

    @property
    def has_length(self) -> bool:
        """Whether the request has a Content-Length."""

    def ticket_for(self, sale: SaleView, body: bytes) -> Ticket | None:
        """The order in the body, not submitted yet; None when the request has been answered."""

    def respond(self, ticket: Ticket) -> None:
        """Answer with the verdict of an ended ticket."""

    def refuse(self, verdict: int) -> None:
        """Answer with a fixed problem."""
