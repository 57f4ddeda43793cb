"""The process tier: a bounded number of decoded values in memory, each for a bounded time. Performs no I/O.

A new value enters a small window (1%), which evicts its least recently used entry. An entry evicted from the window
replaces the least recently used entry of the main part only if it was read more often (W-TinyLFU, see `frequency`). So
a scan over all rows, or requests for invented ids, cannot evict popular entries.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from backoffice.caching.frequency import Frequency

V = TypeVar("V")
_WINDOW_PERCENT = 1


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A value, or None for an absent row. `ends_at` is in seconds of the clock of the tier."""

    value: V | None
    ends_at: float


class ProcessTier(Generic[V]):
    """At most `entries_max` entries. `evicted` receives the reason of each eviction: `size`, `expired`."""

    def __init__(
        self,
        entries_max: int,
        *,
        evicted: Callable[[str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Empty."""
        assert entries_max > 0
        self._window_max = max(1, entries_max * _WINDOW_PERCENT // 100)
        self._main_max = entries_max - self._window_max
        self._window: OrderedDict[str, Entry[V]] = OrderedDict()
        self._main: OrderedDict[str, Entry[V]] = OrderedDict()
        self._frequency = Frequency(entries_max)
        self._evicted = evicted
        self._now = now

    def __len__(self) -> int:
        """The number of entries, including expired ones that were not read since."""
        return len(self._window) + len(self._main)

    def get(self, key: str) -> Entry[V] | None:
        """The entry; None when it is missing or expired."""
        self._frequency.record(key)
        part = self._main if key in self._main else self._window
        entry = part.get(key)
        if entry is None:
            return None
        if entry.ends_at <= self._now():
            del part[key]
            self._evicted("expired")
            return None
        part.move_to_end(key)
        return entry

    def put(self, key: str, value: V | None, *, ttl_s: float) -> None:
        """Keep a value for `ttl_s`. At the bound, one entry is evicted, perhaps this one."""
        entry = Entry(value, self._now() + ttl_s)
        if key in self._main:
            self._main[key] = entry
            self._main.move_to_end(key)
            return
        self._window[key] = entry
        self._window.move_to_end(key)
        if len(self._window) > self._window_max:
            self._leave_window()

    def drop(self, key: str) -> bool:
        """Drop a key; whether it was present."""
        part = self._main if key in self._main else self._window
        return part.pop(key, None) is not None

    def clear(self) -> None:
        """Drop all entries; keep the counts of their reads."""
        self._window.clear()
        self._main.clear()

    def _leave_window(self) -> None:
        candidate, entry = self._window.popitem(last=False)
        if len(self._main) < self._main_max:
            self._main[candidate] = entry
            return
        self._evicted("size")
        if self._main_max == 0:
            return
        victim = next(iter(self._main))
        if self._frequency.estimate(candidate) > self._frequency.estimate(victim):
            del self._main[victim]
            self._main[candidate] = entry
