"""The direct door: HTTP/1.1 on the worker's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from hotpath.direct_order import DirectOrder
from hotpath.order_request import Answer as FixedAnswer
from hotpath.order_request import OrderCore
from hotpath.sales import SaleView

TRUNCATED: int
"""Stands for a status: the body ended early."""

class Door:
    """All connections of one worker."""

    accepted: int
    refused: int
    malformed: int
    unanswered: int
    waiting_bytes: int
    unread: int
    """Connections so far; those above the bound; requests that are not HTTP/1.1; requests on their way; bytes of
    answers that wait for their turn or their peer; connections closed because the peer does not read.
    """

    def __init__(
        self,
        *,
        core: OrderCore,
        make_parser: Callable[[Connection], Any],
        find_sale: Callable[[str], SaleView | None],
        refuses_orders: Callable[[], bool],
        serve: Callable[[Answer, bytes, bytes, list[bytes]], None],
        refusal: Callable[[int], FixedAnswer],
        run_slow_path: Callable[[DirectOrder, int], None],
        make_room: Callable[[], bool],
        with_origins: bool,
        connections_max: int,
        head_ms: int,
        idle_ms: int,
        write_ms: int,
        waiting_bytes_max: int,
    ) -> None:
        """`serve(answer, method, target, headers)` gets every request but usual orders; headers are name, value, ...

        `refusal(status)`: the answer for a request that the door refuses itself. `make_room`: called when all places
        are taken; whether one is free now. `with_origins`: `serve` gets orders with `Origin`, too. `head_ms` bounds
        the time of a head, `idle_ms` the time between requests, `write_ms` the time of a peer that does not read;
        `waiting_bytes_max` bounds the answers of all connections that wait for their turn or for such a peer.
        """

    def connection(self) -> asyncio.Protocol:
        """The protocol of a new connection."""

    def set_date(self, value: bytes) -> None:
        """The value of `Date` from now on."""

    def sweep(self, now_ns: int) -> int:
        """End the wait of some connections past their deadline; returns their number. Forty calls see all."""

    def drain(self) -> None:
        """From now on each answer closes its connection."""

    def close(self) -> None:
        """Close every connection at once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Connection]: ...

class Connection:
    """One connection: an asyncio protocol, and the callbacks of its parser."""

    host: str
    """The peer's address."""

    def idle_ms(self, now_ns: int) -> int | None:
        """Time without a request, None while one is in progress. A request that arrives slowly is none."""

    def displace(self, now_ns: int) -> bool:
        """Close at once if it is idle. Whether it was."""

class Answer:
    """The answer of one request that the application serves: an RSGI protocol."""

    def __call__(self) -> Awaitable[bytes]: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer with a body."""

    def response_empty(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Answer without a body."""
