"""Latency of orders while a quarter of all buckets moves to another shard, on the whole stack.

    python -m perf.reshard [--rate 1000] [--buckets 256] [--seconds 60] [--save] [--json] [--gate]

Orders come in on a schedule (`perf.open_loop`). A few seconds later `flashsale shards move` begins, as an operator
would run it. The schedule must last longer than the move: otherwise the run is refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from typing import Any, Final

from perf.open_loop import LATENESS_P99_MS_MAX, USERS, WARM_UP_S, Schedule, as_text, run
from perf.results import Figure, Target, add_options, conclude, progress
from perf.whole_stack import WholeStack, whole_stack

P99_MS_MAX: Final = 250.0
BEFORE_S: Final = 5.0  # of orders before the move begins
STORED_S_MAX: Final = 60.0
METHOD = (
    "Whole embedded stack with four shards. Open loop of the bundled driver at a fixed rate, fresh keys of 100,000 users; "
    "after 5 s the first buckets move to shard 3 by `flashsale shards move`, and the schedule goes on beyond the end of "
    "the move. Frozen: from the freeze of a group to its opening in the target, as the command reports it; writers of "
    "the group wait meanwhile, orders are accepted. At the end, every accepted order must be stored once. Load generator "
    "and servers share the machine."
)


def main() -> int:
    options = _options()
    with progress() as say, whole_stack(say, users=options.users) as whole:
        schedule = Schedule(options.rate, options.connections, 1)
        say("warming up")
        run(whole.aim, schedule, key_prefix="warm", seconds=WARM_UP_S)
        mover = _Mover(whole, options.buckets)
        say(f"{options.rate:,.0f} orders a second for {options.seconds:.0f} s")
        mover.start()
        result = run(whole.aim, schedule, key_prefix="open", seconds=options.seconds)
        over_at = time.monotonic()
        mover.join()
        if mover.status != 0 or mover.ended_at > over_at:
            raise SystemExit(f"the move ended with status {mover.status} after the orders: choose a longer --seconds")
        say("waiting for the shards")
        result |= {"moved": mover.figures(), "stored": _stored(whole), "accepted": _accepted(whole)}
    targets = [
        Target("p99 from when an order was due", result["latency_ms"]["p99"], "ms", most=P99_MS_MAX),
        Target("share of the schedule sent", result["sent"] / result["due"], "of 1", least=1.0),
        Target("p99 of the generator's lateness", result["lateness_ms"]["p99"], "ms", most=LATENESS_P99_MS_MAX),
        Target(
            "accepted orders that are stored once", result["stored"] / result["accepted"], "of 1", least=1.0, most=1.0
        ),
    ]
    moved = result["moved"]
    text = [
        *as_text(result),
        f"{options.buckets} buckets in {moved['took_s']:.1f} s, {moved['groups']} groups; frozen: median "
        f"{moved['frozen_ms_median']:.0f} ms, longest {moved['frozen_ms_max']:.0f} ms",
        f"{result['accepted']:,} orders accepted, {result['stored']:,} stored",
    ]
    return conclude(Figure("reshard", METHOD, targets, result), options, text)


class _Mover(threading.Thread):
    """The command, begun a few seconds after `start`."""

    def __init__(self, whole: WholeStack, buckets: int) -> None:
        super().__init__()
        self._whole = whole
        self._buckets = buckets
        self._began_at = 0.0
        self._lines: list[dict[str, Any]] = []
        self.status: int | None = None
        self.ended_at = 0.0

    def run(self) -> None:
        time.sleep(BEFORE_S)
        self._began_at = time.monotonic()
        arguments = ["shards", "move", "--buckets", f"0-{self._buckets - 1}", "--to", "3", "--json"]
        folder = str(self._whole.token_keys.parent.parent)
        argv = [sys.executable, "-P", "-m", "ops.cli", *arguments, "--state-dir", folder]
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
        self.ended_at = time.monotonic()
        self._lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.status = done.returncode

    def figures(self) -> dict[str, Any]:
        frozen = sorted(line["frozen_ms"] for line in self._lines if "frozen_ms" in line)
        return {
            "buckets": self._buckets,
            "took_s": self.ended_at - self._began_at,
            "groups": len(frozen),
            "frozen_ms_median": frozen[len(frozen) // 2],
            "frozen_ms_max": frozen[-1],
        }


def _accepted(whole: WholeStack) -> int:
    return whole.edge_outcomes()["accepted"]


def _stored(whole: WholeStack) -> int:
    """Orders of the sale in the shards, when they are as many as accepted, or after a minute."""
    end = time.monotonic() + STORED_S_MAX
    while True:
        stored = sum(whole.orders_by_key_prefix().values())
        if stored >= _accepted(whole) or time.monotonic() > end:
            return stored
        time.sleep(0.5)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="orders a second")
    parser.add_argument("--buckets", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--users", type=int, default=USERS)
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
