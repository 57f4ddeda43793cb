"""The record of each notice that was sent, in the cache Redis, so that a repeated delivery sends no second mail.

A key is `flashsale:notice:<id>` and lives at most `LIFE`. It holds no secret. If Redis loses a record, the worst result
is a second mail with the same token.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

# Far longer than a message can wait for its last attempt, or a dispatcher repeats a delivery.
LIFE = timedelta(hours=24)
_SENT = b"sent"


class Records:
    """Every method raises RedisError or OSError when Redis does not answer."""

    def __init__(self, cache: Redis) -> None:
        """Uses the client, does not own it."""
        self._cache = cache

    async def is_sent(self, notice_id: UUID) -> bool:
        """Whether the mail was sent."""
        kept: Any = await self._cache.get(_key(notice_id))
        return bool(kept == _SENT)

    async def sent(self, notice_id: UUID) -> None:
        """The server took the mail: never send the notice again."""
        await self._cache.set(_key(notice_id), _SENT, ex=LIFE)


def _key(notice_id: UUID) -> str:
    return f"flashsale:notice:{notice_id}"
