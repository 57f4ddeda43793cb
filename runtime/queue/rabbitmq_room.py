"""The bound of a queue on RabbitMQ, kept by its publishers.

The broker's own bound (`x-max-length`, `reject-publish`) refuses what delay queues send back as well: the broker then
repeats the return after minutes, and meanwhile nothing shows these messages. So a publisher counts: the ready messages
at its last look, plus its own publishes since, and those that were in flight then: a look may show them or not. Several
processes may exceed the bound by their publishes between looks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

LOOK_S = 0.2


class Room:
    """The room of one queue, as one process sees it."""

    def __init__(self, length_max: int, look: Callable[[], Awaitable[int]]) -> None:
        """`look` returns the number of ready messages."""
        self._length_max = length_max
        self._look = look
        self._lock = asyncio.Lock()
        self._seen = 0
        self._counted = 0  # places taken, without those that were settled before the last look
        self._settled = 0  # of them: the broker has answered, or will not
        self._looked_at = -LOOK_S

    async def take(self) -> bool:
        """A place for one message, which the caller settles after its publish; False at the bound."""
        if self._is_known and self._has_place():
            return self._taken()
        async with self._lock:
            # Another publisher may have looked while this one waited; but before a refusal, look now.
            if not (self._is_known and self._has_place()):
                shown = self._settled
                self._seen = await self._look()
                self._counted -= shown
                self._settled -= shown
                self._looked_at = time.monotonic()
        return self._has_place() and self._taken()

    def settle(self) -> None:
        """The publish has ended: from the next look on, the queue's count shows its message, if it is there."""
        self._settled += 1

    @property
    def _is_known(self) -> bool:
        return time.monotonic() < self._looked_at + LOOK_S

    def _has_place(self) -> bool:
        return self._seen + self._counted < self._length_max

    def _taken(self) -> bool:
        self._counted += 1
        return True
