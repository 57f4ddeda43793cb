"""Redis time as this worker sees it: the local clock corrected by a measured offset. Performs no I/O."""

from __future__ import annotations

import time


class RedisClock:
    """Windows and holds are judged by Redis `TIME`; reads use this estimate of it (error: half a round trip)."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    @property
    def offset_ms(self) -> int:
        """Redis' clock minus ours."""
        return round(self._offset_ms)

    def now_ms(self) -> int:
        """Redis time in milliseconds, as estimated; the local clock until the first measurement."""
        return int(time.time() * 1000 + self._offset_ms)

    def measured(self, *, redis_s: int, redis_us: int, asked_at: float, answered_at: float) -> None:
        """Take a `TIME` answer; `asked_at` and `answered_at` are `time.time()` around the call, in seconds."""
        self._offset_ms = redis_s * 1000 + redis_us / 1000 - (asked_at + answered_at) * 500
