"""The record of each notice that was sent, in the cache Redis: a repeated delivery sends no second mail or push.

A key is `flashsale:notice:<id>` and lives at most `LIFE`. It holds no secret. If Redis loses a record, the worst result
is a second mail with the same token. `flashsale:notices:<channel>:<user id>` counts the less important notices of an
account in an hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis

from domain.notices import Channel, Notice, NoticeKind

# Far longer than a message can wait for its last attempt, or a dispatcher repeats a delivery.
LIFE = timedelta(hours=24)
# A person who registers a stranger's address could order and cancel many times to fill the stranger's mailbox. Money is
# always told of.
COUNTED: Final = frozenset({NoticeKind.ORDER_RESERVED, NoticeKind.ORDER_CANCELLED, NoticeKind.ORDER_EXPIRED})
COUNTED_PER_HOUR_MAX: Final = 20
_HOUR_S: Final = 3600
_SENT = b"sent"


class Records:
    """Every method raises RedisError or OSError when Redis does not answer."""

    def __init__(self, cache: Redis) -> None:
        """Uses the client, does not own it."""
        self._cache = cache
        self._turns: dict[UUID, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, notice_id: UUID) -> AsyncIterator[None]:
        """One copy of a notice at a time in this process: the second one then finds the record of the first."""
        lock, holders = self._turns.get(notice_id, (asyncio.Lock(), 0))
        self._turns[notice_id] = (lock, holders + 1)
        try:
            async with lock:
                yield
        finally:
            lock, holders = self._turns.pop(notice_id)
            if holders > 1:
                self._turns[notice_id] = (lock, holders - 1)

    async def is_sent(self, notice_id: UUID) -> bool:
        """Whether the notice was sent."""
        kept: Any = await self._cache.get(_key(notice_id))
        return bool(kept == _SENT)

    async def sent(self, notice_id: UUID) -> None:
        """The server took it: never send the notice again."""
        await self._cache.set(_key(notice_id), _SENT, ex=LIFE)

    async def count(self, notice: Notice, channel: Channel) -> bool:
        """Count a notice before its first attempt; False when its account got too many of these within an hour."""
        if notice.kind not in COUNTED:
            return True
        key = f"flashsale:notices:{channel}:{notice.user_id}"
        async with self._cache.pipeline(transaction=True) as pipeline:
            pipeline.incr(key)
            pipeline.expire(key, _HOUR_S, nx=True)
            counted, _ = await pipeline.execute()
        return bool(counted <= COUNTED_PER_HOUR_MAX)


def _key(notice_id: UUID) -> str:
    return f"flashsale:notice:{notice_id}"
