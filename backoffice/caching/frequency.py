"""Estimates the recent reads of each key, in little memory. Performs no I/O.

A count-min sketch whose counters are halved periodically: TinyLFU (Einziger, Friedman, Manes, 2017,
https://arxiv.org/abs/1512.00727).
"""

from __future__ import annotations

ROWS = 4
COUNT_MAX = 15
_COUNTERS_PER_ENTRY = 4
_SAMPLES_PER_ENTRY = 10
_HALVED = bytes(count >> 1 for count in range(256))


class Frequency:
    """Counts for a cache of `entries_max` entries, in 16 bytes per entry. Independent of the number of keys."""

    def __init__(self, entries_max: int) -> None:
        """All counts are zero."""
        width = 1 << max(6, (entries_max * _COUNTERS_PER_ENTRY - 1).bit_length())
        self._mask = width - 1
        self._rows = [bytearray(width) for _ in range(ROWS)]
        self._samples_max = max(1000, entries_max * _SAMPLES_PER_ENTRY)
        self._samples = 0

    def record(self, key: str) -> None:
        """Count one read of the key."""
        place, step, mask = self._places(key)
        for row in self._rows:
            count = row[place]
            if count < COUNT_MAX:
                row[place] = count + 1
            place = (place + step) & mask
        self._samples += 1
        if self._samples >= self._samples_max:
            # Halving lets popularity fade; without it the counters would saturate.
            self._rows = [row.translate(_HALVED) for row in self._rows]
            self._samples //= 2

    def estimate(self, key: str) -> int:
        """The estimated count, 0..15: never below the true count, seldom above."""
        place, step, mask = self._places(key)
        lowest = COUNT_MAX
        for row in self._rows:
            lowest = min(lowest, row[place])
            place = (place + step) & mask
        return lowest

    def _places(self, key: str) -> tuple[int, int, int]:
        # Double hashing (Kirsch, Mitzenmacher): two halves of one hash work as well as independent hashes.
        # Python keys its hash per process, so a client cannot choose keys that share a counter.
        hashed = hash(key)
        return hashed & self._mask, (hashed >> 32) | 1, self._mask
