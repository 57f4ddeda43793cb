"""Delivers webhooks to the shop: signed, over connections that stay open, repeated for days until it answers 2xx.

The books are the queue. A part of the due webhooks is in memory; results are stored in batches. A process that is
killed sends webhooks again that the shop acknowledged a moment before: every shop must cope with that.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Final

import aiohttp
import structlog
from prometheus_client import Counter as Metric
from yarl import URL

from devstack.payment_simulator.behaviour import Behaviour
from devstack.payment_simulator.books import Books, Delivery
from payments.providers import signatures
from runtime.process import tasks
from runtime.process.backoff import Backoff
from runtime.process.supervision import TaskSupervisor

SENDERS: Final = 32
IN_MEMORY_MAX: Final = 256
CALL_S_MAX: Final = 10.0
ANSWER_BYTES_MAX: Final = 65_536
STORE_AFTER_S: Final = 0.02
LOOK_S_MAX: Final = 1.0  # between looks for webhooks that are due
DOWN_LOOK_S: Final = 0.1
RETRY_S_FIRST: Final = 0.2
RETRY_S_MAX: Final = 5.0
OLD_ATTEMPTS: Final = 60  # after about five minutes
OLD_RETRY_S: Final = 60.0
ATTEMPTS_MAX: Final = OLD_ATTEMPTS + 3 * 24 * 60  # after about three days a webhook is given up
UNREACHABLE_S_MAX: Final = 1.0  # a sender's longest pause while nothing listens at the shop's address

SENT = Metric("payment_simulator_webhooks", "Webhooks sent, by the status of the answer.", ["status"])

log = structlog.get_logger()


def retry_delay_s(attempts: int, *, jitter: float) -> float:
    """Delay after an attempt that failed, `attempts` before it. `jitter` from 0 to 1 takes off up to a half."""
    whole = OLD_RETRY_S if attempts >= OLD_ATTEMPTS else min(RETRY_S_MAX, RETRY_S_FIRST * 2.0 ** min(attempts, 20))
    return whole * (1 - jitter / 2)


class Deliverer:
    """Sends the webhooks of the books."""

    def __init__(
        self, books: Books, *, url: str, secret: bytes, behaviour: Callable[[], Behaviour], now_ms: Callable[[], int]
    ) -> None:
        """`url` is the shop's address for webhooks."""
        self._books = books
        self._url = URL(url)
        self._secret = secret
        self._behaviour = behaviour
        self._now_ms = now_ms
        self._ready: asyncio.Queue[Delivery] = asyncio.Queue(IN_MEMORY_MAX)
        self._taken: set[int] = set()  # in memory, on their way, or not stored yet; at most IN_MEMORY_MAX
        self._delivered: list[int] = []  # or given up
        self._postponed: list[tuple[int, int]] = []
        self._storing: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._rng = random.Random()  # noqa: S311 - no secret
        self.sent: Counter[int] = Counter()  # by status; 0: no answer

    def start(self, background: TaskSupervisor, session: aiohttp.ClientSession) -> None:
        """Start the tasks."""
        background.start("webhooks due", self._feed)
        for number in range(SENDERS):
            background.start(f"webhook sender {number}", lambda: self._send(session))

    def look(self) -> None:
        """There may be webhooks that are due now."""
        self._changed.set()

    def store(self) -> None:
        """Store the results so far. A full disk, for example, leaves them for the next time."""
        self._storing = None
        try:
            self._books.conclude(self._delivered, self._postponed)
        except sqlite3.Error as error:
            log.error("results of webhooks not stored", error=str(error))
            self._storing = asyncio.get_running_loop().call_later(LOOK_S_MAX, self.store)
            return
        self._taken.difference_update(self._delivered)
        self._taken.difference_update(delivery_id for delivery_id, _ in self._postponed)
        self._delivered.clear()
        self._postponed.clear()
        self._changed.set()

    async def _feed(self) -> None:
        while True:
            self._changed.clear()
            now_ms = self._now_ms()
            if self._behaviour().is_down(now_ms):
                await asyncio.sleep(DOWN_LOOK_S)
                continue
            if len(self._taken) <= IN_MEMORY_MAX // 2:  # one look finds many
                for delivery in self._books.due(now_ms=now_ms, limit=IN_MEMORY_MAX):
                    if delivery.id not in self._taken and len(self._taken) < IN_MEMORY_MAX:
                        self._taken.add(delivery.id)
                        self._ready.put_nowait(delivery)
            next_ms = self._books.next_due_ms(now_ms=now_ms)
            wait_s = LOOK_S_MAX if next_ms is None else min(LOOK_S_MAX, max(0.0, (next_ms - now_ms) / 1000))
            await tasks.wait_within(self._changed, wait_s)

    async def _send(self, session: aiohttp.ClientSession) -> None:
        backoff = Backoff(first_s=0.05, longest_s=UNREACHABLE_S_MAX)
        while True:
            delivery = await self._ready.get()
            if self._behaviour().is_down(self._now_ms()):
                self._taken.discard(delivery.id)  # still due in the books
                continue
            status = 0
            try:
                status = await self._post(session, delivery.body)
            finally:
                self._note(delivery, status)
            if status:
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next_s())

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> int:
        """The status of the answer; 0: there is none."""
        header = signatures.sign(body, [self._secret], at_s=self._now_ms() // 1000)
        try:
            async with session.post(self._url, data=body, headers={"Payment-Signature": header}) as answer:
                await answer.content.read(ANSWER_BYTES_MAX)
                return answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.debug("webhook without an answer", error=type(error).__name__)
            return 0

    def _note(self, delivery: Delivery, status: int) -> None:
        self.sent[status] += 1
        SENT.labels(status or "none").inc()
        if 200 <= status < 300:
            self._delivered.append(delivery.id)
        elif delivery.attempts + 1 >= ATTEMPTS_MAX:
            log.error("webhook given up", status=status, body=delivery.body.decode())
            self._delivered.append(delivery.id)
        else:
            delay_s = retry_delay_s(delivery.attempts, jitter=self._rng.random())
            self._postponed.append((delivery.id, self._now_ms() + int(delay_s * 1000)))
        if self._storing is None:
            self._storing = asyncio.get_running_loop().call_later(STORE_AFTER_S, self.store)


def shop_session() -> aiohttp.ClientSession:
    """Connections to the shop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=SENDERS, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=CALL_S_MAX),
        headers={"Content-Type": "application/json", "User-Agent": "payment-simulator"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
