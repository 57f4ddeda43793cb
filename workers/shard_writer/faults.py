"""Tells poison (an order that the database refuses) from transient faults (all that passes). Performs no I/O."""

from __future__ import annotations

import psycopg
from psycopg import errors

_REASON_LENGTH_MAX = 300


def is_poison(error: psycopg.Error) -> bool:
    """Whether the data of an order caused this: SQLSTATE class 22 (data) or 23 (constraint).

    The quota's own CHECK is not an order's fault: the quota moved under the lock, and the batch is read again. Every
    other error - connection, locks, time-outs, a full disk, an old schema - passes or needs an operator, and must
    never cost an order an attempt.
    """
    if isinstance(error, errors.IntegrityError):
        return error.diag.table_name != "quota"
    return isinstance(error, errors.DataError)


def reason_of(error: psycopg.Error) -> str:
    """One line for the dead letter: SQLSTATE and the database's message."""
    text = error.diag.message_primary or type(error).__name__
    return f"{error.sqlstate or 'none'} {text}"[:_REASON_LENGTH_MAX]
