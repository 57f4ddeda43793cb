"""Runs one fault from beginning to end: a new sale, buyers, the fault, recovery, drain, comparison.

buying for a while -> the fault -> its end, by itself or undone -> buying until goodput is back (F) -> buying stops
-> backlogs drain (F) -> unknown outcomes are resolved -> evidence is compared (A-E, G)
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from redis.exceptions import RedisError

from domain.topology import Topology
from faults.buyers import Habits, SimulatedBuyers
from faults.checker import Finding, check
from faults.conditions import NotFired, NotHere
from faults.evidence import backlog, dead_letters, gather, read_counters
from faults.history import Ending, History
from faults.scenario import Drill, Fault
from faults.stage import Stage
from payments.providers.port import ProviderAway
from runtime.process.settings import load_settings
from runtime.queue import QueueUnavailable

STEADY_S = 2.0
HEAL_S_MAX = 10.0
HEAL_LOOK_S = 1.0
HEAL_SHARE = 0.9
DRAIN_S_MAX = 60.0
LONG_HOLD_S = 60  # a shorter hold ends while the drill runs
COLLECT_S_MAX = 40.0
INVARIANTS = "ABCDEFG"


@dataclass(slots=True)
class Result:
    """Result of a drill. `proof`: evidence that the fault fired. Without findings the result is green."""

    name: str
    seed: int
    proof: str = ""
    skipped: str = ""
    findings: list[Finding] = field(default_factory=list)
    requests: int = 0
    accepted: int = 0
    refused: int = 0
    unknown_attempts: int = 0
    payments: int = 0
    healed_s: float | None = None
    drained_s: float | None = None
    took_s: float = 0.0

    @property
    def is_green(self) -> bool:
        """The fault fired, and all invariants hold."""
        return not self.findings and bool(self.proof) and not self.skipped

    def as_document(self) -> dict[str, Any]:
        """The document for `--json`."""
        broken = {finding.invariant for finding in self.findings}
        return {
            "name": self.name,
            "seed": self.seed,
            "verdict": "skipped" if self.skipped else "green" if self.is_green else "red",
            "reason": self.skipped,
            "proof": self.proof,
            "invariants": {} if self.skipped else {letter: letter not in broken for letter in INVARIANTS},
            "findings": [f"{finding.invariant}: {finding.text}" for finding in self.findings],
            "requests": self.requests,
            "accepted": self.accepted,
            "refused": self.refused,
            "unknown_attempts": self.unknown_attempts,
            "payments": self.payments,
            "healed_s": self.healed_s,
            "drained_s": self.drained_s,
            "took_s": round(self.took_s, 1),
        }


def run_drill(
    fault: Fault, stage: Stage, *, seed: int, say: Callable[[str], None], seconds: float = STEADY_S
) -> Result:
    """Run one fault on a stage, after `seconds` of buying. Effects of the fault become findings, not exceptions."""
    began = time.monotonic()
    result = Result(fault.name, seed)
    try:
        asyncio.run(_drill(fault, stage, result, say, seconds))
    except NotHere as reason:
        result.skipped = str(reason)
    except NotFired as reason:
        result.findings.append(Finding("F", f"the fault did not fire, or the stack did not recover: {reason}"))
    except Exception as error:  # a failed drill must not end the others
        where = "".join(traceback.format_exception(error)[-3:]).strip()
        result.findings.append(Finding("F", f"the drill failed: {where}"))
    finally:
        stage.calm()
    result.took_s = time.monotonic() - began
    return result


async def _drill(fault: Fault, stage: Stage, result: Result, say: Callable[[str], None], seconds: float) -> None:
    rng = random.Random(f"{fault.name}:{result.seed}")  # noqa: S311 - seeded, no secret
    cluster = load_settings().topology
    letters_before, since = await dead_letters(stage.stack), datetime.now(UTC)
    say(f"{fault.name}: opening a sale")
    sale_id, skus = await asyncio.to_thread(_open_sale, fault, stage)
    habits = Habits(cancel=fault.sale.cancel)
    buyers = SimulatedBuyers(stage.edge_urls, History(sale_id), dict(stage.users), skus, rng, habits)
    drill = Drill(stage, buyers, rng, sale_id, skus, cluster, say, rng.choice(stage.edge_urls))
    drill.lane_count = fault.sale.lanes
    buyers.start()
    try:
        say(f"{fault.name}: buying")
        await asyncio.sleep(seconds)
        before_per_s = buyers.per_s(time.monotonic() - seconds / 2, time.monotonic())
        say(f"{fault.name}: {fault.about}")
        stage.count_anew()
        result.proof = await fault.act(drill)
        stage.calm()
        if fault.heals:
            say(f"{fault.name}: recovering")
            result.healed_s = await _heal(buyers, before_per_s)
    finally:
        await buyers.stop()
    result.findings += drill.findings
    if fault.heals and result.healed_s is None:
        result.findings.append(
            Finding("F", f"goodput was not back to 90% of {before_per_s:.0f}/s within {HEAL_S_MAX:.0f} s")
        )
    say(f"{fault.name}: draining")
    # Requests with an unknown outcome may still be on their way to Redis. They are repeated afterwards: drain twice.
    first_drain_s = await _drain(stage, cluster, since)
    if fault.sale.hold_s < LONG_HOLD_S and not await _collected(stage, sale_id, fault.sale.hold_s):
        result.findings.append(Finding("F", f"holds were not released within {COLLECT_S_MAX:.0f} s after they expired"))
    if await buyers.resolve():
        say(f"{fault.name}: some outcomes stayed unknown")
    if await _drain(stage, cluster, since) is not None:
        result.drained_s = first_drain_s
    if result.drained_s is None:
        left = {
            name: count for name, count in (await backlog(stage.stack, cluster=cluster, since=since)).items() if count
        }
        result.findings.append(Finding("F", f"backlogs did not drain within {DRAIN_S_MAX:.0f} s: {left}"))
    say(f"{fault.name}: comparing")
    evidence = await gather(stage.stack, sale_id, cluster=cluster, since=since, known_dead_letters=letters_before)
    result.findings += check(buyers.history, evidence, cluster=cluster, expected=fault.allowed)
    result.requests = len(buyers.history.requests)
    result.accepted = sum(request.ending is Ending.OK for request in buyers.history.requests)
    result.refused = sum(request.ending is Ending.REFUSED for request in buyers.history.requests)
    result.unknown_attempts = sum(attempt.ending is Ending.UNKNOWN for attempt in buyers.history.attempts())
    result.payments = len(evidence.money.captured)
    if not result.accepted:
        result.findings.append(Finding("F", "no order was accepted"))


def _open_sale(fault: Fault, stage: Stage) -> tuple[UUID, list[str]]:
    stage.sales_made += 1
    shop = stage.staff()
    skus = [f"FAULT-{stage.sales_made}-{letter}" for letter in "ABC"]
    for sku in skus:
        shop.create_product(sku=sku, name=sku, price_minor=1999)
    stock = {skus[0]: fault.sale.scarce, skus[1]: fault.sale.plenty, skus[2]: fault.sale.plenty}
    sale = shop.create_open_sale(
        name=fault.name, stock=stock, price_minor=1999, hold_s=fault.sale.hold_s,
        per_user_limit=fault.sale.per_user_limit, lanes=fault.sale.lanes,
    )  # fmt: skip
    return UUID(sale["id"]), skus


async def _heal(buyers: SimulatedBuyers, before_per_s: float) -> float | None:
    """Seconds until goodput is back; None if it does not come back in time."""
    began = time.monotonic()
    while (now := time.monotonic()) - began < HEAL_S_MAX + HEAL_LOOK_S:
        await asyncio.sleep(0.1)
        if now - began >= HEAL_LOOK_S and buyers.per_s(now - HEAL_LOOK_S, now) >= HEAL_SHARE * before_per_s:
            return max(0.0, now - began - HEAL_LOOK_S)
    return None


async def _collected(stage: Stage, sale_id: UUID, hold_s: int) -> bool:
    """Whether all holds of the sale are released some time after the last one expired."""
    deadline = time.monotonic() + hold_s + COLLECT_S_MAX
    async with stage.redis() as redis:
        while time.monotonic() < deadline:
            evidence = await read_counters(redis, sale_id)
            if not any(stock.reserved for stocks in evidence.values() for stock in stocks or ()):
                return True
            await asyncio.sleep(0.2)
    return False


async def _drain(stage: Stage, cluster: Topology, since: datetime) -> float | None:
    """Seconds until all backlogs are empty; None if that takes too long."""
    began = time.monotonic()
    quiet = 0
    while time.monotonic() - began < DRAIN_S_MAX:
        try:
            quiet = 0 if any((await backlog(stage.stack, cluster=cluster, since=since)).values()) else quiet + 1
        except (RedisError, psycopg.Error, QueueUnavailable, ProviderAway, OSError):
            quiet = 0  # a server is still recovering
        if quiet == 2:  # twice in a row: a message between two backlogs is in neither
            return time.monotonic() - began
        await asyncio.sleep(0.15)
    return None
