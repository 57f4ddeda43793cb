"""Latency of orders on a schedule: a fixed number a second, independent of the answers.

    python -m perf.open_loop [--rate 8000] [--seconds 60] [--processes 1] [--whole-stack] [--save] [--json] [--gate]

An order's latency counts from when it was due, repetitions and waiting for a connection included, so coordinated
omission hides nothing. The generator proves that it kept its schedule: that it sent all orders, and how late. By
default only the edge and its Redis run, as in the gate; with `--whole-stack` everything runs on the same cores and
stores the orders meanwhile, which is a figure of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from perf.driver.histogram import count_from, percentiles_ms, summed
from perf.load import Aim, Load, require_all_accepted, write_tokens
from perf.results import Figure, Target, add_options, conclude, progress
from perf.stage import UNITS, edge_on_redis
from perf.whole_stack import whole_stack

USERS = 100_000
SKU = "SKU-1"
WARM_UP_S = 3.0
P99_MS_MAX = 50.0
LATENESS_P99_MS_MAX = 10.0  # of the sending; above it the schedule was not kept
METHOD = (
    "Open loop of the bundled driver, HTTP/1.1 keep-alive without pipelining, fresh keys of 100,000 users: order i is "
    "due i / rate seconds after the start. Latency from when an order was due to its 202, repetitions included "
    "(coordinated omission excluded), in buckets of 1.6 %. Load generator and servers share the machine."
)


def main() -> int:
    options = _options()
    with (
        progress() as say,
        _surroundings(say, everything=options.whole_stack, users=options.users) as aim,
    ):
        say("warming up")
        schedule = Schedule(options.rate, options.connections, options.processes)
        run(aim, schedule, key_prefix="warm", seconds=min(WARM_UP_S, options.seconds))
        say(f"{options.rate:,.0f} orders a second for {options.seconds:.0f} s")
        result = run(aim, schedule, key_prefix="open", seconds=options.seconds)
    targets = [
        Target("p99 from when an order was due", result["latency_ms"]["p99"], "ms", most=P99_MS_MAX),
        Target("share of the schedule sent", result["sent"] / result["due"], "of 1", least=1.0),
        Target("p99 of the generator's lateness", result["lateness_ms"]["p99"], "ms", most=LATENESS_P99_MS_MAX),
    ]
    name = "open_loop_whole_stack" if options.whole_stack else "open_loop"
    return conclude(Figure(name, METHOD, targets, result), options, as_text(result))


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rate` orders due a second and `connections`, both summed over all `processes`."""

    rate: float
    connections: int
    processes: int = 1


def run(aim: Aim, schedule: Schedule, *, key_prefix: str, seconds: float) -> dict[str, Any]:
    """Run one open loop, distributed over all processes. Raises LoadFailed unless every order was accepted."""
    count = schedule.processes
    with ExitStack() as stack:
        loads = [
            Load(aim, f"{key_prefix}-{place}", seconds, schedule.connections // count, schedule.rate / count)
            for place in range(count)
        ]
        for load in loads:
            stack.enter_context(load)
        finals = [load.finish(stop=False) for load in loads]
    for final in finals:
        require_all_accepted(final)
    return merge(finals, seconds=seconds)


def merge(finals: list[dict[str, Any]], *, seconds: float) -> dict[str, Any]:
    """Merge the last lines of several drivers into one result."""
    latency = summed(final["accepted_latency"] for final in finals)
    lateness = summed(final["open_loop"]["lateness"] for final in finals)
    sums = {name: sum(final[name] for final in finals) for name in ("sent", "accepted", "retries", "transport_errors")}
    in_time = sum(sum(final["accepted_per_100ms"][: round(seconds * 10)]) for final in finals)
    return {
        "due": sum(final["open_loop"]["orders"] for final in finals),
        **sums,
        "accepted_per_s": in_time / seconds,
        "latency_ms": percentiles_ms(latency),
        "lateness_ms": percentiles_ms(lateness),
        "sent_a_millisecond_late": count_from(lateness, 1000),
        "found_none_idle": sum(final["open_loop"]["found_none_idle"] for final in finals),
        "generator_cpu_us_an_order": sum(final["cpu_s"] for final in finals) / sums["sent"] * 1e6,
    }


def as_text(result: dict[str, Any]) -> list[str]:
    """Latencies, and the proof of the schedule."""

    def shown(percentiles: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in percentiles.items())

    return [
        f"{result['accepted']:,} of {result['due']:,} due orders accepted, {result['accepted_per_s']:,.0f} a second; "
        f"{result['retries']} repeated",
        f"latency ms, from when due: {shown(result['latency_ms'])}",
        f"sent late by ms: {shown(result['lateness_ms'])}; {result['sent_a_millisecond_late']:,} by 1 ms or more, "
        f"{result['found_none_idle']:,} found no idle connection",
        f"generator: {result['generator_cpu_us_an_order']:.1f} us of CPU time per order",
    ]


@contextmanager
def _surroundings(say: Callable[[str], None], *, everything: bool, users: int) -> Iterator[Aim]:
    """An edge with a sale, and buyers' tokens."""
    if everything:
        with whole_stack(say, users=users) as stack:
            yield stack.aim
        return
    with edge_on_redis() as stage:
        tokens = stage.folder / "tokens"
        write_tokens(tokens, stage.keys_file, users=users)
        yield Aim(stage.url, [stage.publish({SKU: UNITS})], [SKU], tokens)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.open_loop", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=8000.0, help="orders due a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the schedule")
    parser.add_argument("--connections", type=int, default=512, help="sum over all processes")
    parser.add_argument("--processes", type=int, default=1, help="load drivers that share the rate")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--whole-stack", action="store_true", help="run relay, writers and all other processes, too")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
