"""Waiting with a bound, and ending background tasks for certain.

`asyncio.wait_for` is not used anywhere near a task that is to be cancelled: before Python 3.12 it swallows a
cancellation that arrives in the moment in which its work ends, and the task goes on for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

CANCEL_AGAIN_S = 0.05


async def wait_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most `seconds`; whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel and return when all have ended; their exceptions are not raised.

    Cancels again and again, because a library inside of a task may swallow a cancellation (psycopg waits by `wait_for`).
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
