"""The entries that one destination of a lane has not confirmed: read, in flight, or left out for lack of room.

Performs no I/O. Memory is bounded by `entries_max`: an entry that finds no room is only marked as left out, to be read
from the stream again later. So a queue that takes nothing never delays the others, however long that lasts.
"""

from __future__ import annotations

import asyncio
from collections import deque

Entry = tuple[int, bytes, bytes]  # lane_seq, entry, encoded headers


class Backlog:
    """Entries of one lane for one destination, in lane order."""

    __slots__ = ("_entries", "_entries_max", "_in_flight", "left_out_from", "room", "work")

    def __init__(self, entries_max: int) -> None:
        """Room for `entries_max` entries that are not in flight yet."""
        self._entries: deque[Entry] = deque()
        self._entries_max = entries_max
        self._in_flight: list[int] = []  # first seq of each batch; a handful
        self.left_out_from: int | None = None  # first lane_seq that may have to be read again
        self.work = asyncio.Event()  # set while there are entries to take
        self.room = asyncio.Event()  # set while `has_room`
        self.room.set()

    @property
    def has_room(self) -> bool:
        """Whether one more entry may be put in."""
        return len(self._entries) < self._entries_max

    @property
    def is_half_empty(self) -> bool:
        """Whether to read left-out entries again."""
        return len(self._entries) <= self._entries_max // 2

    def offer(self, seq: int, entry: bytes, headers: bytes = b"") -> bool:
        """Put in the next entry; without room, or behind one that was left out, it is left out: False."""
        if self.left_out_from is not None:
            return False
        if not self.has_room:
            self.left_out_from = seq
            return False
        self._put(seq, entry, headers)
        return True

    def offer_again(self, seq: int, entry: bytes, headers: bytes = b"") -> bool:
        """Put in an entry that was left out; without room, reading again stops here: False."""
        assert self.left_out_from is not None and seq >= self.left_out_from
        if not self.has_room:
            self.left_out_from = seq
            return False
        self._put(seq, entry, headers)
        return True

    def _put(self, seq: int, entry: bytes, headers: bytes) -> None:
        self._entries.append((seq, entry, headers))
        self.work.set()
        if not self.has_room:
            self.room.clear()

    def take(self, count_max: int) -> list[Entry]:
        """The oldest entries, at most `count_max`; from now they are in flight, as one batch named by its first seq."""
        entries = [self._entries.popleft() for _ in range(min(count_max, len(self._entries)))]
        if entries:
            self._in_flight.append(entries[0][0])
        if not self._entries:
            self.work.clear()
        if self.has_room:
            self.room.set()
        return entries

    def confirm(self, first_seq: int) -> None:
        """The batch that begins with `first_seq` is durable elsewhere."""
        self._in_flight.remove(first_seq)

    @property
    def oldest_unconfirmed(self) -> int | None:
        """The least lane_seq that is not confirmed; None when all offered entries are."""
        candidates = [*self._in_flight]
        if self._entries:
            candidates.append(self._entries[0][0])
        if self.left_out_from is not None:
            candidates.append(self.left_out_from)
        return min(candidates, default=None)
