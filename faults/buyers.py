"""Simulated buyers: order at a steady pace, repeat requests without a definite answer, and record all attempts.

A closed loop with a pause between two orders, far below the edge's capacity: its rate shows the edge's health.
A seed determines the orders: user, lines, concurrent twins, repetitions, misused keys, cancellations, payments
(`faults.till`), and giving up.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from faults.history import Attempt, Ending, History, Lines, OrderRequest
from faults.till import Till
from faults.wire import LATER, Wire, order_request

HEARTBEAT_S = 0.05
RESOLVE_S_MAX = 30.0
RETRY_S = 0.1
GIVE_UP_SHARE = 0.3  # of requests that were answered "later"


@dataclass(frozen=True, slots=True)
class Habits:
    """Shares of orders that are followed by another request, and the pace.

    The pause is long compared with the time of an answer, so that other load on the machine hardly changes the rate.
    """

    twin: float = 0.06  # the same request at once on another connection
    again: float = 0.05  # the same request once more, after its answer
    misuse: float = 0.03  # the same key with other lines
    cancel: float = 0.06
    pay: float = 0.05  # these are not cancelled as well, except in the manners of `faults.till`
    buyers: int = 40
    pause_s: float = 0.12


@dataclass(slots=True)
class SimulatedBuyers:
    """Buyers at one sale. `tokens` by user id. `urls`: edges, over which buyers are spread evenly; may change."""

    urls: list[str]
    history: History
    tokens: dict[UUID, str]
    skus: Sequence[str]
    rng: random.Random
    habits: Habits = field(default_factory=Habits)
    answered: list[float] = field(default_factory=list)  # times of definite answers
    lag_s: float = 0.0
    _going: bool = True
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _users: list[UUID] = field(default_factory=list)
    _made: int = 0
    till: Till = field(init=False)

    def __post_init__(self) -> None:
        """Make the till, which shares edges and tokens."""
        self.till = Till(self.urls, self.tokens, self._cancel, lambda: self.lag_s)

    def start(self) -> None:
        """Start buying. Call within a running loop."""
        self._users = list(self.tokens)
        self._tasks = [asyncio.create_task(self._feel_lag())]
        self.till.start()
        for number in range(self.habits.buyers):
            rng = random.Random(self.rng.random())  # noqa: S311 - seeded, no secret
            self._tasks.append(
                asyncio.create_task(self._buy(Wire(self.urls, number), Wire(self.urls, number + 1), rng))
            )

    def per_s(self, since: float, until: float) -> float:
        """Definite answers per second."""
        return sum(since <= at < until for at in self.answered) / max(1e-9, until - since)

    def new_wire(self) -> Wire:
        """Another connection to the buyers' edges."""
        return Wire(self.urls, self.rng.randrange(len(self.urls)))

    def note_order(self, user_id: UUID, token: str, key: str, lines: Lines, attempt: Attempt) -> None:
        """Record an attempt at an order from another connection."""
        self.tokens[user_id] = token
        self.history.requests.append(OrderRequest(user_id, key, lines, [attempt]))

    async def stop(self) -> None:
        """Start no new orders; return when open requests are answered or unknown."""
        self._going = False
        await asyncio.gather(*self._tasks)
        await self.till.stop()

    async def resolve(self) -> int:
        """Repeat every request with an unknown outcome, with the same key. Returns how many stayed unknown.

        Call when no attempt is in flight any more.
        """
        deadline = time.monotonic() + RESOLVE_S_MAX
        wire = Wire(self.urls)
        open_requests = [request for request in self.history.requests if _is_open(request)]
        left = 0
        for request in open_requests:
            while _is_open(request) and time.monotonic() < deadline:
                attempt = await self.ask(wire, request)
                attempt.settled = attempt.ending is not Ending.UNKNOWN and attempt.code not in {*LATER, "rate_limited"}
                if not attempt.settled:
                    await asyncio.sleep(RETRY_S)
            left += _is_open(request)
        for request in self.history.requests:
            while request.cancel_ending is Ending.UNKNOWN and time.monotonic() < deadline:
                attempt = await self._cancel(wire, request)
                attempt.settled = attempt.ending is not Ending.UNKNOWN and attempt.code not in LATER
            left += request.cancel_ending is Ending.UNKNOWN
        wire.close()
        return left

    async def _feel_lag(self) -> None:
        """Measure how late this loop runs: that delay of an answer is not the edge's."""
        while self._going:
            before = time.monotonic()
            await asyncio.sleep(HEARTBEAT_S)
            self.lag_s = max(time.monotonic() - before - HEARTBEAT_S, self.lag_s * 0.9)

    async def _buy(self, wire: Wire, second: Wire, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, self.habits.pause_s))
        while self._going:
            await self._order(wire, second, rng)
            await asyncio.sleep(rng.uniform(0.5, 1.5) * self.habits.pause_s)
        wire.close()
        second.close()

    async def _order(self, wire: Wire, second: Wire, rng: random.Random) -> None:
        habits = self.habits
        request = self._new_request(rng)
        await self._insist(wire, request, rng, twin=second if rng.random() < habits.twin else None)
        if request.ending is not Ending.OK:
            return
        if rng.random() < habits.again:
            await self.ask(second, request)
        if rng.random() < habits.misuse:
            other = tuple((sku, quantity + 1) for sku, quantity in request.lines)
            misuse = OrderRequest(request.user_id, request.key, other, misuse=True)
            self.history.requests.append(misuse)
            await self.ask(second, misuse)
        if rng.random() < habits.pay:
            self.till.take(request, rng)
        elif rng.random() < habits.cancel:
            await self._cancel(wire, request)

    def _new_request(self, rng: random.Random) -> OrderRequest:
        user = rng.choice(self._users)
        count = 2 if len(self.skus) > 1 and rng.random() < 0.15 else 1
        lines: Lines = tuple((sku, rng.choice((1, 1, 1, 2))) for sku in rng.sample(self.skus, count))
        self._made += 1
        request = OrderRequest(user, f"k{self._made}-{rng.getrandbits(32):x}", lines)
        self.history.requests.append(request)
        return request

    async def _insist(self, wire: Wire, request: OrderRequest, rng: random.Random, *, twin: Wire | None) -> None:
        """Repeat until a definite answer, the buyer gives up (only after a "later"), or buying stops."""
        while True:
            if twin is not None:
                await asyncio.gather(self.ask(wire, request), self.ask(twin, request))
                twin = None
            else:
                await self.ask(wire, request)
            last = request.attempts[-1]
            if request.ending is Ending.OK or (last.ending is Ending.REFUSED and last.code not in LATER):
                self.answered.append(time.monotonic())
                return
            if not self._going:
                return
            if last.ending is Ending.REFUSED and rng.random() < GIVE_UP_SHARE:
                return
            await asyncio.sleep(rng.uniform(0.5, 1.5) * RETRY_S)

    async def ask(self, wire: Wire, request: OrderRequest) -> Attempt:
        """Make one attempt at an order and record it in the request."""
        body = json.dumps({"items": [{"sku": sku, "quantity": quantity} for sku, quantity in request.lines]}).encode()
        path = f"/v1/sales/{self.history.sale_id}/orders"
        token = self.tokens[request.user_id]
        return await self._note(wire, request.attempts, path, token=token, key=request.key, body=body)

    async def _cancel(self, wire: Wire, request: OrderRequest) -> Attempt:
        (order_id, *_) = request.order_ids
        path = f"/v1/orders/{order_id}/cancel"
        return await self._note(wire, request.cancels, path, token=self.tokens[request.user_id], key=None, body=b"")

    async def _note(
        self, wire: Wire, attempts: list[Attempt], path: str, *, token: str, key: str | None, body: bytes
    ) -> Attempt:
        """Send a request, and record the attempt when it has ended."""
        attempt = await wire.ask(order_request(wire.host, path, token=token, key=key, body=body))
        attempt.lag_s = self.lag_s
        attempts.append(attempt)
        return attempt


def _is_open(request: OrderRequest) -> bool:
    """Whether only another attempt can tell: no OK, and some attempt may have been done."""
    if request.ending is Ending.OK or any(attempt.settled for attempt in request.attempts):
        return False
    return not request.attempts or any(attempt.ending is Ending.UNKNOWN for attempt in request.attempts)
