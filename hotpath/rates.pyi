"""Rates of users (GCRA) in memory that the workers of an edge share."""

from typing import Any

class UserRates:
    """At most `burst` requests at once and one more each `interval_us`, for each user."""

    def __init__(self, memory: Any, *, interval_us: int, burst: int) -> None:
        """`memory`: a writable buffer of zeros, of 64 bytes times a power of two."""

    def take(self, user_hash: int, now_us: int) -> int:
        """Count a request; 0, or the microseconds to wait when it is refused."""
