"""Ended sessions: a bounded set in the reservation Redis, and a copy of it in each process that verifies tokens.

A note is `user id -> generation`. The generation of a user grows with each end (`backoffice.auth.sessions`), and each
of our tokens carries the generation of its time (`gen`). So no clock decides which tokens have ended. The number is
about the time of the end in Unix ms, for tokens without `gen`: those of outside issuers, of load tests, and of an older
release. They end if their `iat`, written by a clock that may be `LEEWAY_S` ahead, may be before the end.

A note is kept for `KEPT_S`, longer than any token lives. A channel updates the copy; after each (re)connection the
whole set is read again, since messages may have been missed. A process never forgets a note early, even if Redis lost
it.

At the bound of notes the oldest become one note for all users, under the empty id. It is compared with `iat` of every
token, and holders of older tokens refresh them. So more tokens may end than requested, never fewer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from redis.asyncio import Redis

from domain import topology
from runtime.process.supervision import together
from runtime.redis.channel import RECONNECT_S_MAX, Channel
from runtime.redis.scripts import load_script, run
from runtime.tokens.keys import LEEWAY_S

TOKEN_S_MAX: Final = 86_400  # longest life of an accepted token: of synthetic buyers and outside issuers
KEPT_S: Final = TOKEN_S_MAX + 300  # for clocks that differ
NOTES_MAX: Final = 65_536  # in Redis; a note takes about 200 bytes in a process
EVERYBODY: Final = b""
_TIDY_S: Final = 60.0
_NOTES_AT_ONCE: Final = 1000
_DIGITS_MAX: Final = 15
_SCRIPT = load_script("runtime.tokens", "sessions_end-1")


async def publish(redis: Redis, notes: Sequence[tuple[UUID, int]], *, notes_max: int = NOTES_MAX) -> None:
    """Publish notes (user id, generation) to every process. A repeated or an older note changes nothing."""
    old = 1000 * (int(time.time()) - KEPT_S)
    for start in range(0, len(notes), _NOTES_AT_ONCE):
        arguments: list[bytes | str | int] = [topology.SESSION_ENDS_CHANNEL, old, notes_max]
        for user_id, generation in notes[start : start + _NOTES_AT_ONCE]:
            arguments += (generation, user_id.bytes)
        await run(redis, _SCRIPT, [topology.SESSION_ENDS_KEY], arguments)


class SessionEnds:
    """The copy of one process. `table` changes in place on the event loop's thread; the compiled key ring reads it."""

    def __init__(
        self, redis: Redis, *, notes_max: int = 2 * NOTES_MAX, reconnect_s_max: float = RECONNECT_S_MAX
    ) -> None:
        """Uses the client, does not own it."""
        self._redis = redis
        self._channel = Channel(
            redis,
            topology.SESSION_ENDS_CHANNEL,
            opened=self._read_all,
            received=self._received,
            reconnect_s_max=reconnect_s_max,
        )
        self._notes_max = notes_max
        self.table: dict[bytes, int] = {}
        self.loaded = False  # the set was read at least once

    @property
    def synced(self) -> bool:
        """Whether the channel is open and the set was read since it was opened."""
        return self._channel.is_open

    def is_ended(self, user_id: bytes, issued_at_s: int, generation: int | None = None) -> bool:
        """Whether a token with this `iat` and `gen` has ended; `generation` None for a token without `gen`.

        `hotpath.tokens` is the same rule, compiled.
        """
        own, everybody = self.table.get(user_id, 0), self.table.get(EVERYBODY, 0)
        if generation is not None and generation < own:
            return True
        # The note for all users stands for ends of others, so the generation of this user says nothing about it.
        end = everybody if generation is not None else max(own, everybody)
        return end > 0 and issued_at_s - LEEWAY_S <= end // 1000

    def take(self, user_id: bytes, generation: int) -> None:
        """Take one note into the table. A note older than the known one changes nothing."""
        if len(user_id) not in (0, 16) or generation <= self.table.get(user_id, 0):
            return
        self.table[user_id] = generation
        if len(self.table) > self._notes_max:
            self._shed()

    def tidy(self, now_s: float) -> None:
        """Forget notes that no living token needs."""
        old = 1000 * (now_s - KEPT_S)
        for user_id in [user_id for user_id, generation in self.table.items() if generation < old]:
            del self.table[user_id]

    async def run(self) -> None:
        """Follow the channel until cancelled, and tidy the table."""
        await together(follow=self._channel.follow(), tidy=self._tidy_for_ever())

    async def _tidy_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            self.tidy(time.time())

    async def _received(self, payload: bytes) -> None:
        generation, space, user_id = payload.partition(b" ")
        # Any client of Redis can publish, so a message is checked.
        if space and generation.isdigit() and len(generation) <= _DIGITS_MAX:
            self.take(user_id, int(generation))

    async def _read_all(self) -> None:
        async for user_id, generation in self._redis.zscan_iter(topology.SESSION_ENDS_KEY, count=_NOTES_AT_ONCE):
            if 0 <= generation < 10**_DIGITS_MAX:
                self.take(user_id, int(generation))
        # Redis drops old notes only when it gets a new one, and the shards may have forgotten them by now: a new token
        # then has generation 0.
        self.tidy(time.time())
        self.loaded = True

    def _shed(self) -> None:
        """Merge the oldest sixteenth into one note for all users, so that the bound is not met at every note."""
        notes: Mapping[bytes, int] = self.table
        oldest = sorted((generation, user_id) for user_id, generation in notes.items() if user_id != EVERYBODY)
        oldest = oldest[: max(1, len(oldest) // 16)]
        for _, user_id in oldest:
            del self.table[user_id]
        self.table[EVERYBODY] = max(self.table.get(EVERYBODY, 0), oldest[-1][0])
