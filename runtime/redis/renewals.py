"""Renews the leases that a process holds through one Redis client: all of them in one round trip.

Knows no lease's purpose. A process with six roles would otherwise wake, and wake Redis, six times as often.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from runtime.process import tasks
from runtime.redis.scripts import load_script, run_many

log = structlog.get_logger()

_RENEW = load_script("runtime.redis", "lease_renew-1")

RENEWALS_PER_LIFE = 3
AGAIN_PER_INTERVAL = 5  # after an error


class Renewable(Protocol):
    """A lease, as its renewal sees it. All times are of the monotonic clock."""

    redis: Redis
    key: str
    token: int
    life_ms: int
    ends_at: float
    lost: asyncio.Event

    @property
    def held(self) -> bool:
        """Whether the lease is ours by our own clock."""
        ...


class Renewals:
    """The held leases of one client. The task that renews them runs while there are any."""

    def __init__(self) -> None:
        """Without leases at first. The client is theirs: a registry that held it would keep it for ever."""
        self._leases: set[Renewable] = set()
        self._task: asyncio.Task[None] | None = None

    def add(self, lease: Renewable) -> None:
        """Renew this lease `RENEWALS_PER_LIFE` times in its life, until it is lost or removed."""
        shortest = all(lease.life_ms < other.life_ms for other in self._leases)
        self._leases.add(lease)
        if self._task is None or self._task.done() or shortest:
            if self._task is not None:
                self._task.cancel()
            self._task = asyncio.create_task(self._renew(), name=f"renew {lease.key}")
            self._task.add_done_callback(self._ended)

    async def remove(self, lease: Renewable) -> None:
        """Renew this lease no more."""
        self._leases.discard(lease)
        if not self._leases and self._task is not None:
            task, self._task = self._task, None
            await tasks.cancel(task)

    async def _renew(self) -> None:
        failed = False
        while self._keep_held():
            interval_s = min(lease.life_ms for lease in self._leases) / 1000 / RENEWALS_PER_LIFE
            pause_s = interval_s / AGAIN_PER_INTERVAL if failed else interval_s
            await asyncio.sleep(min(pause_s, max(0.0, self._first_end() - time.monotonic())))
            if held := self._keep_held():
                failed = not await self._renew_once(held)

    async def _renew_once(self, leases: list[Renewable]) -> bool:
        """Renew in one round trip. A lease that Redis does not prolong is lost. False: no answer."""
        asked_at = time.monotonic()
        calls = [((lease.key,), (lease.token, lease.life_ms)) for lease in leases]
        tokens = [lease.token for lease in leases]
        try:
            # A renewal confirmed after the lease's end is useless, so the wait ends there.
            async with asyncio.timeout(max(0.001, self._first_end() - asked_at)):
                answers = await run_many(leases[0].redis, _RENEW, calls, lost_in_place=True)
        except (RedisError, OSError, TimeoutError) as error:
            for lease in leases:
                log.warning("lease not renewed", lease=lease.key, error=str(error) or type(error).__name__)
            return False
        failed = False
        for lease, token, answer in zip(leases, tokens, answers, strict=True):
            if lease not in self._leases or lease.token != token:
                continue  # given back meanwhile
            if isinstance(answer, Exception):
                log.warning("lease not renewed", lease=lease.key, error=str(answer))
                failed = True
            elif answer:
                lease.ends_at = asked_at + lease.life_ms / 1000
            else:
                self._lose(lease)
        return not failed

    def _keep_held(self) -> list[Renewable]:
        """The leases that are still ours; the others are lost."""
        for lease in [lease for lease in self._leases if not lease.held]:
            self._lose(lease)
        return list(self._leases)

    def _lose(self, lease: Renewable) -> None:
        self._leases.discard(lease)
        lease.lost.set()
        log.warning("lease lost", lease=lease.key, token=lease.token)

    def _first_end(self) -> float:
        return min((lease.ends_at for lease in self._leases), default=0.0)

    def _ended(self, renewal: asyncio.Task[None]) -> None:
        """Without a renewal every lease is lost, whatever ended it: its holder must not wait for its own clock."""
        if not renewal.cancelled() and (error := renewal.exception()) is not None:
            log.error("task ended", task=renewal.get_name(), by=type(error).__name__, exc_info=error)
            for lease in list(self._leases):
                self._lose(lease)


_BY_CLIENT: WeakKeyDictionary[Redis, Renewals] = WeakKeyDictionary()


def renewals_of(redis: Redis) -> Renewals:
    """The renewals of a client's leases: one for all of them."""
    return _BY_CLIENT.setdefault(redis, Renewals())
