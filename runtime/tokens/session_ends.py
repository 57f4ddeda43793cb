"""Whose sessions were ended, and when: a bounded set in the reservation Redis, and a copy of it in every process that asks.

A note is `user id -> seconds`: the user's tokens issued before that second count no more. It is kept for `KEPT_S`, longer than
any token lives. The table is fed by a channel; after each (re)connection the whole set is read again, since messages may
have been missed. What is known is never forgotten early, even if Redis lost it.

At the bound of notes the oldest become one for everybody, under the empty id: all tokens issued before that second end, and
their holders refresh them. More is ended than was asked for, never less.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from domain import topology
from runtime.redis.scripts import load_script, run

_log = structlog.get_logger(__name__)

TOKEN_S_MAX: Final = 86_400  # the longest life of a token that is accepted: synthetic buyers', outside issuers'
KEPT_S: Final = TOKEN_S_MAX + 300  # and clocks that differ
NOTES_MAX: Final = 65_536  # in Redis; about 200 bytes each in a process
EVERYBODY: Final = b""
RECONNECT_S_MAX: Final = 1.0
PING_S: Final = 5.0
_TIDY_S: Final = 60.0
_NOTES_AT_ONCE: Final = 1000
_DIGITS_MAX: Final = 15
_SCRIPT = load_script("runtime.tokens", "sessions_end-1")


class _ChannelLost(Exception):
    """The channel's peer does not answer."""


async def publish(redis: Redis, notes: Sequence[tuple[UUID, int]], *, notes_max: int = NOTES_MAX) -> None:
    """Note (user id, Unix seconds) for every process. Repeating it, or an older note, changes nothing."""
    old = int(time.time()) - KEPT_S
    for start in range(0, len(notes), _NOTES_AT_ONCE):
        arguments: list[bytes | str | int] = [topology.SESSION_ENDS_CHANNEL, old, notes_max]
        for user_id, seconds in notes[start : start + _NOTES_AT_ONCE]:
            arguments += (seconds, user_id.bytes)
        await run(redis, _SCRIPT, [topology.SESSION_ENDS_KEY], arguments)


class SessionEnds:
    """The copy of one process. `table` is changed in place on the event loop's thread: the compiled key ring reads it."""

    def __init__(self, redis: Redis, *, notes_max: int = 2 * NOTES_MAX) -> None:
        """Uses the client, does not own it."""
        self._redis = redis
        self._notes_max = notes_max
        self.table: dict[bytes, int] = {}
        self.synced = False  # the channel is open and the set was read since
        self.loaded = (
            False  # the set was read once: what is judged from here on is judged by knowledge, perhaps not the latest
        )

    def is_ended(self, user_id: bytes, issued_at_s: int) -> bool:
        """Whether a token with this `iat` counts no more."""
        return bool(self.table) and issued_at_s < self.not_before(user_id)

    def not_before(self, user_id: bytes) -> int:
        """The earliest `iat` that counts for this user; 0 for any."""
        return max(self.table.get(user_id, 0), self.table.get(EVERYBODY, 0))

    def take(self, user_id: bytes, seconds: int) -> None:
        """Know of one note. An older one than is known changes nothing."""
        if len(user_id) not in (0, 16) or seconds <= self.table.get(user_id, 0):
            return
        self.table[user_id] = seconds
        if len(self.table) > self._notes_max:
            self._shed()

    def tidy(self, now_s: float) -> None:
        """Forget what no living token needs."""
        for user_id in [user_id for user_id, seconds in self.table.items() if seconds < now_s - KEPT_S]:
            del self.table[user_id]

    async def run(self) -> None:
        """Follow the channel for ever, reconnecting with jitter. Cancel to stop."""
        while True:
            try:
                await self._follow()
            except (TimeoutError, RedisError, OSError, _ChannelLost) as error:
                _log.warning("session_ends_lost", error=str(error) or type(error).__name__)
            finally:
                self.synced = False
            await asyncio.sleep(random.uniform(0.05, RECONNECT_S_MAX))  # noqa: S311 - jitter, no secret

    async def _follow(self) -> None:
        async with self._redis.pubsub() as channel:
            # First the channel, then the set: what is noted in between comes twice rather than never.
            await channel.subscribe(topology.SESSION_ENDS_CHANNEL)
            await self._read_all()
            self.synced = self.loaded = True
            unanswered = 0
            tidied_at = time.monotonic()
            while unanswered < 2:  # a dead peer answers no PING, where a plain read would wait for ever
                message = await channel.get_message(timeout=PING_S)
                if time.monotonic() - tidied_at > _TIDY_S:
                    tidied_at = time.monotonic()
                    self.tidy(time.time())
                if message is None:
                    unanswered += 1
                    await channel.ping()
                    continue
                unanswered = 0
                if message["type"] == "message":
                    seconds, space, user_id = bytes(message["data"]).partition(b" ")
                    if (
                        space and seconds.isdigit() and len(seconds) <= _DIGITS_MAX
                    ):  # anybody with a way to Redis can publish
                        self.take(user_id, int(seconds))
            raise _ChannelLost("the channel is silent")

    async def _read_all(self) -> None:
        async for user_id, seconds in self._redis.zscan_iter(topology.SESSION_ENDS_KEY, count=_NOTES_AT_ONCE):
            if 0 <= seconds < 10**_DIGITS_MAX:
                self.take(user_id, int(seconds))

    def _shed(self) -> None:
        """Make one note for everybody of the oldest, a sixteenth of all, so that the bound is not met at every note."""
        notes: Mapping[bytes, int] = self.table
        oldest = sorted((seconds, user_id) for user_id, seconds in notes.items() if user_id != EVERYBODY)
        oldest = oldest[: max(1, len(oldest) // 16)]
        for _, user_id in oldest:
            del self.table[user_id]
        self.table[EVERYBODY] = max(self.table.get(EVERYBODY, 0), oldest[-1][0])
