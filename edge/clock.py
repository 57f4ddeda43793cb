"""Redis time, estimated: the local clock corrected by a measured offset. Performs no I/O."""

from __future__ import annotations

import time


class RedisClock:
    """Estimates Redis `TIME`, which decides on sale windows and holds. Error: at most half a round trip."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    @property
    def offset_ms(self) -> int:
        """Redis' clock minus the local clock, in milliseconds."""
        return round(self._offset_ms)

    def now_ms(self) -> int:
        """Estimated Redis time in milliseconds; the local time before the first measurement."""
        return int(time.time() * 1000 + self._offset_ms)

    def measured(self, *, redis_s: int, redis_us: int, asked_at: float, answered_at: float) -> None:
        """Record a `TIME` reply; `asked_at` and `answered_at` are `time.time()` around the call, in seconds."""
        self._offset_ms = redis_s * 1000 + redis_us / 1000 - (asked_at + answered_at) * 500
