"""Limits against guessing passwords and addresses: attempts per account and per client address.

The counters are in the cache Redis, so all processes share them. Without the cache Redis every limited operation fails,
including the login.
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
_SPEND = load_script("backoffice.limits", "attempts_spend-n")


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `attempts_max` attempts within a window that begins with the first attempt."""

    kind: str
    attempts_max: int
    window_s: int


# One client guessing one account; many clients guessing one account; one client guessing many accounts.
LOGIN_ACCOUNT_FROM_CLIENT = Limit("login-pair", 10, 900)
LOGIN_ACCOUNT = Limit("login-account", 100, 900)
LOGIN_CLIENT = Limit("login-client", 200, 900)
REGISTER_CLIENT = Limit("register-client", 100, 3600)
# The thief of an access token could guess the password here as well as at the login.
CHANGE_ACCOUNT = Limit("change-account", 10, 900)
# Each change of an account leaves an entry in the audit log.
PROFILE_ACCOUNT = Limit("profile-account", 100, 3600)
# A change of address reveals whether the new address is in use, as a registration does.
ADDRESS_ACCOUNT = Limit("address-account", 20, 3600)
# Others must not fill a mailbox. One client must not use up the mails of a mailbox, nor send mails to many addresses.
MAIL_ADDRESS_FROM_CLIENT = Limit("mail-pair", 5, 3600)
MAIL_ADDRESS = Limit("mail-address", 20, 3600)
MAIL_CLIENT = Limit("mail-client", 50, 3600)
# Mailed tokens cannot be guessed; this limit bounds the load of attempts.
MAILED_TOKEN_CLIENT = Limit("mailed-token-client", 100, 900)


class Attempts:
    """Counts attempts before they are made, so that parallel attempts count. Refused attempts do not count."""

    def __init__(self, cache: Redis) -> None:
        """Uses the client; does not own it."""
        self._cache = cache

    async def spend(self, *subjects: tuple[Limit, str]) -> None:
        """Count one attempt by each limit.

        When a limit is used up, counts nothing and raises Refused(`rate_limited`) with the longest wait.
        """
        keys = [_key(limit, subject) for limit, subject in subjects]
        bounds = [number for limit, _ in subjects for number in (limit.attempts_max, limit.window_s)]
        place, wait_s = await run(self._cache, _SPEND, keys, bounds)
        if place:
            limit = subjects[place - 1][0]
            policy = RatePolicy(limit.kind, limit.attempts_max, limit.window_s)
            raise Refused(
                Problem.RATE_LIMITED, "Too many attempts; wait and try again", retry_after_s=wait_s, policy=policy
            )

    async def refund(self, subjects: Sequence[tuple[Limit, str]]) -> None:
        """Take back attempts that turned out to be legitimate."""
        async with self._cache.pipeline(transaction=True) as pipeline:
            for limit, subject in subjects:
                key = _key(limit, subject)
                pipeline.decr(key)
                # DECR creates a counter that has expired; the new one must expire, too.
                pipeline.expire(key, limit.window_s, nx=True)
            await pipeline.execute()

    async def forget(self, limit: Limit, subject: str) -> None:
        """Reset the counter, after the right password."""
        await self._cache.delete(_key(limit, subject))


def _key(limit: Limit, subject: str) -> str:
    # The hash keeps addresses out of the cache and bounds the length of a key.
    return f"{_KEY_PREFIX}{limit.kind}:{hashlib.blake2b(subject.encode(), digest_size=16).hexdigest()}"
