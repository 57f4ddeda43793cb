"""`python -m perf.bench`: time per request of each compiled kernel, and its factor to a naive Python reference.

Exit status 1 when a kernel is not ten times as fast as its reference in the same run, or slower than its bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from perf.results import Figure, Target, add_options, conclude

ROOT = Path(__file__).parent.parent
FACTOR_MIN = 10.0
# Microseconds per request, from the budget of the order path. Judged on the minimum, which has the least noise.
BOUNDS_US = {"validation": 2.0, "token": 5.0, "encode and decode": 2.0}

METHOD = (
    "pytest-benchmark (tests/benchmarks/bench_kernels.py), minimum of many rounds, compiled kernel and naive Python "
    "reference in the same run on the same requests."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.bench", description=__doc__.partition("\n")[0])
    add_options(parser, always_gate=True)
    options, passed_on = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="flashsale-bench-") as folder:
        report = Path(folder) / "bench.json"
        command = [
            sys.executable, "-m", "pytest", "tests/benchmarks/bench_kernels.py", "-q", "-p", "no:randomly",
            "--benchmark-only", "--benchmark-quiet", "--benchmark-max-time=0.5", f"--benchmark-json={report}",
            *passed_on,
        ]  # fmt: skip
        if subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            print("the benchmarks failed; run pytest tests/benchmarks/bench_kernels.py", file=sys.stderr)
            return 1
        figure, text = judge(json.loads(report.read_text(encoding="utf-8"))["benchmarks"])
    return conclude(figure, options, text)


def judge(benchmarks: list[dict[str, Any]]) -> tuple[Figure, list[str]]:
    """The figure and its table."""
    times: dict[str, dict[str, float]] = {}
    for benchmark in benchmarks:
        kind = benchmark["name"].rpartition("_")[2]
        per_request_us = benchmark["stats"]["min"] * 1e6 / benchmark["extra_info"]["requests"]
        times.setdefault(benchmark["group"], {})[kind] = per_request_us
    text = [f"{'kernel':20}{'compiled us':>12}{'reference us':>14}{'factor':>9}{'bound us':>10}"]
    targets = []
    for name, kinds in times.items():
        compiled, factor, bound = kinds["compiled"], kinds["reference"] / kinds["compiled"], BOUNDS_US.get(name)
        targets.append(Target(f"{name}, times its Python reference", factor, "times", least=FACTOR_MIN))
        if bound is not None:
            targets.append(Target(f"{name}, a request", compiled, "us", most=bound))
        text.append(f"{name:20}{compiled:12.3f}{kinds['reference']:14.2f}{factor:8.1f}x{bound if bound else '':>10}")
    return Figure("kernels", METHOD, targets, {"us_a_request": times}), text


if __name__ == "__main__":
    sys.exit(main())
