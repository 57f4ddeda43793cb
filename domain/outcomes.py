"""Answers of the reservation scripts, spelled once. A test compares them with the scripts' headers.

In a batch's reply a member is an integer `argument * 16 + outcome`; for REPLAYED it is the apply-once record (bulk
string).
"""

from __future__ import annotations

from enum import IntEnum

OUTCOME_BITS = 4


class Outcome(IntEnum):
    """Answer of `reserve` and `lookup` for one request."""

    ACCEPTED = 0  # effects were written; reserved_at is the batch's time
    REPLAYED = 1  # same key, same lines: the stored answer (bulk string, the apply-once record)
    KEY_REUSED = 2  # same key, other lines
    STALE = 3  # epoch or version differ from the lane's, or the lane does not know the sale
    NOT_OPEN = 4  # argument: milliseconds until the sale opens, 0 when paused
    ENDED = 5
    RATE_LIMITED = 6  # argument: milliseconds until one request is allowed
    PURCHASE_LIMIT = 7
    SOLD_OUT = 8
    HAS_STOCK = 9  # lookup only: there is stock again, ask reserve
    STREAM_FULL = 10  # the lane's stream is at its bound
    UNITS_ELSEWHERE = 11  # of a sale of many lanes: other lanes may have the units; try again


class Transition(IntEnum):
    """Answer of `cancel`, `settle`, `expire` and `reject`."""

    DONE = 0  # the state changed now
    REPEATED = 1  # the order was in the wanted state before
    CONFLICT = 2  # another final state, or the hold is over
    NOT_FOUND = 3  # no such order, another user's, or one that a rebuild did not restore
    NOT_DUE = 4  # expire only: the hold still lives


class LoadAnswer(IntEnum):
    """Answer of `load`."""

    KNOWN = 0  # the lane knew the sale, nothing changed
    LOADED = 1


class DefineAnswer(IntEnum):
    """Answer of `define`."""

    UNKNOWN = -1  # the lane does not know the sale, has another epoch, or has closed the sale for recovery
    KEPT = 0  # the lane has this version or a newer one
    REPLACED = 1


class RestockAnswer(IntEnum):
    """Answer of `restock`."""

    KEY_REUSED = -2  # the key was used with other numbers
    UNKNOWN = -1  # the lane does not know the sale or the SKU, or has closed the sale for recovery
    REPEATED = 0  # applied before
    APPLIED = 1


class ForgetAnswer(IntEnum):
    """Answer of `forget`, which is the number of removed fields for FORGOTTEN."""

    RESERVED = -2  # units are still reserved: their holds must be collected first
    NOT_OVER = -1  # the sale is not over
    UNKNOWN = 0  # the lane does not know the sale
    FORGOTTEN = 1  # 1 or more


class RebuildAnswer(IntEnum):
    """Answer of `restore` and `reopen`."""

    SUPERSEDED = -1  # the sale is not under this rebuild any more
    DONE = 1


class LendAnswer(IntEnum):
    """Answer of `lend`, which is the number of lent units for LENT."""

    STALE = -1  # the lane does not know the sale, has another epoch, or has closed the sale for recovery
    NOT_LENT = 0  # no unit is available, or the transfer is not the next one of its kind
    LENT = 1  # 1 or more


class CreditAnswer(IntEnum):
    """Answer of `credit`."""

    STALE = -1
    REPEATED = 0  # credited before
    CREDITED = 1


class ClearAnswer(IntEnum):
    """Answer of `clear`."""

    STALE = -1
    REPEATED = 0  # cleared before
    CLEARED = 1


class LeftAnswer(IntEnum):
    """Answer of `left`."""

    STALE = -1
    CHANGED = 0  # units came back since the lane was read
    NOTED = 1
