"""Tells poison (an order that the database refuses) from transient faults (all that passes). Performs no I/O."""

from __future__ import annotations

import psycopg

from workers.consuming import REFUSED

_REASON_LENGTH_MAX = 300


def is_poison(error: psycopg.Error) -> bool:
    """Whether the data of an order caused this: SQLSTATE class 22 (data) or 23 (constraint).

    The quota's own CHECK is one of them: the quota was read under its lock, so an order that does not fit never will.
    Every other error - connection, locks, time-outs, a full disk, an old schema - passes or needs an operator, and must
    never cost an order an attempt.
    """
    return isinstance(error, REFUSED)


def reason_of(error: psycopg.Error) -> str:
    """One line for the dead letter: SQLSTATE and the database's message."""
    text = error.diag.message_primary or type(error).__name__
    return f"{error.sqlstate or 'none'} {text}"[:_REASON_LENGTH_MAX]
