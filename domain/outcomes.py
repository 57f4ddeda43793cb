"""What the reservation scripts answer for one request. Spelled once here; the scripts' headers are parsed by a test.

A reply member is an integer `argument * 16 + outcome`, but for REPLAYED, which is the apply-once record (a bulk string).
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
    NOT_OPEN = 4  # argument: milliseconds until it opens, 0 when paused
    ENDED = 5
    RATE_LIMITED = 6  # argument: milliseconds until one request is allowed
    PURCHASE_LIMIT = 7
    SOLD_OUT = 8
    HAS_STOCK = 9  # lookup only: there is stock again, ask reserve
    STREAM_FULL = 10  # the lane's stream is at its bound


class Transition(IntEnum):
    """Answer of `cancel`, `settle` and `expire`."""

    DONE = 0  # the state changed now
    REPEATED = 1  # it was in the wanted state before
    CONFLICT = 2  # another final state, or the hold is over
    NOT_FOUND = 3  # the lane does not know the order, or not since it was rebuilt, or it is another user's
    NOT_DUE = 4  # expire only: the hold still lives
