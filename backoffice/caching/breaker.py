"""A circuit breaker: after failures in a row nobody asks for a while, then one at a time tries. Performs no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable

from runtime.process.backoff import Backoff

FAILURES_MAX = 3
FIRST_S = 0.1
LONGEST_S = 2.0


class Breaker:
    """Closed: everybody asks. Open: nobody does, for 0.1 s to 2 s, longer each time; then one call is the probe."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        """Closed."""
        self._now = now
        self._backoff = Backoff(first_s=FIRST_S, longest_s=LONGEST_S)
        self._failures = 0
        self._open_until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether callers are turned away, or one of them is trying."""
        return self._failures >= FAILURES_MAX

    def admits(self) -> bool:
        """Whether to ask now. Who is admitted tells the outcome: `succeeded`, `failed` or `abandoned`."""
        if not self.is_open:
            return True
        if self._probing or self._now() < self._open_until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0
        self._probing = False
        self._backoff.reset()

    def failed(self) -> None:
        """It did not, or too late."""
        if self.is_open and not self._probing:
            return  # asked before it opened: however many waited then, the pause is no longer for that
        self._failures += 1
        self._probing = False
        if self.is_open:
            self._open_until = self._now() + self._backoff.next_s()

    def abandoned(self) -> None:
        """The call was cancelled: nothing was learnt."""
        self._probing = False
