"""The clock of Redis jumps back, as after a wrong correction."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from faults.clock import clock_folder
from faults.conditions import Needs, NotFired
from faults.scenario import Drill, Fault

JUMP_S = 900
KILLED = ("relay-0", "shard-writer-0", "expiry-0", "dispatcher-0")


async def jump_back(drill: Drill) -> str:
    """Let the clock jump, and kill the holders of leases and deliveries, which others must take over."""
    stage = drill.stage
    async with stage.redis() as redis:
        before_s, began = (await redis.time())[0], time.monotonic()
        before = drill.pace()
        (clock_folder(stage.folder.path) / "back").touch()
        jumped_s = 0.0
        async with asyncio.timeout(5):
            while jumped_s < JUMP_S / 2:
                await asyncio.sleep(0.05)
                jumped_s = before_s + time.monotonic() - began - (await redis.time())[0]
    killed = {name: stage.pid(name) for name in KILLED}
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)
    for name, pid in killed.items():
        await stage.replaced(name, pid)
    await asyncio.sleep(3.0)
    now = drill.goes_on(began, before)
    if jumped_s < JUMP_S / 2:
        raise NotFired("the clock of Redis did not jump")
    return f"the clock jumped back by {jumped_s:.0f} s; {len(killed)} processes killed; buyers got {now:.0f} answers/s"


FAULTS = [
    Fault(
        "clock-jumps-back", f"the clock of Redis jumps back by {JUMP_S} s, and holders of leases die",
        "no buyer is locked out; leases, deliveries and retries of the dead are taken over in seconds", jump_back,
        needs=Needs(launchers={"redis": [sys.executable, "-m", "faults.clock", str(JUMP_S)]}, own="clock"),
    ),
]  # fmt: skip
