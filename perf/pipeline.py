"""The whole embedded stack under load: orders a second that are accepted and, at the same time, stored in the shards.

    python -m perf.pipeline [--seconds 30] [--rate 0] [--connections 64] [--save] [--json] [--gate]

A closed loop offers as much as the edge accepts (with `--rate`, an open loop offers that rate). A sample once a second
counts the accepted, stored and waiting orders. Then the load ends and the rest drains. Every accepted order must be
stored in the end. The figure is the stored rate while the edge was accepting, without the first seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from perf.load import Load, LoadFailed, require_all_accepted
from perf.results import Figure, Target, add_options, conclude, progress
from perf.whole_stack import WholeStack, whole_stack

USERS = 100_000
SAMPLE_S = 1.0
WARM_UP_S = 3.0  # relay, queue and writer start with the first orders
DRAIN_S_MAX = 300.0
STORED_LEAST, STORED_GOAL = 10_000, 14_000
METHOD = (
    "Embedded stack with every process on this machine, load driver included. Accepted: 202s counted by the driver. "
    "Stored: units charged in the shards' quotas, of orders of one unit. Sampled once a second; rates are from the "
    "first sample after the warm-up to the last one under load. CPU time per accepted order from /proc."
)


def main() -> int:
    options = _options()
    with progress() as say, whole_stack(say, users=options.users) as stack:
        result = measure(
            stack, seconds=options.seconds, rate=options.rate, connections=options.connections, say=say
        )  # fmt: skip
    target = Target(
        "orders stored a second while the edge accepts", result["stored_per_s"], "a second",
        least=STORED_LEAST, goal=STORED_GOAL,
    )  # fmt: skip
    return conclude(Figure("pipeline", METHOD, [target], result), options, as_text(result))


def measure(
    stack: WholeStack, *, seconds: float, rate: float, connections: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Load, samples, drain. Raises LoadFailed when orders were refused or are not all stored in the end."""
    samples: list[dict[str, float]] = []
    cpu_before = stack.cpu_us()
    with Load(
stack.aim, "pipeline", seconds, connections, rate) as load:  # fmt: skip
        began = time.monotonic()
        while (due := began + (len(samples) + 1) * SAMPLE_S) <= began + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            samples.append(sample(stack, load, began))
            last = samples[-1]
            say(f"{last['accepted']:,.0f} accepted, {last['stored']:,.0f} stored")
        final = load.finish(stop=False)
    ended = time.monotonic()
    cpu_load = {name: value - cpu_before.get(name, 0.0) for name, value in stack.cpu_us().items()}
    require_all_accepted(final)
    accepted = final["accepted"]
    while (stored := stack.depths().stored) < accepted and time.monotonic() < ended + DRAIN_S_MAX:
        say(f"draining: {stored:,} of {accepted:,} stored")
        time.sleep(0.1)
    if stored != accepted:
        raise LoadFailed(f"{accepted} orders were accepted, {stored} are stored")
    return {
        **rates([each for each in samples if each["at_s"] >= min(WARM_UP_S, seconds / 3)]),
        "accepted": accepted,
        "stored": stored,
        "batches": batch_sizes(stack),  # including the drain: at the end of the load, no order may be stored yet
        "drain_s": time.monotonic() - ended,
        "accepted_ms": final["accepted_ms"],
        "cpu_us_an_order": {name: round(value / accepted, 1) for name, value in sorted(cpu_load.items())},
        "samples": samples,
    }


def batch_sizes(stack: WholeStack) -> dict[str, float]:
    """Mean number of orders per batch so far: small batches make a pipeline expensive."""
    edge, relay, writer = (stack.counts(name) for name in ("edge", "relay-0", "shard-writer-0"))
    pairs = {
        "script call": (edge, "flashsale_edge_batch_orders_total", "flashsale_edge_batches_total"),
        "relay message": (
            relay, "flashsale_relay_published_entries_total", "flashsale_relay_published_messages_total",
        ),
        "shard transaction": (writer, "flashsale_writer_batch_orders_sum", "flashsale_writer_batch_orders_count"),
    }  # fmt: skip
    return {
        name: round(counts.get(orders, 0.0) / max(1.0, counts.get(calls, 0.0)), 1)
        for name, (counts, orders, calls) in pairs.items()
    }


def sample(stack: WholeStack, load: Load, began: float) -> dict[str, float]:
    """The places of orders now. `unrelayed`: the relay's lag; `unstored`: not stored by the writers; both in orders."""
    depths = stack.depths()
    accepted = load.counted["accepted"]  # at most 0.2 s old
    return {
        "at_s": round(time.monotonic() - began, 3),
        "accepted": accepted,
        "stored": depths.stored,
        "unrelayed": depths.unrelayed,
        "queued_messages": depths.queued_messages,
        "unstored": max(0, accepted - depths.stored),
    }


def rates(samples: list[dict[str, float]]) -> dict[str, float]:
    """Orders accepted and stored per second from the first sample to the last, and the largest lags."""
    first, last = samples[0], samples[-1]
    length_s = last["at_s"] - first["at_s"]
    return {
        "accepted_per_s": (last["accepted"] - first["accepted"]) / length_s,
        "stored_per_s": (last["stored"] - first["stored"]) / length_s,
        "unrelayed_max": max(each["unrelayed"] for each in samples),
        "queued_messages_max": max(each["queued_messages"] for each in samples),
        "unstored_max": max(each["unstored"] for each in samples),
    }


def as_text(result: dict[str, Any]) -> list[str]:
    """Samples and sums."""
    lines = [f"{'s':>6}{'accepted':>12}{'stored':>12}{'unrelayed':>12}{'messages':>10}{'unstored':>12}"]
    lines += [
        f"{each['at_s']:>6.1f}{each['accepted']:>12,}{each['stored']:>12,}{each['unrelayed']:>12,}"
        f"{each['queued_messages']:>10,}{each['unstored']:>12,}"
        for each in result["samples"]
    ]
    cpu = ", ".join(f"{name} {value}" for name, value in result["cpu_us_an_order"].items())
    return [
        *lines,
        f"accepted {result['accepted_per_s']:,.0f}/s, p99 {result['accepted_ms']['p99']:.1f} ms; "
        f"all {result['stored']:,} stored {result['drain_s']:.1f} s after the load's end",
        "orders a " + ", a ".join(f"{name} {size}" for name, size in result["batches"].items()),
        f"CPU time under load, us per accepted order: {cpu}",
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.pipeline", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the load")
    parser.add_argument("--rate", type=float, default=0.0, help="orders a second (open loop); 0: as many as possible")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--users", type=int, default=USERS)
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
