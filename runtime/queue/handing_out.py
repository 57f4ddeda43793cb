"""The part of a consumer that is the same on every carrier: it hands out the deliveries that its tasks have received.

See `runtime.queue.port.Consumer`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from runtime.process import tasks
from runtime.process.supervision import TaskSupervisor
from runtime.queue.port import Delivery


class HandingOut:
    """An adapter appends to `_ready` and sets `_changed`, in tasks of `_background`."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._ready: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._background = TaskSupervisor(give_up=lambda _: self._changed.set())
        self._closed = False

    async def next_batch(self, *, count_max: int, wait_s: float) -> list[Delivery]:
        """At most `count_max` deliveries, as soon as there is one; empty after `wait_s` without any.

        Raises TasksGivenUp when the consumer cannot go on: the caller leaves it and opens another one.
        """
        self._background.raise_given_up()
        if not self._ready and not self._closed:
            self._changed.clear()
            await tasks.wait_within(self._changed, wait_s)
        return [self._ready.popleft() for _ in range(min(count_max, len(self._ready)))]

    def __aiter__(self) -> Self:
        """The consumer itself."""
        return self

    async def __anext__(self) -> Delivery:
        """The next delivery."""
        while not self._ready:
            self._background.raise_given_up()
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._ready.popleft()
