"""Limits against guessing passwords and addresses: attempts per account and per client address, counted in the cache Redis.

The counters are shared by all processes. They fail closed: without the cache Redis nobody logs in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from backoffice.web.messages import Refused
from domain.problems import Problem, RatePolicy
from runtime.redis.scripts import load_script, run

_KEY_PREFIX = "flashsale:attempts:"
_SPEND = load_script("backoffice.auth", "attempts_spend-n")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `attempts_max` attempts within a window that begins with the first."""

    kind: str
    attempts_max: int
    window_s: int


# One client guessing one account; many clients guessing one account; one client guessing many accounts.
LOGIN_ACCOUNT_FROM_CLIENT = Limit("login-pair", 10, 900)
LOGIN_ACCOUNT = Limit("login-account", 100, 900)
LOGIN_CLIENT = Limit("login-client", 200, 900)
REGISTER_CLIENT = Limit("register-client", 100, 3600)
# Who has a token wants the password, too: guessing it there is no better.
CHANGE_ACCOUNT = Limit("change-account", 10, 900)
# Changing to an address tells whether it is in use; registering does, too, and is limited for it.
ADDRESS_ACCOUNT = Limit("address-account", 20, 3600)
# A mailbox must not be filled by others, nor kept from getting a mail by one of them, and one client must not have mails
# sent to the whole world.
MAIL_ADDRESS_FROM_CLIENT = Limit("mail-pair", 5, 3600)
MAIL_ADDRESS = Limit("mail-address", 20, 3600)
MAIL_CLIENT = Limit("mail-client", 50, 3600)
# Mailed tokens cannot be guessed; this bounds what trying costs us.
MAILED_TOKEN_CLIENT = Limit("mailed-token-client", 100, 900)


class Attempts:
    """Counts attempts before they are made, so that attempts in parallel count, too; refused ones are none."""

    def __init__(self, cache: Redis) -> None:
        """Uses the client, does not own it."""
        self._cache = cache

    async def spend(self, *subjects: tuple[Limit, str]) -> None:
        """One attempt by each limit; Refused(`rate_limited`) with the longest wait, and nothing counted, when one is used up."""
        keys = [_key(limit, subject) for limit, subject in subjects]
        bounds = [number for limit, _ in subjects for number in (limit.attempts_max, limit.window_s)]
        place, wait_s = await run(self._cache, _SPEND, keys, bounds)
        if place:
            limit = subjects[place - 1][0]
            policy = RatePolicy(limit.kind, limit.attempts_max, limit.window_s)
            raise Refused(Problem.RATE_LIMITED, "Too many attempts", retry_after_s=wait_s, policy=policy)

    async def refund(self, subjects: Sequence[tuple[Limit, str]]) -> None:
        """The attempts were legitimate: they do not count."""
        async with self._cache.pipeline(transaction=True) as pipeline:
            for limit, subject in subjects:
                key = _key(limit, subject)
                pipeline.decr(key)
                # A counter that ran out meanwhile is made anew here, and must not stay for ever.
                pipeline.expire(key, limit.window_s, nx=True)
            await pipeline.execute()

    async def forget(self, limit: Limit, subject: str) -> None:
        """Begin at zero: the right password was given."""
        await self._cache.delete(_key(limit, subject))


def _key(limit: Limit, subject: str) -> str:
    # Hashed: addresses do not belong into a cache, and a key has a bounded length.
    return f"{_KEY_PREFIX}{limit.kind}:{hashlib.blake2b(subject.encode(), digest_size=16).hexdigest()}"
