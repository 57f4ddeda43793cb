"""Cross-origin requests (Fetch standard, section 3.2): the headers that let a page read an answer. Performs no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edge.problems import Header

ALLOWED_HEADERS: Final = "Authorization, Idempotency-Key, Content-Type"
EXPOSED_HEADERS: Final = "Location, Retry-After, Idempotency-Replayed, RateLimit, RateLimit-Policy"
PREFLIGHT_S: Final = 600
_VARY: Final[list[Header]] = [("vary", "Origin")]


class Cors:
    """The origins that may read answers. Adds no header when there are none."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)
        self.is_active = bool(self._origins)

    def for_answer(self, origin: str | None) -> list[Header]:
        """Headers for any answer, problems included."""
        if not self.is_active:
            return []
        if origin is None or not self._allows(origin):
            return _VARY
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", EXPOSED_HEADERS),
            *_VARY,
        ]

    def for_preflight(self, origin: str | None, methods: Sequence[str]) -> list[Header]:
        """Further headers of the answer to OPTIONS, besides those of `for_answer`."""
        if origin is None or not self._allows(origin):
            return []
        return [
            ("access-control-allow-methods", ", ".join(methods)),
            ("access-control-allow-headers", ALLOWED_HEADERS),
            ("access-control-max-age", str(PREFLIGHT_S)),
        ]

    def _allows(self, origin: str) -> bool:
        return origin in self._origins or "*" in self._origins
