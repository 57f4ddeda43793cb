"""One run of wrk that places orders, and its counts."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parent / "wrk_orders.lua"
END_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Answers:
    """wrk's counts. `broken`: lost connections, and answers that did not come in time."""

    requests: int
    duration_us: int
    not_2xx: int
    broken: int
    p50_us: int
    p90_us: int
    p99_us: int
    p999_us: int
    max_us: int


@dataclass(frozen=True, slots=True)
class LoadGenerator:
    """wrk with the first `users` lines of a file of tokens, over keep-alive connections."""

    tokens: Path
    users: int
    connections: int

    def order(self, url: str, path: str, *, sku: str, tag: str, seconds: int) -> tuple[Answers, float]:
        """Order one unit at a time with the keys `<tag>-<n>`. Returns the answers, and wrk's CPU time in us."""
        command = [
            "wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", str(SCRIPT),
            url, "--", str(self.tokens), path, sku, tag, "0", str(self.users),
        ]  # fmt: skip
        before = os.times()
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds + END_S_MAX
        ).stdout  # fmt: skip
        after = os.times()
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        spent_s = after.children_user + after.children_system - before.children_user - before.children_system
        return Answers(**json.loads(line.removeprefix("RESULT "))), spent_s * 1e6
