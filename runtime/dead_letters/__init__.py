"""Dead letters: the port, its PostgreSQL adapter, and replay.

`open_dead_letters` opens the adapter by the catalogue's DSN.
"""

from __future__ import annotations

from pydantic import SecretStr

from runtime.dead_letters.port import (
    PAGE_LETTERS_MAX,
    Claim,
    DeadLetter,
    DeadLetters,
    DeadLettersFull,
    DeadLettersUnavailable,
    NewLetter,
    identity_of,
)
from runtime.dead_letters.postgres import PostgresDeadLetters
from runtime.dead_letters.replay import BeingReplayed, NotReplayable, QueueIsGone, Replay, replay
from runtime.postgres.pool import postgres_pool

__all__ = [
    "PAGE_LETTERS_MAX",
    "BeingReplayed",
    "Claim",
    "DeadLetter",
    "DeadLetters",
    "DeadLettersFull",
    "DeadLettersUnavailable",
    "NewLetter",
    "NotReplayable",
    "PostgresDeadLetters",
    "QueueIsGone",
    "Replay",
    "identity_of",
    "open_dead_letters",
    "replay",
]


def open_dead_letters(
    catalogue_dsn: SecretStr, *, letters_max: int = 100_000, connections_max: int = 2
) -> PostgresDeadLetters:
    """The dead letters in the catalogue database; connects at the first use, `close` ends it.

    `letters_max` bounds the letters of each queue (`FLASHSALE_DEAD_LETTERS_MAX`).
    """
    pool = postgres_pool(catalogue_dsn, size_max=connections_max)
    return PostgresDeadLetters(pool, letters_max=letters_max, owns_pool=True)
