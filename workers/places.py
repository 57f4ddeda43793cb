"""Sets of a lane's places: which are accounted for, which by several entries. Performs no I/O.

Sets and not counts: one place that two shards have would hide another that no shard has. A shard sends its places of a
range as 4 bytes each, relative to the start of the range, so that a chunk of 50,000 places costs 200 kB and a few
milliseconds, however they are spread over the shards.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

DOUBLED_MAX = 100
_CODE = "I"
assert array(_CODE).itemsize == 4


@dataclass(frozen=True, slots=True)
class Coverage:
    """The places of a lane in (after, upto]. `doubled`: places that several stored entries have, at most 100."""

    after: int
    upto: int
    missing: int
    first_missing: int | None
    doubled: tuple[int, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Every place is accounted for."""
        return self.missing == 0


def unpack(packed: bytes) -> array[int]:
    """Places relative to the start of their range, from `int4send` of each."""
    places = array(_CODE)
    places.frombytes(packed)
    if sys.byteorder == "little":
        places.byteswap()
    return places


def cover(
    after: int,
    upto: int,
    *,
    stored: Iterable[Iterable[int]],
    noted: Iterable[Iterable[int]] = (),
    lost: Iterable[tuple[int, int]] = (),
) -> Coverage:
    """Compare the range (after, upto] with the places that shards and catalogue have.

    `stored` places belong to one entry each, so none may be there twice. `noted` ones (dead letters, given up) and the
    inclusive ranges `lost`, in absolute places, may repeat others. `stored` and `noted` are relative to `after`.
    """
    entries = list(chain.from_iterable(stored))
    seen = set(entries)
    doubled: list[int] = []
    if len(entries) > len(seen):
        counts = Counter(entries)
        doubled = sorted(place for place, count in counts.items() if count > 1)[:DOUBLED_MAX]
    seen.update(*noted)
    for first, last in lost:
        seen.update(range(max(first, after + 1) - after, min(last, upto) - after + 1))
    missing = upto - after - len(seen)
    first_missing = None
    if missing:
        first_missing = next(after + place for place in range(1, upto - after + 1) if place not in seen)
    return Coverage(after, upto, missing, first_missing, tuple(after + place for place in doubled))
