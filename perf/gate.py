"""`python -m perf.gate`: throughput of both doors as ratios to an empty handler and to peers, with wrk in one run.

A is an empty Granian handler with the edge's settings (A0: with Granian's defaults). B and D are accepted orders with
fresh keys and all features on, at the Granian and at the direct door; C and E are orders for a SKU that is sold out. Go
and Rust are the peers of `perf/peers`. All alternate, so that a slow minute of the machine affects each. The whole
embedded stack is up, but during the rounds everything except edge, Redis and an idle PostgreSQL is halted. Afterwards
relay and shard writer continue until all orders are stored, and a 202 counts only if its order is found in a shard. A
second table, which is no gate, has everything running.

Exit status: 0 all gates met, 1 one missed, 2 wrk or a compiler of the peers is not installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perf import results
from perf.peers.building import PeerNotBuilt
from perf.results import Figure, Target, add_options, conclude, note, progress
from perf.scene import ACCEPTED, NAMES, OURS, PEERS, Run, Scene, scene

USERS = 100_000
WARM_UP_S = 2  # fills caches, grows the append-only file, loads the scripts, maps wrk's memory

GATES = {"B/A": 0.50, "C/A": 0.70, "D/A": 0.85, "E/A": 1.3}
GOALS = {"B/A": 0.65, "C/A": 0.85, "D/A": 1.0, "E/A": None}
PEER_GATE, PEER_GOAL = 1.0, 1.3  # the direct door against the fastest peer
CPU_GATE_US, CPU_GOAL_US = 14.0, 11.0  # server time of an order at the direct door
CPU_RATIO_MAX = 1.0  # of it to the server time of an empty request (A): an order costs less than that
P99_FACTOR_MAX = 5.0
BASELINE_SHARE_MIN = 0.8  # of the saved ratios; equal runs on a shared machine differed by up to 15 %
OTHERS_SHARE_MAX = 0.02  # of one core, by processes that should not run during the rounds
METHOD = (
    "wrk, one thread, 128 keep-alive connections without pipelining, a fresh key per request, 100,000 users. A: empty "
    "RSGI handler with the edge's server settings (A0: Granian's defaults); B, D: accepted orders at the Granian and the "
    "direct door, appendfsync always; C, E: sold out; Go, Rust: accepted orders of the peers in perf/peers, on a Redis "
    "each with appendfsync always. All alternate in one run after a round of warm-up; medians. All processes of the "
    "stack but edge and Redis are halted (SIGSTOP) or idle (PostgreSQL) meanwhile; relay and writer then drain, and B "
    "and D count orders found in the shards, the peers orders in their stream. Load generator, servers and Redis share "
    "the machine. The second table (`whole_pipeline`), on its own stack, has everything running."
)


def main() -> int:
    arguments = _arguments()
    if shutil.which("wrk") is None:
        print("wrk is not installed; install the Debian package `wrk` (apt-get install wrk)", file=sys.stderr)
        return 2
    try:
        with progress() as say:
            with scene(arguments, say) as stage:
                gated = measure(stage, rounds=arguments.rounds, seconds=arguments.seconds)
            whole = None
            if arguments.whole_seconds:
                with scene(arguments, say) as stage:
                    whole = measure_whole_pipeline(stage, seconds=arguments.whole_seconds)
    except PeerNotBuilt as error:
        print(error, file=sys.stderr)
        return 2
    return _report(gated, whole, arguments)


@dataclass(frozen=True, slots=True)
class Measured:
    """Runs, and the time until everything was stored. `warm_up` counts with its 202s, but not with its rate."""

    runs: list[Run]
    drain_s: float
    warm_up: Sequence[Run] = ()

    def medians(self, value: Callable[[Run], float]) -> dict[str, float]:
        """Medians by name, of what was run."""
        ran = [name for name in NAMES if any(run.name == name for run in self.runs)]
        return {name: statistics.median(value(run) for run in self.runs if run.name == name) for name in ran}

    def rates(self) -> dict[str, float]:
        """Answers a second."""
        return self.medians(lambda run: run.rate)

    def p99_us(self) -> dict[str, float]:
        """Latencies in microseconds."""
        return self.medians(lambda run: run.answers.p99_us)

    def cpu_us(self) -> dict[str, float]:
        """Server time of an answer in microseconds, without Redis."""
        return self.medians(lambda run: run.edge_cpu_us)

    def total(self, number: str) -> int:
        """Sum of one count over all runs, warm-up included."""
        return int(sum(getattr(run, number) for run in (*self.warm_up, *self.runs)))


def measure(stage: Scene, *, rounds: int, seconds: int) -> Measured:
    """Run all alternately while nothing else runs; then let all orders be stored, and recount each run."""
    runs: list[Run] = []
    with stage.halted():
        for number in range(rounds + 1):
            for name in stage.names:
                run = stage.run(name, f"{name}{number}", seconds if number else min(WARM_UP_S, seconds))
                runs.append(run)
                note(str(run))
    drain_s = stage.drain()
    stage.recount(runs)
    return Measured(runs[len(stage.names) :], drain_s, runs[: len(stage.names)])


def measure_whole_pipeline(stage: Scene, *, seconds: int) -> Measured:
    """Run A and both doors once with everything running. Accepted orders are stored before the next run begins."""
    note("everything running:")
    warm_up = [stage.run("B", "W", min(WARM_UP_S, seconds))]
    stage.drain()
    runs, drain_s = [], 0.0
    for name in ("A", *OURS):
        run = stage.run(name, f"{name}all", seconds)
        runs.append(run)
        note(str(run))
        if name in ACCEPTED:
            drain_s = max(drain_s, stage.drain())
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
    rates = gated.rates()
    ratios = ratios_of(rates)
    p99_us, cpu = gated.p99_us(), gated.cpu_us()
    length_us = sum(run.answers.duration_us for run in (*gated.warm_up, *gated.runs))
    return [
        *(Target(name, ratio, "times", least=GATES[name], goal=GOALS[name]) for name, ratio in ratios.items()),
        *against_peers(rates),
        Target("server time of D", cpu["D"], "us an order", most=CPU_GATE_US, goal=CPU_GOAL_US),
        Target("server time of D / A", cpu["D"] / cpu["A"], "times", most=CPU_RATIO_MAX),
        *(
            Target(f"p99({name})/p99(A)", p99_us[name] / p99_us["A"], "times", most=P99_FACTOR_MAX)
            for name in ("B", "D")
        ),
        Target(f"of {gated.total('promised'):,} 202s, not found", gated.total("missing"), "orders", most=0),
        Target("other answers, and broken connections", gated.total("unwanted"), "answers", most=0),
        Target(
            "processor time of what was halted or idle", gated.total("others_cpu_us") / length_us, "of a core",
            most=OTHERS_SHARE_MAX,
        ),
        *against_baseline(ratios, vars(arguments)),
    ]  # fmt: skip


def against_peers(rates: dict[str, float]) -> list[Target]:
    """The direct door against the fastest peer; none without peers, which the operator has asked for."""
    peers = {name: rates[name] for name in PEERS if name in rates}
    if not peers:
        note("without peers: the direct door is not compared with them")
        return []
    fastest = max(peers, key=lambda name: peers[name])
    return [Target(f"D/{fastest}", rates["D"] / peers[fastest], "times", least=PEER_GATE, goal=PEER_GOAL)]


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
        if name in ratios
    ]  # fmt: skip


def ratios_of(rates: dict[str, float]) -> dict[str, float]:
    """Ratios of our runs to A."""
    return {f"{name}/A": rates[name] / rates["A"] for name in OURS if name in rates}


def as_result(measured: Measured) -> dict[str, Any]:
    """The saved form."""
    runs = [{**asdict(run), "missing": run.missing, "rate": run.rate} for run in measured.runs]
    rates = measured.rates()
    return {
        "rates": rates, "ratios": ratios_of(rates), "p99_us": measured.p99_us(), "server_cpu_us": measured.cpu_us(),
        "drain_s": measured.drain_s,
        "runs": runs,
    }  # fmt: skip


def as_table(measured: Measured, title: str) -> list[str]:
    """Medians; sums of 202s, of their orders that were found, and of orders stored during the run."""
    rates, p99_us, cpu = measured.rates(), measured.p99_us(), measured.cpu_us()
    heads = f"{'per second':>12}{'to A':>7}{'p99 ms':>9}{'server us':>11}{'202s':>12}{'found':>12}{'stored/s':>10}"
    lines = [f"{'':5}{heads}   ({title})"]
    for name, rate in rates.items():
        runs = [run for run in measured.runs if run.name == name]
        counts = "".join(f"{sum(getattr(run, number) for run in runs):12,}" for number in ("promised", "found"))
        stored = sum(run.stored_meanwhile for run in runs) / sum(run.answers.duration_us for run in runs) * 1e6
        numbers = f"{rate:12,.0f}{rate / rates['A']:7.2f}{p99_us[name] / 1000:9.2f}{cpu[name]:11.1f}"
        lines.append(f"{name:5}{numbers}{counts if name in ACCEPTED else ' ' * 24}{stored:10,.0f}   {NAMES[name]}")
    lines.append(f"all stored {measured.drain_s:.1f} s later")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf.gate", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=10, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole-seconds", type=int, default=12, help="of a run of the second table; 0: without it")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--workers", type=int, default=1, help="workers of the edge and of the empty handlers")
    parser.add_argument("--fsync", choices=["always", "off"], default="always", help="off: for comparison only")
    parser.add_argument("--set", action="append", default=[], metavar="FLASHSALE_X=VALUE", help="a setting of the edge")
    parser.add_argument("--without-peers", action="store_true", help="do not build and measure the peers")
    add_options(parser, always_gate=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
