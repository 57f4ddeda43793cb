"""A log that takes no line ends no work: `/dev/full` answers each write as a full disk does."""

from __future__ import annotations

import subprocess
import sys

from tests.fixtures.fix_stack import ROOT

LINES = 500  # far more than the buffers of a stream hold
PROGRAM = f"""
import logging, sys
import structlog
from prometheus_client import generate_latest
from runtime.process.telemetry import configure_logging

configure_logging("test", "INFO")
log = structlog.get_logger()
for number in range({LINES}):
    log.warning("paused", number=number, error="x" * 100)
    logging.getLogger("library").warning("line %d", number)
print(generate_latest().decode())
"""
SUPERVISOR = """
from devstack.supervisor import _say

for _ in range(500):
    _say("redis ended with status 1" * 10)
print("still there")
"""


def run(program: str) -> str:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, text=True, cwd=ROOT, timeout=60, check=False
        )  # fmt: skip
    return done.stdout


def test_lines_that_find_no_room_are_counted_and_raise_nothing() -> None:
    (lost,) = [line for line in run(PROGRAM).splitlines() if line.startswith("flashsale_log_writes_failed_total ")]
    assert float(lost.split()[1]) >= 2 * LINES


def test_a_supervisor_that_cannot_log_goes_on() -> None:
    assert run(SUPERVISOR) == "still there\n"
