"""`python -m perf.bench`: time of each compiled kernel a request, and how often its naive Python reference fits into it.

Exit status 1 when a kernel is not ten times its reference in the same run, or slower than its bound.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FACTOR_MIN = 10.0
# Microseconds a request. Bounds of the order path's budget; the machine's noise is kept out by taking the minimum.
BOUNDS_US = {"validation": 2.0, "token": 5.0, "encode and decode": 2.0}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="flashsale-bench-") as folder:
        report = Path(folder) / "bench.json"
        command = [
            sys.executable, "-m", "pytest", "tests/benchmarks/bench_kernels.py", "-q", "-p", "no:randomly",
            "--benchmark-only", "--benchmark-quiet", "--benchmark-max-time=0.5", f"--benchmark-json={report}", *sys.argv[1:],
        ]  # fmt: skip
        if subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            print("the benchmarks themselves failed: run pytest tests/benchmarks/bench_kernels.py", file=sys.stderr)
            return 1
        return judge(json.loads(report.read_text(encoding="utf-8"))["benchmarks"])


def judge(benchmarks: list[dict[str, Any]]) -> int:
    """Print the table; 0 when every kernel is fast enough."""
    times: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        kind = benchmark["name"].rpartition("_")[2]
        per_request_us = benchmark["stats"]["min"] * 1e6 / benchmark["extra_info"]["requests"]
        times.setdefault(benchmark["group"], {})[kind] = per_request_us
    print(f"{'kernel':20}{'compiled us':>12}{'reference us':>14}{'factor':>9}{'bound us':>10}")
    missed = []
    for name, kinds in times.items():
        compiled, factor, bound = kinds["compiled"], kinds["reference"] / kinds["compiled"], BOUNDS_US.get(name)
        good = factor >= FACTOR_MIN and (bound is None or compiled < bound)
        if not good:
            missed.append(name)
        print(
            f"{name:20}{compiled:12.3f}{kinds['reference']:14.2f}{factor:8.1f}x{bound if bound else '':>10}"
            f"  {'' if good else 'MISSED'}"
        )
    if missed:
        print(f"missed: {', '.join(missed)} (each kernel: at least {FACTOR_MIN:.0f} times its reference)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
