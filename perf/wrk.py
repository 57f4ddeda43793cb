"""One run of wrk that places orders: what is started, and what it said. Judges nothing."""

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
    """What wrk counted. `broken`: connections lost and answers that did not come in time."""

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
class Crowd:
    """Who orders: `users` lines of a file of tokens, over so many keep-alive connections."""

    tokens: Path
    users: int
    connections: int

    def order(self, url: str, path: str, *, sku: str, tag: str, seconds: int) -> tuple[Answers, float]:
        """Order one unit after the other for so long, with the keys `<tag>-<n>`; the answers, and wrk's processor time in us."""
        command = [
            "wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", str(SCRIPT), url,
            "--", str(self.tokens), path, sku, tag, "0", str(self.users),
        ]  # fmt: skip
        before = os.times()
        output = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds + END_S_MAX
        ).stdout  # fmt: skip
        after = os.times()
        line = next(line for line in output.splitlines() if line.startswith("RESULT "))
        spent_s = after.children_user + after.children_system - before.children_user - before.children_system
        return Answers(**json.loads(line.removeprefix("RESULT "))), spent_s * 1e6
