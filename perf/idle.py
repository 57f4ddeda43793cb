"""Processor time of a complete stack without clients.

    python -m perf.idle [--seconds 30] [--save] [--json] [--gate]

Every process of the embedded stack runs, Redis and PostgreSQL included, and no client sends anything. The figure is the
processor time of all of them, as a share of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from devstack.demo.rehearsal import own_stack
from ops.stack_file import Stack
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude, progress

SETTLE_S = 10.0  # caches fill, pools shrink, the first looks of the workers end
SHARE_MAX = 0.03
METHOD = (
    "The embedded stack with every process and no client, after 10 s of rest. Processor time (user and system, "
    "children included) of all processes from /proc, divided by the time."
)


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, _):
        say("letting the stack come to rest")
        time.sleep(SETTLE_S)
        say(f"measuring for {options.seconds:g} s")
        shares = measure(stack, seconds=options.seconds)
    total = sum(shares.values())
    result: dict[str, Any] = {"share_of_a_core": total, "by_process": shares}
    text = [f"{name:<14} {share:7.2%}" for name, share in sorted(shares.items(), key=lambda one: -one[1])]
    targets = [Target("processor time of an idle stack", total, "of a core", most=SHARE_MAX)]
    return conclude(Figure("idle", METHOD, targets, result), options, text)


def measure(stack: Stack, *, seconds: float) -> dict[str, float]:
    """Shares of a core by process."""
    before, started = _cpu_us(stack), time.monotonic()
    time.sleep(seconds)
    length_us = (time.monotonic() - started) * 1e6
    return {name: (value - before.get(name, 0.0)) / length_us for name, value in _cpu_us(stack).items()}


def _cpu_us(stack: Stack) -> dict[str, float]:
    return {name: cpu_us(tree(pid)) for name, pid in stack.processes.items()}


def _options() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m perf.idle", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the measurement")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
