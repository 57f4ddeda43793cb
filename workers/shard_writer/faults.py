"""Tells poison (an order that the database refuses) from weather (everything that passes). Performs no I/O."""

from __future__ import annotations

import psycopg
from psycopg import errors

_REASON_LENGTH_MAX = 300


def is_poison(error: psycopg.Error) -> bool:
    """Whether the data of an order caused this: SQLSTATE class 22 (data) or 23 (constraint).

    The quota's own CHECK is not an order's fault: somebody moved the quota under our lock, and the batch is read again.
    Anything else - connection, locks, time-outs, a full disk, a schema that is behind - passes or is an operator's to
    mend, and must never cost an order an attempt.
    """
    if isinstance(error, errors.IntegrityError):
        return error.diag.table_name != "quota"
    return isinstance(error, errors.DataError)


def reason_of(error: psycopg.Error) -> str:
    """One line for the dead letter: what the database said and about what."""
    text = error.diag.message_primary or type(error).__name__
    return f"{error.sqlstate or 'none'} {text}"[:_REASON_LENGTH_MAX]
