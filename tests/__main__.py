"""Runs the suite: `python -m tests [--slow] [arguments of pytest]`.

First the tests that run beside each other, in several processes; then those marked `alone`, one after the other.
Prints the slowest tests of both and one closing line. The exit status is 0 when both runs passed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

PROCESSES = 4  # on two cores: a test waits for servers during two thirds of its time
SLOWEST = 50


def main(arguments: list[str]) -> int:
    """Run both parts; the exit status."""
    started = time.monotonic()
    kept = "" if "--slow" in arguments else " and not slow"
    arguments = [argument for argument in arguments if argument != "--slow"]
    parts = (
        ["-n", str(PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder", "-m", f"not alone{kept}"],
        ["-m", f"alone{kept}"],
    )
    counts: Counter[str] = Counter()
    durations: list[tuple[float, str, str]] = []
    statuses = []
    with TemporaryDirectory() as folder:
        for part in parts:
            record = Path(folder) / "record.json"
            record.unlink(missing_ok=True)
            statuses.append(run([*part, "--record", str(record), *arguments]))
            if record.exists():
                recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
                counts.update(recorded["counts"])
                durations += recorded["durations"]
            if statuses[-1] == pytest.ExitCode.INTERRUPTED:
                break
    print(f"slowest {SLOWEST}:", *slowest(durations, SLOWEST), sep="\n")
    print(closing_line(counts, time.monotonic() - started))
    return status_of(statuses)


def run(arguments: list[str]) -> int:
    """Run one pytest that prints to our output; its exit status. Ctrl-C reaches it as well, and it ends its tests."""
    with subprocess.Popen([sys.executable, "-m", "pytest", *arguments]) as process, interrupts_ignored():
        return process.wait()


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Leave SIGINT to the running pytest."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def status_of(statuses: list[int]) -> int:
    """The first failure; a part without tests is none, unless both are."""
    failures = [status for status in statuses if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)]
    if failures:
        return failures[0]
    return min(statuses)


def slowest(durations: list[tuple[float, str, str]], count: int) -> list[str]:
    """The slowest steps of tests, a line each as `pytest --durations` prints them."""
    return [f"{seconds:.2f}s {when:<8} {test}" for seconds, when, test in sorted(durations, reverse=True)[:count]]


def closing_line(counts: Counter[str], seconds: float) -> str:
    """Such as `2398 passed, 0 failed, 3 skipped in 612.3s`."""
    shown = ["passed", "failed", *(outcome for outcome in counts if outcome not in ("passed", "failed"))]
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in shown) + f" in {seconds:.1f}s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
