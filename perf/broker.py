"""The whole pipeline through RabbitMQ against the same run through Redis Streams, and a backlog that drains.

    python -m perf.broker [--rounds 3] [--seconds 15] [--backlog 100000] [--save] [--json] [--gate]

Each round measures both carriers one after the other, the first one by turns, each on a fresh stack: as
`perf.pipeline` does. Then, on a stack with RabbitMQ, the shard writers are stopped until the backlog is in the queues,
and continued.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from devstack.plan import QUEUE_VARIABLE, QueueKind
from perf.load import Load, LoadFailed, require_all_accepted
from perf.pipeline import measure
from perf.results import Figure, Target, add_options, conclude, progress
from perf.whole_stack import WholeStack, whole_stack

RATIO_LEAST = 0.80
STORED_LEAST, STORED_GOAL = 8_000, 12_000
BACKLOG_S_MOST = 20.0
USERS = 100_000
CONNECTIONS = 64
RELAYED_S_MAX = 120.0
METHOD = (
    "Embedded stack with every process on this machine, load driver and broker included; closed loop. Pairs in one "
    "run, the first carrier by turns; the ratio is the median of the rounds' ratios of orders stored a second while "
    "the edge accepts. Backlog: the shard writers are stopped (SIGSTOP) until all orders are accepted and relayed to "
    "RabbitMQ; the time is from SIGCONT until all are stored in the shards."
)


def main() -> int:
    options = _options()
    rounds: list[dict[str, Any]] = []
    with progress() as say:
        for number in range(options.rounds):
            kinds = list(QueueKind) if number % 2 == 0 else list(reversed(QueueKind))
            rounds.append({kind: _pipeline(kind, options, say) for kind in kinds})
        backlog = _backlog(options, say)
    result: dict[str, Any] = {"rounds": rounds, **summary(rounds), "backlog": backlog}
    targets = [
        Target("RabbitMQ against Redis Streams, orders stored a second", result["ratio"], "", least=RATIO_LEAST),
        Target(
            "orders stored a second through RabbitMQ", result["rabbitmq_per_s"], "a second",
            least=STORED_LEAST, goal=STORED_GOAL,
        ),
        Target(f"backlog of {backlog['orders']:,} orders stored", backlog["drain_s"], "s", most=BACKLOG_S_MOST),
    ]  # fmt: skip
    return conclude(Figure("broker", METHOD, targets, result), options, as_text(result))


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds."""
    by_kind = {kind: [each[kind]["stored_per_s"] for each in rounds] for kind in QueueKind}
    pairs = zip(by_kind[QueueKind.RABBITMQ], by_kind[QueueKind.REDIS], strict=True)
    return {
        "ratio": statistics.median(rabbitmq / redis for rabbitmq, redis in pairs),
        "rabbitmq_per_s": statistics.median(by_kind[QueueKind.RABBITMQ]),
        "redis_per_s": statistics.median(by_kind[QueueKind.REDIS]),
    }


def _pipeline(kind: QueueKind, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    with whole_stack(say, users=options.users, settings={QUEUE_VARIABLE: kind}) as stack:
        result = measure(stack, seconds=options.seconds, rate=0.0, connections=CONNECTIONS, say=say)
    return {name: value for name, value in result.items() if name != "samples"}


def _backlog(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    with whole_stack(say, users=options.users, settings={QUEUE_VARIABLE: QueueKind.RABBITMQ}) as stack:
        return measure_backlog(stack, orders=options.backlog, say=say)


def measure_backlog(stack: WholeStack, *, orders: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Fill the queues with the writers stopped, then continue them. Raises LoadFailed when orders are missing."""
    writer = stack.stack.processes["shard-writer-0"]
    os.kill(writer, signal.SIGSTOP)
    try:
        with Load(stack.aim, "backlog", RELAYED_S_MAX, CONNECTIONS) as load:
            while load.counted["accepted"] < orders:
                say(f"{load.counted['accepted']:,} of {orders:,} accepted")
                time.sleep(0.1)
            final = load.finish()
        require_all_accepted(final)
        deadline = time.monotonic() + RELAYED_S_MAX
        while (left := stack.depths().unrelayed) and time.monotonic() < deadline:
            say(f"{left:,} entries not relayed")
            time.sleep(0.1)
    finally:
        os.kill(writer, signal.SIGCONT)
    began = time.monotonic()
    accepted = final["accepted"]
    while (stored := stack.depths().stored) < accepted and time.monotonic() < began + RELAYED_S_MAX:
        say(f"{stored:,} of {accepted:,} stored")
        time.sleep(0.1)
    if stored != accepted:
        raise LoadFailed(f"{accepted} orders were accepted, {stored} are stored")
    drain_s = time.monotonic() - began
    return {"orders": accepted, "drain_s": drain_s, "stored_per_s": accepted / drain_s}


def as_text(result: dict[str, Any]) -> list[str]:
    """A line for each measurement."""
    lines = [
        f"{kind:<9} {each['stored_per_s']:>8,.0f} stored/s, {each['accepted_per_s']:,.0f} accepted/s, "
        f"us an order: {each['cpu_us_an_order']}"
        for pair in result["rounds"]
        for kind, each in pair.items()
    ]
    backlog = result["backlog"]
    return [*lines, f"backlog of {backlog['orders']:,}: {backlog['drain_s']:.1f} s, {backlog['stored_per_s']:,.0f}/s"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.broker", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of the load of each measurement")
    parser.add_argument("--backlog", type=int, default=100_000, help="orders")
    parser.add_argument("--users", type=int, default=USERS)
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
