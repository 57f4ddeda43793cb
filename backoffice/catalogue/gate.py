"""Who reads products without being staff, a few at a time: so that all others find a connection to the catalogue.

Staff pause, end and restock sales over the same pool (4 connections, 64 who wait), and a search may take a connection for
much longer than they do. Knows neither callers nor queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backoffice.web.messages import Refused
from domain.problems import Problem

RUNNING_MAX = 2  # half of the pool's connections
WAITING_MAX = 64  # a search takes some 10 ms: less than half a second of queue
WAIT_S_MAX = 5.0  # as long as a pool makes anybody wait


class Gate:
    """Lets `RUNNING_MAX` through at a time; beyond `WAITING_MAX` who wait it refuses with `overloaded`."""

    def __init__(self) -> None:
        """Open."""
        self._running = asyncio.Semaphore(RUNNING_MAX)
        self._waiting = 0

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Within, one of those who run. Refused when too many wait, and for whoever has waited too long."""
        if self._waiting >= WAITING_MAX:
            raise Refused(Problem.OVERLOADED, retry_after_s=1)
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                await self._running.acquire()
        except TimeoutError as error:
            raise Refused(Problem.OVERLOADED, retry_after_s=1) from error
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._running.release()
