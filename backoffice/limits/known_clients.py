"""Clients from which an account has logged in before, so that strangers' attempts do not lock its owner out.

A client is an address as limits count it (`web.clients`). The list of an account is in the cache Redis, beside the
counters of the limits: a Redis that loses the list has lost the counters as well. It holds hashes only, and ends
`KNOWN_S` after the last login. Each known client has the limit of its own, so their number bounds guesses.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

from redis.asyncio import Redis

KNOWN_S: Final = 30 * 86_400
CLIENTS_MAX: Final = 16  # of an account; the newest logins stay
_KEY_PREFIX: Final = "flashsale:known-clients:"


class KnownClients:
    """`account` is a folded address. Every method raises RedisError when Redis does not answer."""

    def __init__(self, cache: Redis) -> None:
        """Uses the client; does not own it."""
        self._cache = cache

    async def knows(self, account: str, client: str) -> bool:
        """Whether the account has logged in from this client within `KNOWN_S`."""
        logged_in_s: float | None = await self._cache.zscore(_key(account), _hash(account, client))
        return logged_in_s is not None and logged_in_s > time.time() - KNOWN_S

    async def remember(self, account: str, client: str) -> None:
        """The account has logged in from this client. Beyond `CLIENTS_MAX` the oldest is forgotten."""
        key = _key(account)
        async with self._cache.pipeline(transaction=True) as pipeline:
            pipeline.zadd(key, {_hash(account, client): int(time.time())})
            pipeline.zremrangebyrank(key, 0, -CLIENTS_MAX - 1)
            pipeline.expire(key, KNOWN_S)
            await pipeline.execute()

    async def forget(self, account: str) -> None:
        """Forget all clients of the account."""
        await self._cache.delete(_key(account))


def _key(account: str) -> str:
    return f"{_KEY_PREFIX}{hashlib.blake2b(account.encode(), digest_size=16).hexdigest()}"


def _hash(account: str, client: str) -> bytes:
    return hashlib.blake2b(f"{account} {client}".encode(), digest_size=16).digest()
