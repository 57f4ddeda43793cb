"""A move of buckets whose process is killed at each of its steps, while orders and payments come in."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import orjson

from domain.topology import BUCKETS
from faults.conditions import NotFired
from faults.scenario import LONG, Drill, Fault

STEPS = (
    "announced", "frozen", "drained", "copying", "copied", "switched", "left", "opened", "known", "purged", "ended",
)  # fmt: skip
MOVED = 64  # buckets; a run moves a group of 16 at most before it ends
RUN_S_MAX = 60.0


async def interrupted(drill: Drill) -> str:
    """Move buckets from the first shard to the last one, with a SIGKILL at each step; then move them back."""
    home, away = 0, drill.cluster.shards - 1
    buckets = f"0-{min(MOVED, BUCKETS // drill.cluster.shards) - 1}"
    before, began = drill.pace(), time.monotonic()
    for step in STEPS:
        status, _ = await _move(drill, buckets, away, "--end-at", step)
        if status not in (0, -signal.SIGKILL):
            drill.fail("F", f"the run that was to end at {step} failed with status {status}")
    frozen_ms: list[float] = []
    for target in (away, home):
        status, lines = await _move(drill, buckets, target)
        if status != 0:
            raise NotFired(f"the move to shard {target} ended with status {status}")
        frozen_ms += [line["frozen_ms"] for line in lines if "frozen_ms" in line]
    drill.goes_on(began, before)
    if not frozen_ms:
        raise NotFired("no group was moved without an interruption")
    return (
        f"{len(STEPS)} runs were killed, {len(frozen_ms)} groups moved; writers waited at most {max(frozen_ms):.0f} ms"
    )


async def _move(drill: Drill, buckets: str, target: int, *more: str) -> tuple[int, list[dict[str, float]]]:
    """Exit status of the command, and its lines."""
    arguments = ["shards", "move", "--buckets", buckets, "--to", str(target), "--json", *more]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "ops.cli", *arguments, "--state-dir", str(drill.stage.folder.path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(RUN_S_MAX):
        out, _ = await process.communicate()
    assert process.returncode is not None, "it has ended"
    return process.returncode, [orjson.loads(line) for line in out.splitlines() if line.startswith(b'{"step"')]


FAULTS = [
    Fault(
        "reshard-interrupted", "the process that moves buckets is killed at each of its steps",
        "sales continue; the next run goes on; every order is in one shard", interrupted, sale=LONG,
    ),
]  # fmt: skip
