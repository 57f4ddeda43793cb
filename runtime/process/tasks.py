"""Bounded waits, and reliable cancellation of background tasks.

No `asyncio.wait_for` in a task that may be cancelled: before Python 3.12 it swallows a cancellation that arrives at the
moment its work ends, and the task runs forever.
"""

from __future__ import annotations

import asyncio
from typing import Any

CANCEL_AGAIN_S = 0.05


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
