"""The overload program at minimal size, in its own process because it binds itself to one processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf.overload import as_text

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="servers and load generator need a processor each")
@pytest.mark.alone
@pytest.mark.timeout(180)
def test_overload_is_offered_and_its_cost_accounted_for() -> None:
    argv = [sys.executable, "-m", "perf.overload", "--json", "--seconds", "1.6", "--rounds", "1"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    (peak,), (over,) = result["peak"], result["overload"]
    assert peak["accepted_per_s"] > 0 and over["accepted_per_s"] > 0
    assert peak["refused_per_s"] == over["refused_per_s"] == 0, "the queue holds the orders of the overload"
    assert result["share"] == result["us_an_accepted"]["peak"] / result["us_an_accepted"]["overload"]
    assert result["refusing"]["refused_per_s"] > 0 and result["us_a_refused"] is not None
    assert len(as_text(result)) == 3


def test_one_processor_is_too_few() -> None:
    argv = [sys.executable, "-m", "perf.overload"]
    one = {min(os.sched_getaffinity(0))}
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, one),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "two processors" in done.stderr
