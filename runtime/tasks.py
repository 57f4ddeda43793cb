"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

CANCEL_AGAIN_S = 0.05


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel and return when all have ended; their exceptions are not raised.

    One cancellation is not enough: redis-py (8.1) swallows one that arrives while it checks a pooled connection, and
    the task would go on for ever.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_S)
