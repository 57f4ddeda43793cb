"""Redis time: the only clock that sales, holds and waits in Redis are judged by."""

from __future__ import annotations

from redis.asyncio import Redis


async def now_ms(redis: Redis) -> int:
    """Redis `TIME` in milliseconds since 1970."""
    return milliseconds(await redis.time())


def milliseconds(reply: tuple[int, int]) -> int:
    """A `TIME` reply, seconds and microseconds, in milliseconds; for callers that pipeline the command."""
    seconds, microseconds = reply
    return int(seconds) * 1000 + int(microseconds) // 1000
