"""`python -m perf.gate`: throughput of the order path as ratios to an empty handler, measured with wrk in one run.

A is an empty Granian handler, B accepted orders with fresh keys and all features on, C orders for a SKU that is sold
out. They alternate, so that a slow minute of the machine affects all three. The whole embedded stack is up, but during
the rounds everything except edge, Redis and an idle PostgreSQL is halted. Afterwards relay and shard writer continue
until all orders are stored, and a 202 counts only if its order is found in a shard. A second table, which is no gate,
has everything running.

Exit status: 0 all gates met, 1 one missed, 2 wrk is not installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perf import results
from perf.results import Figure, Target, add_options, conclude, note, progress
from perf.scene import NAMES, Run, Scene, scene

USERS = 100_000
WARM_UP_S = 2  # fills caches, grows the append-only file, loads the scripts, maps wrk's memory

GATES = {"B/A": 0.33, "C/A": 0.50}
GOALS = {"B/A": 0.50, "C/A": 0.70}
P99_FACTOR_MAX = 5.0
BASELINE_SHARE_MIN = 0.8  # of the saved ratios; equal runs on a shared machine differed by up to 15 %
OTHERS_SHARE_MAX = 0.02  # of one core, by processes that should not run during the rounds
METHOD = (
    "wrk, one thread, 128 keep-alive connections without pipelining, a fresh key per request, 100,000 users. A: empty "
    "RSGI handler with the same server settings; B: accepted orders, appendfsync always; C: sold out. A B C alternate "
    "in one run after a round of warm-up; medians. All processes of the stack but edge and Redis are halted (SIGSTOP) "
    "or idle (PostgreSQL) meanwhile; relay and writer then drain, and B counts orders found in the shards. Load "
    "generator, edge and Redis share the machine. The second table (`whole_pipeline`), on its own stack, has "
    "everything running."
)


def main() -> int:
    arguments = _arguments()
    if shutil.which("wrk") is None:
        print("wrk is not installed; install the Debian package `wrk` (apt-get install wrk)", file=sys.stderr)
        return 2
    with progress() as say:
        with scene(arguments, say) as stage:
            gated = measure(stage, rounds=arguments.rounds, seconds=arguments.seconds)
        whole = None
        if arguments.whole_seconds:
            with scene(arguments, say) as stage:
                whole = measure_whole_pipeline(stage, seconds=arguments.whole_seconds)
    return _report(gated, whole, arguments)


@dataclass(frozen=True, slots=True)
class Measured:
    """Runs, and the time until everything was stored. `warm_up` counts with its 202s, but not with its rate."""

    runs: list[Run]
    drain_s: float
    warm_up: Sequence[Run] = ()

    def rates(self) -> dict[str, float]:
        """Medians by name."""
        return {name: statistics.median(run.rate for run in self.runs if run.name == name) for name in NAMES}

    def p99_us(self) -> dict[str, float]:
        """Medians by name."""
        return {name: statistics.median(run.answers.p99_us for run in self.runs if run.name == name) for name in NAMES}

    def total(self, number: str) -> int:
        """Sum of one count over all runs, warm-up included."""
        return int(sum(getattr(run, number) for run in (*self.warm_up, *self.runs)))


def measure(stage: Scene, *, rounds: int, seconds: int) -> Measured:
    """Run A B C alternately while nothing else runs; then let all orders be stored, and recount each run."""
    runs: list[Run] = []
    with stage.halted():
        for number in range(rounds + 1):
            for name in NAMES:
                run = stage.run(name, f"{name}{number}", seconds if number else min(WARM_UP_S, seconds))
                runs.append(run)
                note(str(run))
    drain_s = stage.drain()
    stage.recount(runs)
    return Measured(runs[len(NAMES) :], drain_s, runs[: len(NAMES)])


def measure_whole_pipeline(stage: Scene, *, seconds: int) -> Measured:
    """Run A B C once with everything running. The orders of B are stored before C begins, which leaves none."""
    note("everything running:")
    warm_up = [stage.run("B", "W", min(WARM_UP_S, seconds))]
    stage.drain()
    runs, drain_s = [], 0.0
    for name in NAMES:
        run = stage.run(name, f"{name}all", seconds)
        runs.append(run)
        note(str(run))
        if name == "B":
            drain_s = stage.drain()
    stage.recount([*warm_up, *runs])
    return Measured(runs, drain_s, warm_up)


def _report(gated: Measured, whole: Measured | None, arguments: argparse.Namespace) -> int:
    result: dict[str, Any] = {**as_result(gated), "whole_pipeline": as_result(whole) if whole else None}
    title = f"order path alone, medians of {arguments.rounds} rounds of {arguments.seconds} s"
    text = ["", *as_table(gated, title)]
    if whole is not None:
        title = f"everything running, {arguments.whole_seconds} s each, no gate"
        text += ["", *as_table(whole, title)]
    text.append("")
    return conclude(Figure("gate", METHOD, targets(gated, arguments), result), arguments, text)


def targets(gated: Measured, arguments: argparse.Namespace) -> list[Target]:
    """The gates. Those against the saved baseline only if there is one."""
    ratios = ratios_of(gated.rates())
    p99_us = gated.p99_us()
    length_us = sum(run.answers.duration_us for run in (*gated.warm_up, *gated.runs))
    promised = gated.total("promised")
    return [
        *(Target(name, ratio, "times", least=GATES[name], goal=GOALS[name]) for name, ratio in ratios.items()),
        Target("p99(B)/p99(A)", p99_us["B"] / p99_us["A"], "times", most=P99_FACTOR_MAX),
        Target(f"of {promised:,} 202s, not found in a shard", gated.total("missing"), "orders", most=0),
        Target("other answers, and broken connections", gated.total("unwanted"), "answers", most=0),
        Target(
            "processor time of what was halted or idle", gated.total("others_cpu_us") / length_us, "of a core",
            most=OTHERS_SHARE_MAX,
        ),
        *against_baseline(ratios, vars(arguments)),
    ]  # fmt: skip


def against_baseline(ratios: dict[str, float], arguments: dict[str, Any]) -> list[Target]:
    """Targets for the ratios of the saved gate (`perf/results/gate.json`).

    None without a saved gate, or when it was measured with other connections, users, workers or settings.
    """
    path = results.FOLDER / "gate.json"
    if not path.exists():
        return []
    kept = json.loads(path.read_text(encoding="utf-8"))
    alike = ("connections", "users", "workers", "fsync", "set")
    if any(kept["arguments"].get(name, arguments[name]) != arguments[name] for name in alike):
        note("the kept baseline was measured with other arguments: not compared")
        return []
    return [
        Target(
            f"{name} against the kept {ratio:.3f} ({kept['commit']})", ratios[name] / ratio, "times",
            least=BASELINE_SHARE_MIN,
        )
        for name, ratio in ratios_of(kept["result"]["rates"]).items()
    ]  # fmt: skip


def ratios_of(rates: dict[str, float]) -> dict[str, float]:
    """Ratios of B and C to A."""
    return {f"{name}/A": rates[name] / rates["A"] for name in "BC"}


def as_result(measured: Measured) -> dict[str, Any]:
    """The saved form."""
    runs = [{**asdict(run), "missing": run.missing, "rate": run.rate} for run in measured.runs]
    rates = measured.rates()
    return {
        "rates": rates, "ratios": ratios_of(rates), "p99_us": measured.p99_us(), "drain_s": measured.drain_s,
        "runs": runs,
    }  # fmt: skip


def as_table(measured: Measured, title: str) -> list[str]:
    """Medians; sums of 202s, of their orders that were found, and of orders stored during the run."""
    rates, p99_us = measured.rates(), measured.p99_us()
    lines = [f"{'':4}{'per second':>12}{'to A':>7}{'p99 ms':>10}{'202s':>12}{'found':>12}{'stored/s':>10}   ({title})"]
    for name, meaning in NAMES.items():
        runs = [run for run in measured.runs if run.name == name]
        counts = "".join(f"{sum(getattr(run, number) for run in runs):12,}" for number in ("promised", "found"))
        stored = sum(run.stored_meanwhile for run in runs) / sum(run.answers.duration_us for run in runs) * 1e6
        numbers = f"{rates[name]:12,.0f}{rates[name] / rates['A']:7.2f}{p99_us[name] / 1000:10.2f}"
        lines.append(f"{name:4}{numbers}{counts if name == 'B' else ' ' * 24}{stored:10,.0f}   {meaning}")
    lines.append(f"all stored {measured.drain_s:.1f} s later")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf.gate", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=15, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole-seconds", type=int, default=12, help="of a run of the second table; 0: without it")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--workers", type=int, default=1, help="workers of the edge and of the empty handler")
    parser.add_argument("--fsync", choices=["always", "off"], default="always", help="off: for comparison only")
    parser.add_argument("--set", action="append", default=[], metavar="FLASHSALE_X=VALUE", help="a setting of the edge")
    add_options(parser, always_gate=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
