"""When a failed message is tried again, and when it is given up: a pure decision. Performs no I/O.

Only data errors spend attempts; while a database is away, consumption pauses instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from domain.topology import ORDER_RETRY_DELAYS_MS


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """`retry_in_ms`, or None: give up, to the dead letters."""

    retry_in_ms: int | None

    @property
    def gives_up(self) -> bool:
        """No further attempt."""
        return self.retry_in_ms is None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """One delay before each further attempt; after the last one, `len(delays_ms) + 1` attempts were made.

    The delays are those of the queue's spec: RabbitMQ needs one delay queue for each delay that is ever used.
    """

    delays_ms: tuple[int, ...] = ORDER_RETRY_DELAYS_MS

    @property
    def attempts_max(self) -> int:
        """Attempts in all, the first one included."""
        return len(self.delays_ms) + 1

    def decide(self, attempt: int) -> RetryDecision:
        """The decision after the failure of attempt number `attempt`, counted from 1."""
        assert attempt >= 1
        return RetryDecision(self.delays_ms[attempt - 1] if attempt <= len(self.delays_ms) else None)
