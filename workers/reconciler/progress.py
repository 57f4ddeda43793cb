"""Invariant B, lane by lane: how far every entry is stored or dead-lettered.

A watermark is the sequence up to which a lane was counted complete. Only entries beyond it are counted at each look, so
the cost follows the entries since the last look. Samples of the newest sequence show how long an entry has existed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from workers.reconciler.verdict import Finding

STORED_WITHIN_S = 60.0
CHUNK = 50_000
CHUNKS_MAX = 40  # in one look
SAMPLES_MAX = 600


class Places(Protocol):
    """Source of the counts (`Reading`)."""

    async def places(self, lane: int, *, after: int, upto: int) -> int:
        """Places of a lane in (after, upto] that are stored or dead-lettered."""
        ...

    async def note_poison(self, lane: int) -> None:
        """Account for entries that the relay dead-lettered."""
        ...

    async def raise_watermark(self, lane: int, verified_seq: int) -> None:
        """Record how far a lane was proved."""
        ...


@dataclass(slots=True)
class LaneProgress:
    """One lane: `verified` is the watermark, `samples` are (monotonic seconds, sequence), the oldest first."""

    lane: int
    verified: int = 0
    stored_within_s: float = STORED_WITHIN_S
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    findings: list[Finding] = field(default_factory=list)

    async def look(self, places: Places, seq: int) -> None:
        """Take a sample and move the watermark as far as entries are stored. `findings` are of this look."""
        self.findings = []
        now = time.monotonic()
        # One sample a second is enough, and bounds how many there are.
        if not self.samples or now - self.samples[-1][0] >= 1.0:
            self.samples.append((now, seq))
        if seq < self.verified:
            self.findings.append(
                Finding(f"lane {self.lane}: sequence {seq} is below {self.verified}: Redis lost entries")
            )
            return
        before = self.verified
        await self._advance(places, seq)
        due = self._due(now)
        if due is not None and self.verified < due:
            await places.note_poison(self.lane)
            await self._advance(places, seq)
            if self.verified < due:
                self.findings.append(
                    Finding(
                        f"lane {self.lane}: entry {self.verified + 1} is not stored after "
                        f"{self.stored_within_s:.0f} s (newest then: {due})"
                    )
                )
        if self.verified > before:
            await places.raise_watermark(self.lane, self.verified)

    def is_proved(self, seq: int) -> bool:
        """Whether all due entries are stored: all up to `seq`, or up to the sample `stored_within_s` ago."""
        due = self._due(time.monotonic())
        return not self.findings and (self.verified == seq or (due is not None and self.verified >= due))

    async def recount(self, places: Places) -> list[Finding]:
        """Count again all that was proved before: rows may have disappeared since."""
        count = 0
        for after in range(0, self.verified, CHUNK):
            count += await places.places(self.lane, after=after, upto=min(after + CHUNK, self.verified))
        if count == self.verified:
            return []
        return [Finding(f"lane {self.lane}: {count} entries are stored of {self.verified} that were proved")]

    def _due(self, now: float) -> int | None:
        """Newest sequence that existed `stored_within_s` ago; None without a sample of that age."""
        due = None
        for at, seq in self.samples:
            if now - at < self.stored_within_s:
                break
            due = seq
        return due

    async def _advance(self, places: Places, seq: int) -> None:
        for _ in range(CHUNKS_MAX):
            upto = min(seq, self.verified + CHUNK)
            if upto == self.verified:
                return
            count = await self._count(places, upto)
            if count == upto - self.verified:
                self.verified = upto
                continue
            await self._advance_to_gap(places, upto)
            return

    async def _advance_to_gap(self, places: Places, incomplete: int) -> None:
        """Bisect: afterwards `verified + 1` is the first entry that is not stored."""
        while incomplete - self.verified > 1:
            # Usually the very next entry or the newest few are missing: bisection finds both in few steps.
            middle = (self.verified + incomplete) // 2
            if await self._count(places, middle) == middle - self.verified:
                self.verified = middle
            else:
                incomplete = middle

    async def _count(self, places: Places, upto: int) -> int:
        count = await places.places(self.lane, after=self.verified, upto=upto)
        if count > upto - self.verified:
            text = f"lane {self.lane}: {count} rows for entries {self.verified + 1} to {upto}: one is stored twice"
            self.findings.append(Finding(text))
        return count
