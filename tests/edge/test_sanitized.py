"""The compiled order path under AddressSanitizer: tests of the direct door and of the kernels, random input included.

A copy of the sources is built with the sanitizer and tested by a process of its own, which loads the sanitizer first.
Every process that it starts (edges, their workers) inherits it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, tracked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
SUITE = (
    "tests/hotpath", "tests/edge/test_direct_door.py", "tests/edge/test_direct_closing.py",
    "tests/edge/test_random_input.py", "tests/edge/test_races.py",
)  # fmt: skip
FLAGS = "-fsanitize=address -fno-omit-frame-pointer -g"


def _library(name: str) -> str:
    """The path of a library of the compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    path = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return path


def test_no_memory_error(tmp_path: Path) -> None:
    preload = f"{_library('libasan.so')} {_library('libstdc++.so')}"
    copy = tmp_path / "copy"
    for path in tracked():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(
        build, cwd=copy, env={**os.environ, "CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    modules = list((copy / "hotpath").glob("direct.*.so"))
    assert modules and b"__asan_report_load" in modules[0].read_bytes(), "the build is not sanitized"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=1:log_path={tmp_path}/report",
        "PYTHONMALLOC": "malloc",  # the interpreter's own allocator would hide most errors
    }
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "--timeout=600", *SUITE]
    done = subprocess.run(tests, cwd=copy, env=environ, capture_output=True, text=True, check=False)
    reports = [report.read_text(errors="replace")[:5000] for report in tmp_path.glob("report.*")]
    assert reports == []
    assert done.returncode == 0, done.stdout[-5000:]
