"""The demo's load: runs the load driver as a process, kills Redis once, notes when all units are sold and stored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from devstack.children import alive
from devstack.demo.recount import stored_orders
from devstack.state import StateFolder
from ops.stack_file import PROJECT, Stack, StackError

KILL_AT_SHARE = 0.4  # of the stock
SELLING_S_MAX = 180.0
RESTART_S_MAX = 30.0
_BIN_S = 0.1


@dataclass(slots=True)
class Course:
    """Times of the demo's events, in seconds of the monotonic clock. `driver`: the last line of the load driver."""

    killed_at: float | None = None
    restarted_at: float | None = None
    sold_out_at: float | None = None
    stored_at: float | None = None
    driver: dict[str, Any] = field(default_factory=dict)

    @property
    def last_accepted_at(self) -> float:
        """End of the last tenth of a second with an accepted order."""
        bins = self.driver["accepted_per_100ms"]
        last = max((place for place, count in enumerate(bins) if count), default=0)
        return float(self.driver["started_ns"] / 1e9 + (last + 1) * _BIN_S)

    @property
    def outage_s(self) -> float:
        """Time without an accepted order after the kill, in steps of a tenth of a second."""
        if self.killed_at is None:
            return 0.0
        bins = self.driver["accepted_per_100ms"]
        place = int((self.killed_at - self.driver["started_ns"] / 1e9) / _BIN_S) + 1
        silent = 0
        while place + silent < len(bins) and bins[place + silent] == 0:
            silent += 1
        return silent * _BIN_S

    @property
    def accepted_per_s(self) -> float:
        """Rate while orders were accepted, without the outage."""
        bins = self.driver["accepted_per_100ms"]
        filled = [place for place, count in enumerate(bins) if count]
        if not filled:
            return 0.0
        return float(sum(bins) / max(_BIN_S, (filled[-1] - filled[0] + 1) * _BIN_S - self.outage_s))

    @property
    def refused_per_s(self) -> float:
        """Rate after the last accepted order, without the first and the last tenth of a second."""
        accepted, refused = self.driver["accepted_per_100ms"], self.driver["refused_per_100ms"]
        last = max((place for place, count in enumerate(accepted) if count), default=0)
        after = refused[last + 2 : -1]
        return float(sum(after) / (len(after) * _BIN_S)) if after else 0.0


@dataclass(frozen=True, slots=True)
class DriverRun:
    """One run of the load driver. `stock` maps a SKU to units; `sold_out_s`: load after the last unit is sold."""

    sale_id: UUID
    stock: dict[str, int]
    tokens: Path
    orders: Path
    connections: int
    sold_out_s: float
    kill_redis: bool = True

    def drive(self, stack: Stack, folder: StateFolder, say: Callable[[str], None]) -> Course:
        """Order until all units are sold, and for `sold_out_s` after. StackError when the driver or Redis fails."""
        log = folder.log("driver")
        argv = [
            sys.executable, "-m", "perf.driver", "--url", stack.order_url, "--sale", str(self.sale_id),
            "--tokens", str(self.tokens), "--orders", str(self.orders), "--connections", str(self.connections),
            "--seconds-max", str(SELLING_S_MAX + self.sold_out_s),
        ]  # fmt: skip
        for sku in self.stock:
            argv += ["--sku", sku]
        with (
            log.open("ab") as sink,
            subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True, cwd=PROJECT
            ) as driver,
        ):  # fmt: skip
            try:
                course = self._watch(driver, stack, folder, say)
            finally:
                if driver.poll() is None:
                    driver.kill()
        if not course.driver:
            raise StackError(f"the load driver failed: {log.read_text(encoding='utf-8')[-2000:]}")
        return course

    def _watch(
        self, driver: subprocess.Popen[str], stack: Stack, folder: StateFolder, say: Callable[[str], None]
    ) -> Course:
        assert driver.stdout is not None and driver.stdin is not None
        course = Course()
        units = sum(self.stock.values())
        old_pid = stack.processes["redis"]
        for line in driver.stdout:
            counted = json.loads(line)
            if counted.get("final"):
                course.driver = counted
                break
            now = time.monotonic()
            say(f"{counted['accepted']:,} of {units:,} sold, {counted['refused']:,} refused")
            if self.kill_redis and course.killed_at is None and counted["accepted"] >= units * KILL_AT_SHARE:
                os.kill(old_pid, signal.SIGKILL)
                course.killed_at = time.monotonic()
            if course.killed_at is not None and course.restarted_at is None:
                running = folder.read_stack()
                new_pid = running.processes.get("redis", old_pid) if running else old_pid
                if new_pid != old_pid and alive(new_pid):
                    course.restarted_at = time.monotonic()
                elif now - course.killed_at > RESTART_S_MAX:
                    raise StackError(f"Redis was not restarted within {RESTART_S_MAX:.0f} s; see the supervisor's log")
            if course.sold_out_at is None:
                if counted["accepted"] >= units:
                    course.sold_out_at = now
                continue
            if course.stored_at is None and stored_orders(stack.shard_dsns, self.sale_id) >= counted["accepted"]:
                course.stored_at = time.monotonic()
            if now - course.sold_out_at >= self.sold_out_s and not driver.stdin.closed:
                driver.stdin.close()
        driver.wait(60)
        return course
