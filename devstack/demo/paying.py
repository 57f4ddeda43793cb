"""The demo's buyers who pay: a share of the accepted orders, some twice, some after their buyer cancelled.

They pay after the rush, at the pace that a few connections give, so that the figures of orders stay comparable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import aiohttp

from devstack.demo.recount import Promise
from devstack.payment_simulator.clicking import click

SHARE: Final = 10  # one order of ten is paid, at most
PAID_MAX: Final = 1500  # orders
LATE_EVERY: Final = 10  # one paid order of ten is cancelled between the page and the click
TWICE_EVERY: Final = 20  # one paid order of twenty is paid a second time
BUYERS: Final = 24  # at once
CALL_S_MAX: Final = 10.0
TRIES_MAX: Final = 5
TRY_AGAIN_S: Final = 0.5


@dataclass(slots=True)
class Payments:
    """What the buyers did and were told. `confirmed`: payments that the provider's page confirmed."""

    orders: int = 0
    late: int = 0
    twice: int = 0
    confirmed: int = 0
    took_s: float = 0.0
    failed: dict[str, int] = field(default_factory=dict)  # requests that failed, by kind and status

    def fail(self, kind: str) -> None:
        """Count a request that failed."""
        self.failed[kind] = self.failed.get(kind, 0) + 1

    @property
    def per_s(self) -> float:
        """Confirmed payments a second."""
        return self.confirmed / self.took_s if self.took_s else 0.0


def pay_some(promises: Sequence[Promise], *, edge_url: str, tokens: Mapping[UUID, str]) -> Payments:
    """Let the buyers of some orders pay. `tokens` by user id."""
    count = min(len(promises) // SHARE, PAID_MAX)
    step = max(1, len(promises) // count) if count else 1
    return asyncio.run(_pay_all(list(promises[::step][:count]), edge_url, tokens))


async def _pay_all(wanted: Sequence[Promise], edge_url: str, tokens: Mapping[UUID, str]) -> Payments:
    done, left, began = Payments(), iter(enumerate(wanted, start=1)), time.monotonic()

    async def buyer(session: aiohttp.ClientSession) -> None:
        for number, promise in left:  # all buyers share the iterator
            await _pay(session, edge_url, promise, tokens[promise.user_id], number, done)

    timeout = aiohttp.ClientTimeout(total=CALL_S_MAX)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
        await asyncio.gather(*(buyer(session) for _ in range(BUYERS)))
    done.took_s = time.monotonic() - began
    return done


async def _pay(
    session: aiohttp.ClientSession, edge_url: str, promise: Promise, token: str, number: int, done: Payments
) -> None:
    order = f"{edge_url}/v1/orders/{promise.order_id}"
    status, answer = await _post(session, f"{order}/payment", token)
    if status != 200:
        done.fail(f"payment {status}")
        return
    done.orders += 1
    actions = ["pay"]
    if number % LATE_EVERY == 0:
        status, _ = await _post(session, f"{order}/cancel", token)
        if status == 200:
            done.late += 1
        else:
            done.fail(f"cancel {status}")
    elif number % TWICE_EVERY == 1:
        actions.append("pay_twice")
        done.twice += 1
    for action in actions:
        if await click(session, answer["payment_url"], action):
            done.confirmed += 1
        else:
            done.fail(f"page: {action}")


async def _post(session: aiohttp.ClientSession, url: str, token: str) -> tuple[int, dict[str, Any]]:
    """Status and document of an answer; a request that is to come later is repeated a few times."""
    status, document = 0, {}
    for _ in range(TRIES_MAX):
        async with session.post(url, headers={"Authorization": f"Bearer {token}"}) as answer:
            status, document = answer.status, await answer.json(content_type=None)
        if status not in (429, 503, 504):
            break
        await asyncio.sleep(TRY_AGAIN_S)
    return status, document
