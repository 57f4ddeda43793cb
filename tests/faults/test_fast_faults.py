"""The fast part of the fault matrix, by the command line. `make prove` runs the whole matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faults.catalogue import FAULTS
from tests.fixtures.fix_stack import ROOT

FAULTS_MIN = 30
NEVER_SKIPPED = {fault.name for fault in FAULTS.values() if fault.fast}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ops.cli", "faults", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=1500, cwd=ROOT, check=False)


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_the_fast_faults_are_green_and_leave_nothing() -> None:
    done = run("--fast", "--json", "--seconds", "1")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    answer = json.loads(done.stdout)
    assert {fault["name"]: fault["verdict"] for fault in answer["faults"]} == dict.fromkeys(NEVER_SKIPPED, "green")
    assert all(fault["proof"] and all(fault["invariants"].values()) for fault in answer["faults"])
    assert not list((ROOT / ".flashsale").glob("faults-*")) if (ROOT / ".flashsale").exists() else True


def test_the_list_names_every_fault() -> None:
    listed = json.loads(run("--list", "--json").stdout)
    assert len(listed) >= FAULTS_MIN
    assert [fault["name"] for fault in listed] == list(FAULTS)
    assert all(fault["does"] and fault["expected"] for fault in listed)


def test_an_unknown_fault_is_refused() -> None:
    done = run("no-such-fault")
    assert done.returncode == 1
    assert "no-such-fault" in done.stderr


def test_the_documented_results_name_every_fault() -> None:
    text = Path(ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [name for name in FAULTS if f"`{name}`" not in text] == []
