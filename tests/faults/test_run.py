"""A run of several faults continues after one of them fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from faults.conditions import Needs
from faults.run import run_faults
from faults.scenario import Drill, Fault


async def never(_: Drill) -> str:
    raise AssertionError("there is no stack to break")


def test_a_stack_that_does_not_come_up_makes_its_faults_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # logs are copied there
    needs = Needs(limits={"user_rate": "fast"})
    faults = [Fault(name, "none", "none", never, needs=needs) for name in ("first", "second")]
    results = list(run_faults(faults, seed=1, seconds=1.0, say=lambda _: None))
    assert [(result.name, result.is_green) for result in results] == [("first", False), ("second", False)]
    for result in results:
        (finding,) = result.findings
        assert finding.invariant == "F" and "FLASHSALE_USER_RATE" in finding.text
