"""A circuit breaker: after consecutive failures it rejects calls, then admits one probe at a time. Performs no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable

from runtime.process.backoff import Backoff

FAILURES_MAX = 3
FIRST_S = 0.1
LONGEST_S = 2.0


class Breaker:
    """Closed: admits every call. Open: rejects calls for 0.1 s to 2 s, longer each time; then one call is the probe."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        """Closed."""
        self._now = now
        self._backoff = Backoff(first_s=FIRST_S, longest_s=LONGEST_S)
        self._failures = 0
        self._open_until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are rejected, except for a probe."""
        return self._failures >= FAILURES_MAX

    def admits(self) -> bool:
        """Whether to call now. An admitted caller must report the outcome: `succeeded`, `failed` or `abandoned`."""
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
        """The server did not answer in time."""
        if self.is_open and not self._probing:
            return  # this call began before the breaker opened; such calls must not lengthen the pause
        self._failures += 1
        self._probing = False
        if self.is_open:
            self._open_until = self._now() + self._backoff.next_s()

    def abandoned(self) -> None:
        """The call was cancelled, or its failure says nothing about the server."""
        self._probing = False
