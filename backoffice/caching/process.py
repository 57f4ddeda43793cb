"""The process tier: a bounded number of decoded values in memory, each for a bounded time. Performs no I/O.

A new value enters a small window (1%, least recently used goes first). What the window pushes out takes the place of the
main part's least recently used entry only if it was asked for more often (W-TinyLFU, see `frequency`): a scan over
everything, or ids that somebody invents, cannot push out what is popular.
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
    """A value that is known, None for what is known to be absent. `ends_at` by the tier's clock, in seconds."""

    value: V | None
    ends_at: float


class ProcessTier(Generic[V]):
    """At most `entries_max` entries. `evicted` is told why one went: `size`, `expired`."""

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
        """Entries, those included whose time is over and that nobody asked for since."""
        return len(self._window) + len(self._main)

    def get(self, key: str) -> Entry[V] | None:
        """The entry, None when there is none whose time is not over."""
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
        """Keep a value for a time, unless what is there is more popular; at the bound one entry goes."""
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
        """Forget a key; whether it was there."""
        part = self._main if key in self._main else self._window
        return part.pop(key, None) is not None

    def clear(self) -> None:
        """Forget everything but how popular it was."""
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
