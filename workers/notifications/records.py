"""The record of each notice in the cache Redis: its secret until the mail is sent, then only the fact that it was sent.

A key is `flashsale:notice:<id>` and lives at most `LIFE`. The secret must outlive a crash between the hand-over to
the mail server and the record of it: a repeated mail then has the same token, not one that voids the first. If Redis
loses a record, the worst result is a second mail with a token of its own.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from domain.mailed_tokens import SECRET_BYTES

# Far longer than a message can wait for its last attempt, or a dispatcher repeats a delivery.
LIFE = timedelta(hours=24)
_SENT = b"sent"


class Records:
    """Every method raises RedisError or OSError when Redis does not answer."""

    def __init__(self, cache: Redis) -> None:
        """Uses the client, does not own it."""
        self._cache = cache

    async def claim(self, notice_id: UUID) -> bytes | None:
        """The secret of the notice's link, the same at each call; None when the mail was sent."""
        fresh = secrets.token_bytes(SECRET_BYTES)
        kept: Any = await self._cache.set(_key(notice_id), fresh, nx=True, ex=LIFE, get=True)
        if kept is None:
            return fresh
        return None if kept == _SENT else bytes(kept)

    async def sent(self, notice_id: UUID) -> None:
        """The server took the mail: forget the secret, and never send the notice again."""
        await self._cache.set(_key(notice_id), _SENT, ex=LIFE)

    async def forget(self, notice_id: UUID) -> None:
        """The notice was given up: forget its secret. A replay gets another one."""
        await self._cache.delete(_key(notice_id))


def _key(notice_id: UUID) -> str:
    return f"flashsale:notice:{notice_id}"
