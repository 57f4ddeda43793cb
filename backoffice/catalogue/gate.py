"""Limits catalogue reads by the public, so that staff always find a connection. Knows neither callers nor queries.

Staff pause, end and restock sales over the same pool (4 connections, 64 waiting requests), and a search may hold a
connection much longer than they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backoffice.web.messages import Refused
from domain.problems import Problem

RUNNING_MAX = 2  # half of the connections of the pool
WAITING_MAX = 64  # a search takes about 10 ms: less than half a second of queue
WAIT_S_MAX = 5.0  # the longest wait for a connection of the pool


class Gate:
    """Admits `RUNNING_MAX` reads at a time; refuses with `overloaded` when more than `WAITING_MAX` wait."""

    def __init__(self) -> None:
        """No read is running."""
        self._running = asyncio.Semaphore(RUNNING_MAX)
        self._waiting = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Within, one of the running reads. Refused if too many wait, or after `WAIT_S_MAX` of waiting."""
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
