"""A small demo from end to end, as `make demo` runs it, with its crash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.children import alive
from devstack.demo.report import as_text
from tests.fixtures.fix_stack import ROOT


def _processes_of_demos() -> list[str]:
    mark = f"DEVSTACK_STATE={ROOT}/.flashsale/demo-".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes() and alive(int(entry.name)):
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.alone
def test_small_demo_proves_its_invariants_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "demo", "--json", "--units", "3000", "--users", "1500",
         "--connections", "32", "--sold-out-seconds", "1"],
        capture_output=True, text=True, timeout=110, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""  # no progress without a terminal
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert report["accepted"]["count"] == report["recount"]["promised_and_stored"] == 3000
    assert report["refused"]["count"] > 0
    assert report["redis_kill"]["back_after_s"] is not None
    assert [report["invariants"][name] for name in "ABG"] == [True, True, True]
    paid, money = report["payments"], report["money"]
    assert (paid["orders"], paid["late"], paid["twice"]) == (300, 30, 15)
    assert (money["captured"], money["paid_orders"], money["refunds"]) == (315, 270, 45)
    assert (money["captured_minor"], money["refunded_minor"], money["due_minor"]) == (315 * 1999, 45 * 1999, 0)
    assert not list((ROOT / ".flashsale").glob("demo-*"))
    assert _processes_of_demos() == []
    assert "all checks passed" in as_text(report)
