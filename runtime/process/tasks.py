"""Bounded waits, waits that end together, and reliable cancellation of background tasks.

No `asyncio.wait_for` in a task that may be cancelled: before Python 3.12 it swallows a cancellation that arrives at the
moment its work ends, and the task runs forever.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

CANCEL_AGAIN_S = 0.05
TICK_S_MIN = 0.01  # a wait for a tick that is just passing lasts until the next one
_PHASE_S = random.random()  # noqa: S311 - of this process: processes shall not wake together


def until_tick(every_s: float) -> float:
    """Seconds until this process's next tick, at most `every_s`. For loops that look at something every `every_s`.

    Loops of one process with the same pause, or with a multiple of it, wake together: several looks in a row cost half
    as much as the same looks one by one, because each wake-up of an idle process begins with cold caches. Not for the
    pauses after an error: those must spread out, and a wait for a tick may be short.
    """
    if every_s <= TICK_S_MIN:
        return every_s
    now = time.monotonic() - _PHASE_S
    wait_s = every_s - now % every_s
    return wait_s if wait_s >= TICK_S_MIN else wait_s + every_s


async def wait_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most `seconds`. Returns whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when all have ended. Does not raise their exceptions.

    Repeats the cancellation, because a library may swallow one (psycopg uses `wait_for`).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
