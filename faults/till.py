"""Simulated buyers who pay: the edge names the provider's page, the buyer clicks there, the provider tells the edge.

Payments have connections of their own, so that a slow provider holds up no order. Some orders are paid twice, some
after they were cancelled, some while they are being cancelled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final
from uuid import UUID

import aiohttp

from devstack.payment_simulator.clicking import click
from faults.history import Attempt, Ending, OrderRequest
from faults.wire import LATER, Wire, judge_payment, order_request

PAYERS: Final = 6
WAITING_MAX: Final = 100  # payments beyond these are not made
TRIES_MAX: Final = 4
TRY_AGAIN_S: Final = 0.3
CLICK_S_MAX: Final = 8.0
# The edge waits for a place and for the provider this long, beyond the deadline of an order.
PATIENCE_S: Final = 7.0


class Manner(Enum):
    """The clicks on the page, in order, and the time of a cancellation."""

    ONCE = auto()
    TWICE = auto()  # a second payment after the first one
    BOTH_AT_ONCE = auto()  # two payments by one click
    LATE = auto()  # between the page and the click the order is cancelled
    RACE = auto()  # the click and a cancellation at the same time

    @property
    def clicks(self) -> Sequence[str]:
        """Buttons of the page."""
        return {Manner.TWICE: ("pay", "pay_twice"), Manner.BOTH_AT_ONCE: ("pay_twice",)}.get(self, ("pay",))


_SHARES: Final = {Manner.ONCE: 55, Manner.TWICE: 10, Manner.BOTH_AT_ONCE: 5, Manner.LATE: 20, Manner.RACE: 10}


@dataclass(slots=True)
class Till:
    """Buyers who pay. `cancel` cancels a request's order over a connection and records the attempt."""

    urls: list[str]
    tokens: Mapping[UUID, str]
    cancel: Callable[[Wire, OrderRequest], Awaitable[Attempt]]
    lag_s: Callable[[], float]
    _waiting: asyncio.Queue[tuple[OrderRequest, Manner] | None] = field(
        default_factory=lambda: asyncio.Queue(WAITING_MAX + PAYERS)
    )
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _going: bool = True
    _browser: aiohttp.ClientSession = field(init=False)

    def start(self) -> None:
        """Start paying. Call within a running loop."""
        self._browser = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=CLICK_S_MAX), cookie_jar=aiohttp.DummyCookieJar()
        )
        self._tasks = [asyncio.create_task(self._work(Wire(self.urls, number))) for number in range(PAYERS)]

    def take(self, request: OrderRequest, rng: random.Random) -> None:
        """An accepted order to pay; dropped if too many wait."""
        (manner,) = rng.choices(list(_SHARES), list(_SHARES.values()))
        if self._going and self._waiting.qsize() < WAITING_MAX:
            self._waiting.put_nowait((request, manner))

    async def stop(self) -> None:
        """End the payments under way; those that wait are not made."""
        self._going = False
        while not self._waiting.empty():
            self._waiting.get_nowait()
        for _ in self._tasks:
            self._waiting.put_nowait(None)
        await asyncio.gather(*self._tasks)
        await self._browser.close()

    async def _work(self, wire: Wire) -> None:
        while (wanted := await self._waiting.get()) is not None:
            await self.pay(wire, *wanted)
        wire.close()

    async def pay(self, wire: Wire, request: OrderRequest, manner: Manner) -> None:
        """Pay an order, if the edge and the provider let the buyer."""
        page = await self._page(wire, request)
        if not page:
            return
        if manner is Manner.LATE:
            await self.cancel(wire, request)
        if manner is Manner.RACE:
            await asyncio.gather(self.cancel(wire, request), self._click(request, page, "pay"))
            return
        for action in manner.clicks:
            await self._click(request, page, action)

    async def _page(self, wire: Wire, request: OrderRequest) -> str:
        """Address of the provider's page; empty if the edge does not tell one."""
        for _ in range(TRIES_MAX):
            attempt = await self.ask(wire, request)
            if attempt.ending is Ending.OK or attempt.code not in (*LATER, "rate_limited", "outcome_unknown"):
                return attempt.payment_url
            if not self._going:
                break
            await asyncio.sleep(TRY_AGAIN_S)
        return ""

    async def ask(self, wire: Wire, request: OrderRequest) -> Attempt:
        """Ask the edge once for the provider's page, and record the attempt."""
        (order_id, *_) = request.order_ids
        path, token = f"/v1/orders/{order_id}/payment", self.tokens[request.user_id]
        attempt = await wire.ask(order_request(wire.host, path, token=token, key=None, body=b""), judge_payment)
        attempt.lag_s, attempt.patience_s = self.lag_s(), PATIENCE_S
        request.payments.append(attempt)
        return attempt

    async def _click(self, request: OrderRequest, page: str, action: str) -> None:
        for _ in range(TRIES_MAX):
            try:
                if await click(self._browser, page, action):
                    request.clicks += 1
                    return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass  # the provider is away: a second click on a paid page pays nothing
            if not self._going:
                return
            await asyncio.sleep(TRY_AGAIN_S)
