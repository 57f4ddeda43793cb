"""Goodput when far more orders wait than the edge can take at once, with the processor as the limit.

    python -m perf.overload [--seconds 3] [--rounds 5] [--save] [--json] [--gate]

The edge and its Redis have one processor to themselves, the load generator has the others, at lower priority: on
shared processors it would take time from the servers that it measures. Peak (just enough connections to fill the
batches) and overload (five times as many as batches have places) alternate, both as closed loops. An open loop would
not offer the edge more, because an order without an idle connection waits in the generator; its backlog would only
take the memory cache from the servers. The judged value is accepted orders per second of CPU time of edge and Redis,
overload beside the peak of the same round: it includes all costs of the overload, and little of what other programs
do on the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from perf.load import Aim, Load, write_tokens
from perf.processes import tree
from perf.results import Figure, Target, add_options, conclude, progress
from perf.stage import UNITS, Stage, edge_on_redis

SKU = "SKU-1"
USERS = 50_000  # with few users, the growth of their hashes in Redis costs more than the overload
PEAK_CONNECTIONS = 256
OVERLOAD_CONNECTIONS = 640  # five times the places in the batches in flight, two of 64
REFUSING_CONNECTIONS = 900
REFUSING_QUEUE = 64  # orders that may wait while the cost of a refusal is measured
SETTLE_S = 1.0  # of each run, not counted: connections open, batches fill
NICENESS = 10
SHARE_MIN = 0.9
SETTINGS = {"FLASHSALE_USER_RATE": "1000", "FLASHSALE_USER_BURST": "10000"}
METHOD = (
    "Edge (default settings, one worker) and Redis (appendfsync always) on one processor, the bundled driver on the "
    "others at lower priority. Closed loops: 256 connections at the peak, 640 in overload. Alternating rounds; the "
    "median of the rounds' ratios. Accepted orders per second of CPU time (user and system) of edge and Redis. Cost of "
    "a refusal: 900 connections and an edge in which 64 orders may wait; CPU time beyond the cost of the accepted "
    "orders at the peak, by refused requests."
)


class TooFewProcessors(Exception):
    """The servers and the load generator need a processor each."""


class NothingAccepted(Exception):
    """A run without an accepted order shows nothing."""


def main() -> int:
    options = _options()
    try:
        with progress() as say:
            result = measure(options.seconds, options.rounds, say)
    except (TooFewProcessors, NothingAccepted) as error:
        print(error, file=sys.stderr)
        return 2
    targets = [Target("accepted per processor second, overload / peak", result["share"], "of 1", least=SHARE_MIN)]
    return conclude(Figure("overload", METHOD, targets, result), options, as_text(result))


def measure(seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All runs, and the results computed from them.

    Raises TooFewProcessors when servers and load would share a processor, NothingAccepted.
    """
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        raise TooFewProcessors("two processors are needed: one for the servers, one for the load generator")
    os.sched_setaffinity(0, processors[1:])
    peaks, overs = [], []
    with edge_on_redis(SETTINGS) as stage:
        aim = _aim(stage, processors[0])
        _run(stage, Load(aim, "warm", SETTLE_S + 1, PEAK_CONNECTIONS))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: peak")
            peaks.append(_run(stage, Load(aim, f"peak{number}", seconds, PEAK_CONNECTIONS)))
            say(f"round {number + 1} of {rounds}: overload")
            overs.append(_run(stage, Load(aim, f"over{number}", seconds, OVERLOAD_CONNECTIONS)))
    say("the cost of a refusal")
    with edge_on_redis({**SETTINGS, "FLASHSALE_EDGE_QUEUE_LENGTH_MAX": str(REFUSING_QUEUE)}) as stage:
        refusing = _run(stage, Load(_aim(stage, processors[0]), "refusing", seconds, REFUSING_CONNECTIONS))
    peak_us, over_us = (median(run["us_an_accepted"] for run in runs) for runs in (peaks, overs))
    spare_us = sum(refusing["cpu_us_a_s"].values()) - refusing["accepted_per_s"] * peak_us
    refused_per_s = refusing["refused_per_s"]
    return {
        "share": median(
            peak["us_an_accepted"] / over["us_an_accepted"] for peak, over in zip(peaks, overs, strict=True)
        ),
        "us_an_accepted": {"peak": peak_us, "overload": over_us},
        "us_a_refused": spare_us / refused_per_s if refused_per_s else None,
        "peak": peaks,
        "overload": overs,
        "refusing": refusing,
    }


def _aim(stage: Stage, processor: int) -> Aim:
    """Publish a sale on the stage, and bind the stage's servers to their processor for good."""
    assert stage.server.process is not None
    _pin([*tree(stage.edge.pid), stage.server.process.pid], processor)
    tokens = stage.folder / "tokens"
    write_tokens(tokens, stage.keys_file, users=USERS)
    return Aim(stage.url, [stage.publish({SKU: UNITS})], [SKU], tokens)


def _run(stage: Stage, load: Load) -> dict[str, Any]:
    """One run: rates from the end of its first second to its end, and the CPU time of the servers in between."""
    with load:
        assert load.process is not None
        os.setpriority(os.PRIO_PROCESS, load.process.pid, NICENESS)
        time.sleep(SETTLE_S)
        before, cpu_before, began = dict(load.counted), stage.cpu_us(), time.monotonic()
        time.sleep(load.seconds - SETTLE_S)
        after, cpu_after, took_s = dict(load.counted), stage.cpu_us(), time.monotonic() - began
    accepted = after["accepted"] - before["accepted"]
    if accepted == 0:
        raise NothingAccepted(
            f"run {load.key_prefix}: no order was accepted; other work takes this machine's processors"
        )
    cpu_us = {name: cpu_after[name] - cpu_before[name] for name in cpu_after}
    refused = after["refused"] + after["retries"] - before["refused"] - before["retries"]
    return {
        "accepted_per_s": accepted / took_s,
        "us_an_accepted": sum(cpu_us.values()) / accepted,
        "cpu_us_a_s": {name: spent / took_s for name, spent in cpu_us.items()},
        "refused_per_s": refused / took_s,
    }


def _pin(pids: Iterable[int], processor: int) -> None:
    """Bind all threads that the processes have now; later threads inherit it."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task.name), {processor})


def as_text(result: dict[str, Any]) -> list[str]:
    """Goodput and its costs."""
    cost, refused = result["us_an_accepted"], result["us_a_refused"]

    def shown(runs: list[dict[str, Any]]) -> str:
        return ", ".join(f"{run['accepted_per_s']:,.0f}" for run in runs)

    lines = [
        f"accepted a second at the peak: {shown(result['peak'])}; overloaded: {shown(result['overload'])}",
        f"CPU time of edge and Redis per accepted order: {cost['peak']:.1f} us, overloaded {cost['overload']:.1f} us",
    ]
    if refused is not None:
        lines.append(f"a refused request costs {refused:.1f} us, {refused / cost['peak']:.0%} of an accepted order")
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.overload", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each run")
    parser.add_argument("--rounds", type=int, default=5)
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
