"""Pauses between attempts: exponential, bounded, with full jitter. Performs no I/O; the caller sleeps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """`next_s()` doubles from `first_s` to `longest_s`; up to half of it is random, so that callers spread out."""

    first_s: float = 0.05
    longest_s: float = 1.0
    rng: random.Random = field(default_factory=random.Random)
    _failures: int = 0

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        # 2.0 ** 2000 raises OverflowError.
        whole = min(self.longest_s, self.first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return whole * (0.5 + self.rng.random() / 2)

    def reset(self) -> None:
        """Begin at `first_s` again, after a success."""
        self._failures = 0
