"""Puts a dead letter back into its queue: claim, publish with a confirm, remove. Written against the ports alone.

claim lost (crash)       the lease ends, the letter is still there
published, not removed   the letter is still there and may be replayed again: at least once, consumers are idempotent
several callers          one claims; the others wait for it and learn the result
"""

from __future__ import annotations

import asyncio
from enum import Enum

from runtime.dead_letters.port import DeadLetters
from runtime.queue.port import Queue, QueueUnavailable, UnknownQueue

LEASE_MS = 30_000
PUBLISH_S_MAX = 20.0  # within the lease: no other caller publishes meanwhile
WAIT_S = 3.0  # for the replay of another caller
POLL_S = 0.05


class Replay(Enum):
    """Result of `replay`."""

    DONE = "done"
    DONE_BEFORE = "done before"  # by another caller, or within the last day
    NOT_FOUND = "not found"


class NotReplayable(Exception):
    """The letter was never a message of a queue, so that no queue would take it. Its headers name its source."""

    def __init__(self, letter_id: str) -> None:
        """`letter_id` is the letter's id."""
        super().__init__(f"{letter_id} was never a queue message; fix its source, then delete the letter")
        self.letter_id = letter_id


class QueueIsGone(Exception):
    """The letter's queue is not one of this installation, such as that of a shard which was removed."""

    def __init__(self, letter_id: str, queue: str) -> None:
        """`letter_id` is the letter's id, `queue` the name of its queue."""
        super().__init__(f"{letter_id}: this installation has no queue {queue}; declare it again or delete the letter")
        self.letter_id = letter_id
        self.queue = queue


class BeingReplayed(Exception):
    """Another caller is replaying the letter and has not finished in time; repeat to learn the result."""

    def __init__(self, letter_id: str) -> None:
        """`letter_id` is the letter's id."""
        super().__init__(f"{letter_id} is being replayed by another request; repeat in a moment")
        self.letter_id = letter_id


async def replay(letters: DeadLetters, queue: Queue, letter_id: str, *, wait_s: float = WAIT_S) -> Replay:
    """Publish the letter's message as a first attempt that keeps its history, then remove the letter.

    Raises NotReplayable, QueueIsGone, BeingReplayed, and the errors of the ports: after QueueFull nothing has
    happened, after QueueUnavailable or DeadLettersUnavailable the message may be in its queue, and the letter is still
    there.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        claim = await letters.claim(letter_id, lease_ms=LEASE_MS)
        if claim is not None:
            break
        letter = await letters.get(letter_id)
        if letter is None:
            return Replay.DONE_BEFORE if await letters.was_replayed(letter_id) else Replay.NOT_FOUND
        if not letter.replayable:
            raise NotReplayable(letter_id)
        if loop.time() >= deadline:
            raise BeingReplayed(letter_id)
        await asyncio.sleep(POLL_S)
    letter = claim.letter
    try:
        async with asyncio.timeout(PUBLISH_S_MAX):
            await queue.publish(
                letter.queue,
                letter.body,
                message_id=letter.message_id,
                headers=letter.headers,
                first_seen_ms=letter.first_seen_ms,
                history=letter.history,
            )
    except Exception as error:
        await letters.release(claim)
        if isinstance(error, UnknownQueue):
            raise QueueIsGone(letter_id, letter.queue) from error
        if isinstance(error, TimeoutError):
            raise QueueUnavailable(letter.queue, f"no confirm within {PUBLISH_S_MAX:g} s") from error
        raise
    await letters.finish(claim)
    return Replay.DONE
