"""Hashes passwords with argon2id in threads, with a bound on running and waiting hashes. Stores nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from backoffice.auth.weak_passwords import WEAK_DETAIL, is_weak
from backoffice.web.messages import Refused, invalid
from domain.problems import Problem

# OWASP password storage cheat sheet, argon2id: m=19456 (19 MiB), t=2, p=1.
TIME_COST = 2
MEMORY_KIB = 19_456
PASSWORD_LENGTH_MIN = 8
PASSWORD_LENGTH_MAX = 256
THREADS = 2  # each hash uses 19 MiB and one core for about 25 ms
WAITING_MAX = 32  # at 2 x 40 hashes a second, a wait below half a second

_T = TypeVar("_T")


class Passwords:
    """Hashes and verifies; Refused(`overloaded`) beyond `THREADS` running and `WAITING_MAX` waiting hashes."""

    def __init__(self) -> None:
        """Starts no thread until the first hash."""
        self._hasher = PasswordHasher(time_cost=TIME_COST, memory_cost=MEMORY_KIB, parallelism=1)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._pending = 0
        # Verified when there is no account: the same work, and never a match.
        self._decoy = self._hasher.hash("no account has this hash")

    async def hash(self, password: str) -> str:
        """The encoded hash, with its parameters and salt."""
        return await self._run(partial(self._hasher.hash, password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password matches; without a hash False, after the same work."""
        matches = await self._run(partial(self._verify, password_hash or self._decoy, password))
        return matches and password_hash is not None

    async def require_strong(self, password: str, *, pointer: str, known: Sequence[str]) -> None:
        """Refused(`validation_failed`) at `pointer` for a password that is easy to guess (`weak_passwords`)."""
        if await self._run(partial(is_weak, password, known)):
            raise invalid(pointer, WEAK_DETAIL)

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash has other parameters than new hashes."""
        return self._hasher.check_needs_rehash(password_hash)

    def close(self) -> None:
        """Stop the threads; waiting hashes are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):  # InvalidHashError: the stored hash is damaged
            return False

    async def _run(self, work: partial[_T]) -> _T:
        if self._pending >= THREADS + WAITING_MAX:
            raise Refused(Problem.OVERLOADED, retry_after_s=1)
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._pending -= 1
