"""The description of a fault: its act, its proof, its sale and its permitted effects. `catalogue` lists all faults."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from domain.topology import Topology
from faults.buyers import SimulatedBuyers
from faults.checker import Expectations, Finding
from faults.conditions import Needs
from faults.stage import Stage

# Share of its pace that buying must keep beside a fault that should not stop it: the fault loads the machine, too.
GOES_ON_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Sale:
    """The sale at which buyers order. `scarce` units of one SKU sell out during the drill."""

    scarce: int = 120
    plenty: int = 50_000
    per_user_limit: int = 0
    hold_s: int = 7200  # longer than a whole run: a hold that ends meanwhile would change the compared counters
    cancel: float = 0.06
    lanes: int = 1


LONG: Final = Sale(plenty=300_000)  # for drills of minutes


@dataclass(slots=True)
class Drill:
    """The argument of an act: the stage, the buyers at work, the sale, and a seeded source of random numbers."""

    stage: Stage
    buyers: SimulatedBuyers
    rng: random.Random
    sale_id: UUID
    skus: list[str]
    cluster: Topology
    say: Callable[[str], None]
    door_url: str  # of the edge, for a fault that attacks one
    lane_count: int = 1
    findings: list[Finding] = field(default_factory=list)

    def fail(self, invariant: str, text: str) -> None:
        """Report a broken promise that the act itself observed."""
        self.findings.append(Finding(invariant, text))

    def pace(self) -> float:
        """Definite answers per second in the last second."""
        return self.buyers.per_s(time.monotonic() - 1.0, time.monotonic())

    def goes_on(self, since: float, before_per_s: float, *, share: float = GOES_ON_SHARE) -> float:
        """Definite answers per second since the harm began; a finding if they fell below `share` of the pace before."""
        now_per_s = self.buyers.per_s(since, time.monotonic())
        if now_per_s < share * before_per_s:
            self.fail("F", f"buyers got {now_per_s:.0f} answers/s beside the fault, {before_per_s:.0f}/s before it")
        return now_per_s

    @property
    def lanes(self) -> tuple[int, ...]:
        """Lanes of the sale."""
        return self.cluster.lanes_of_sale(self.sale_id, count=self.lane_count)

    def silence(self, since: float) -> None:
        """Note that the edge was stopped or gone from `since` until now and could not answer."""
        self.buyers.history.silences.append((since, time.monotonic()))

    async def pause(self, low_s: float, high_s: float) -> None:
        """Sleep for a random time between the two."""
        await asyncio.sleep(self.rng.uniform(low_s, high_s))


Act = Callable[[Drill], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `act` causes it, undoes it where it does not end by itself, and returns the proof that it happened."""

    name: str
    about: str
    expected: str
    act: Act
    needs: Needs = field(default_factory=Needs)
    sale: Sale = field(default_factory=Sale)
    allowed: Expectations = field(default_factory=Expectations)
    heals: bool = True  # goodput must be back afterwards (F)
    fast: bool = False  # part of `make test`
