"""The hook that counts skips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = """
import pytest

@pytest.mark.skipif(True, reason="wrk is not installed (Debian package wrk)")
def test_installable(): ...

@pytest.mark.skipif(True, reason="needs two machines")
def test_impossible(): ...

def test_fine(): ...
"""
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(("ci", "which", "status"), [("true", "", 1), ("", "", 0), ("true", "impossible or fine", 0)])
def test_installable_skips_fail_under_ci_only(tmp_path: Path, ci: str, which: str, status: int) -> None:
    (tmp_path / "test_some.py").write_text(_TESTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.fixtures.skips", "-k", which, str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout
    assert "skipped 1: needs two machines" in done.stdout
    assert ("must be installed: wrk" in done.stdout) == (status == 1)
