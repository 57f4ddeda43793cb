"""Limits of reads: a rate for each user, and few places for reads at once. Performs no I/O.

Reads share the event loop and Redis with orders. Their limits keep a crowd of readers from delaying orders.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

USERS_MAX: Final = 65_536  # about 10 MB in a worker


class ReadRate:
    """A rate of reads for each user in this worker (GCRA). The table has `users_max` users at most.

    At the bound the least recent reader is forgotten, and may then read a burst again.
    """

    def __init__(
        self, *, per_s: int, burst: int, users_max: int = USERS_MAX, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_s = per_s
        self.burst = burst
        self._interval_s = 1 / per_s
        self._tolerance_s = (burst - 1) / per_s
        self._users_max = users_max
        self._now_s = now_s
        self._free_at: dict[UUID, float] = {}  # theoretical arrival times, the latest reader last

    def __len__(self) -> int:
        """Number of users in the table."""
        return len(self._free_at)

    def take(self, user_id: UUID) -> int:
        """Count a read. 0: it may run; else the milliseconds until the next one may, and nothing was counted."""
        now_s = self._now_s()
        free_at = max(self._free_at.pop(user_id, now_s), now_s)
        wait_s = free_at - self._tolerance_s - now_s
        if wait_s <= 0:
            free_at += self._interval_s
        if len(self._free_at) >= self._users_max:
            del self._free_at[next(iter(self._free_at))]
        self._free_at[user_id] = free_at
        return 0 if wait_s <= 0 else max(1, round(wait_s * 1000))


class PlacesTaken(Exception):
    """As many reads run and wait as may, or a place did not become free in time."""


class Places:
    """`running_max` reads run at once; `waiting_max` wait for a place, each for `wait_s_max` at most."""

    def __init__(self, *, running_max: int, waiting_max: int, wait_s_max: float) -> None:
        self._free = asyncio.Semaphore(running_max)
        self._waiting_max = waiting_max
        self._wait_s_max = wait_s_max
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place. Raises PlacesTaken."""
        if self._free.locked():
            if self._waiting >= self._waiting_max:
                raise PlacesTaken
            await self._wait()
        else:
            await self._free.acquire()  # does not wait
        try:
            yield
        finally:
            self._free.release()

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s_max):
                await self._free.acquire()
        except TimeoutError:
            raise PlacesTaken from None
        finally:
            self._waiting -= 1
