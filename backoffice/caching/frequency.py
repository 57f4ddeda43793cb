"""How often keys were asked for lately, roughly and in little memory. Performs no I/O.

A count-min sketch whose counters are halved from time to time: TinyLFU (Einziger, Friedman, Manes, 2017,
https://arxiv.org/abs/1512.00727).
"""

from __future__ import annotations

ROWS = 4
COUNT_MAX = 15
_COUNTERS_PER_ENTRY = 4
_SAMPLES_PER_ENTRY = 10
_HALVED = bytes(count >> 1 for count in range(256))


class Frequency:
    """Counts for a cache of `entries_max` entries: 16 bytes an entry, whatever keys there are."""

    def __init__(self, entries_max: int) -> None:
        """Nothing was asked for yet."""
        width = 1 << max(6, (entries_max * _COUNTERS_PER_ENTRY - 1).bit_length())
        self._mask = width - 1
        self._rows = [bytearray(width) for _ in range(ROWS)]
        self._samples_max = max(1000, entries_max * _SAMPLES_PER_ENTRY)
        self._samples = 0

    def record(self, key: str) -> None:
        """The key was asked for."""
        place, step, mask = self._places(key)
        for row in self._rows:
            count = row[place]
            if count < COUNT_MAX:
                row[place] = count + 1
            place = (place + step) & mask
        self._samples += 1
        if self._samples >= self._samples_max:
            # What was popular once gives way: without this, counters fill up and tell nothing.
            self._rows = [row.translate(_HALVED) for row in self._rows]
            self._samples //= 2

    def estimate(self, key: str) -> int:
        """How often it was asked for, 0..15: never too low, seldom too high."""
        place, step, mask = self._places(key)
        lowest = COUNT_MAX
        for row in self._rows:
            lowest = min(lowest, row[place])
            place = (place + step) & mask
        return lowest

    def _places(self, key: str) -> tuple[int, int, int]:
        # Double hashing (Kirsch, Mitzenmacher): two halves of one hash are as good as independent hashes.
        # Python's hash is keyed anew in each process, so nobody outside can aim at a counter.
        hashed = hash(key)
        return hashed & self._mask, (hashed >> 32) | 1, self._mask
