"""Invariant G, judged in rounds: a quick look at what changed lately, and now and then a look at everything.

A look also looks again at the rows of earlier findings, so that a finding stands as long as it is true. A shard that is
away makes the verdict unknown, never good; what was found in it stands. After its return it gets the time that it was
away, at most `GRACE_S_MAX`, to settle the payments that waited: until then they make the verdict unknown, not bad.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import structlog

from payments.accounting import EVER, LATE, Accounting, Finding

EVERY_S: Final = 5.0
QUICK_WINDOW: Final = timedelta(minutes=15)
DEEP_EVERY_S: Final = 600.0
DEEP_AGE_S_MAX: Final = 3600.0  # an older look at everything proves nothing
GRACE_S_MAX: Final = LATE.total_seconds()
SHOWN_MAX: Final = 10

log = structlog.get_logger()


@dataclass(slots=True)
class _Shard:
    deep_at: float | None = None  # monotonic, as the other times
    found: list[Finding] = field(default_factory=list)
    away: str | None = "not looked at yet"
    away_since: float | None = None
    grace_until: float = -math.inf


@dataclass(frozen=True, slots=True)
class MoneyVerdict:
    """Whether G holds; None: not judged."""

    at_ms: int
    g: bool | None
    detail: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """As JSON."""
        return {"at_ms": self.at_ms, "G": self.g, "detail": list(self.detail)}


class MoneyLooks:
    """Looks at the payments of all shards. `look` is one round."""

    def __init__(
        self,
        accounting: Accounting,
        *,
        shards: int,
        deep_every_s: float = DEEP_EVERY_S,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Uses it, owns nothing."""
        self._accounting = accounting
        self._shards = [_Shard() for _ in range(shards)]
        self._deep_every_s = deep_every_s
        self._now_s = now_s

    async def look(self, at_ms: int) -> MoneyVerdict:
        """A verdict; `at_ms` is Redis time. Errors of a shard end up in the verdict."""
        for number, shard in enumerate(self._shards):
            began = self._now_s()
            is_deep = shard.deep_at is None or began - shard.deep_at >= self._deep_every_s
            since = EVER if is_deep else datetime.now(UTC) - QUICK_WINDOW
            try:
                shard.found = await self._accounting.look(number, since=since, again=[f.at for f in shard.found])
            except (psycopg.Error, OSError, TimeoutError) as error:
                shard.away = f"shard {number} does not answer: {type(error).__name__}"
                shard.away_since = began if shard.away_since is None else shard.away_since
                continue
            if shard.away_since is not None:
                shard.grace_until = began + min(began - shard.away_since, GRACE_S_MAX)
            shard.away = shard.away_since = None
            if is_deep:
                shard.deep_at = began
        return self._verdict(at_ms)

    def _verdict(self, at_ms: int) -> MoneyVerdict:
        now_s = self._now_s()
        waits = [shard.away for shard in self._shards if shard.away is not None]
        found = []
        for number, shard in enumerate(self._shards):
            for finding in sorted(shard.found, key=lambda each: each.text):
                if finding.late and now_s < shard.grace_until:
                    waits.append(f"shard {number} was away until lately: {finding.text}")
                else:
                    found.append(finding.text)
        waits += [
            f"shard {number}: not everything was looked at lately"
            for number, shard in enumerate(self._shards)
            if shard.away is None and (shard.deep_at is None or now_s - shard.deep_at > DEEP_AGE_S_MAX)
        ]
        held = False if found else None if waits else True
        if found:
            log.error("money is not accounted for", findings=len(found), first=found[0])
        return MoneyVerdict(at_ms, held, tuple([*found, *waits][:SHOWN_MAX]))
