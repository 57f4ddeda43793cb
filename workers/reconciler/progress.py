"""Invariant B, lane by lane: how far every entry is stored or dead-lettered.

A watermark is the sequence up to which a lane was found complete. Only entries beyond it are read at each look, so the
cost follows the entries since the last look. Samples of the newest sequence show how long an entry has existed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from workers.places import DOUBLED_MAX, Coverage
from workers.reconciler.verdict import Finding

STORED_WITHIN_S = 60.0
CHUNK = 50_000
CHUNKS_MAX = 40  # in one look
SAMPLES_MAX = 600


class Places(Protocol):
    """Source of the places (`Reading`)."""

    async def places(self, lane: int, *, after: int, upto: int) -> Coverage:
        """The places of a lane in (after, upto], compared with all shards and the catalogue."""
        ...

    async def note_poison(self, lane: int) -> None:
        """Account for entries that the relay dead-lettered."""
        ...

    async def raise_watermark(self, lane: int, verified_seq: int) -> None:
        """Record how far a lane was proved."""
        ...


@dataclass(slots=True)
class LaneProgress:
    """One lane: `verified` is the watermark, `samples` are (monotonic seconds, sequence), the oldest first.

    `doubled`: places with several entries, as last found; a recount finds all of them again.
    """

    lane: int
    verified: int = 0
    stored_within_s: float = STORED_WITHIN_S
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    doubled: set[int] = field(default_factory=set)
    _late: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """Contradictions of the last look."""
        if not self.doubled:
            return self._late
        places = ", ".join(map(str, sorted(self.doubled)[:3]))
        return [*self._late, Finding(f"lane {self.lane}: {len(self.doubled)} places are stored twice, {places}")]

    async def look(self, places: Places, seq: int) -> None:
        """Take a sample and move the watermark as far as entries are stored. `findings` are of this look."""
        self._late = []
        now = time.monotonic()
        # One sample a second is enough, and bounds how many there are.
        if not self.samples or now - self.samples[-1][0] >= 1.0:
            self.samples.append((now, seq))
        if seq < self.verified:
            self._late.append(Finding(f"lane {self.lane}: sequence {seq} is below {self.verified}: Redis lost entries"))
            return
        before = self.verified
        await self._advance(places, seq)
        due = self._due(now)
        if due is not None and self.verified < due:
            await places.note_poison(self.lane)
            await self._advance(places, seq)
            if self.verified < due:
                self._late.append(
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

    def recounted(self, upto: int, doubled: set[int]) -> None:
        """Take over the doubled places that a recount of all places up to `upto` found."""
        self.doubled = {place for place in self.doubled if place > upto} | doubled

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
            found = await places.places(self.lane, after=self.verified, upto=upto)
            if len(self.doubled) < DOUBLED_MAX:
                self.doubled.update(found.doubled)
            if found.first_missing is not None:
                self.verified = found.first_missing - 1
                return
            self.verified = upto


@dataclass(slots=True)
class Recount:
    """All places of a lane up to `upto`, proved before, read again in chunks: rows may have disappeared since."""

    lane: int
    upto: int
    after: int = 0
    missing: int = 0
    first_missing: int | None = None
    doubled: set[int] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        """Every chunk was read."""
        return self.after >= self.upto

    async def step(self, places: Places) -> None:
        """Read the next chunk. After an error the same chunk is read again."""
        found = await places.places(self.lane, after=self.after, upto=min(self.after + CHUNK, self.upto))
        self.after = found.upto
        self.missing += found.missing
        if self.first_missing is None:
            self.first_missing = found.first_missing
        if len(self.doubled) < DOUBLED_MAX:
            self.doubled.update(found.doubled)

    @property
    def findings(self) -> list[Finding]:
        """The loss of rows that were proved."""
        if not self.missing:
            return []
        text = f"{self.missing} of {self.upto} proved entries are stored nowhere, the first is {self.first_missing}"
        return [Finding(f"lane {self.lane}: {text}")]
