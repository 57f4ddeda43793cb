"""Processor time of a complete stack without clients.

    python -m perf.idle [--seconds 30] [--save] [--json] [--gate]

Every process of the embedded stack runs, Redis and PostgreSQL included, and no client sends anything. The figure is the
processor time of all of them, as a share of one core. Beside it, the commands that Redis executes in a second and the
transactions of each database: they do not depend on the machine, and a test bounds them.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import psycopg
import redis

from devstack.demo.rehearsal import own_stack
from ops.stack_file import Stack
from perf.processes import cpu_us, tree
from perf.results import Figure, Target, add_options, conclude, progress

SETTLE_S = 10.0  # caches fill, pools shrink, the first looks of the workers end
SHARE_MAX = 0.03
METHOD = (
    "The embedded stack with every process and no client, after 10 s of rest. Processor time (user and system, "
    "children included) of all processes from /proc, divided by the time. Commands of Redis (those of scripts included) "
    "and transactions by database, a second."
)
TRANSACTIONS_SHOWN_S = 1.1  # a server process reports its transactions once a second at most


def main() -> int:
    options = _options()
    with progress() as say, own_stack(say, name="perf") as (stack, _):
        say("letting the stack come to rest")
        time.sleep(SETTLE_S)
        say(f"measuring for {options.seconds:g} s")
        shares = measure(stack, seconds=options.seconds)
        counted = count(stack, seconds=options.seconds)
    total = sum(shares.values())
    result: dict[str, Any] = {
        "share_of_a_core": total,
        "by_process": shares,
        "redis_commands_per_s": counted.redis_per_s,
        "transactions_per_s": counted.transactions_per_s,
    }
    text = [f"{name:<14} {share:7.2%}" for name, share in sorted(shares.items(), key=lambda one: -one[1])]
    text.append(f"{sum(counted.redis_per_s.values()):.0f} Redis commands a second")
    text += [f"{name}: {per_s:.1f} transactions a second" for name, per_s in counted.transactions_per_s.items()]
    targets = [Target("processor time of an idle stack", total, "of a core", most=SHARE_MAX)]
    return conclude(Figure("idle", METHOD, targets, result), options, text)


def measure(stack: Stack, *, seconds: float) -> dict[str, float]:
    """Shares of a core by process."""
    before, started = _cpu_us(stack), time.monotonic()
    time.sleep(seconds)
    length_us = (time.monotonic() - started) * 1e6
    return {name: (value - before.get(name, 0.0)) / length_us for name, value in _cpu_us(stack).items()}


@dataclass(frozen=True, slots=True)
class Counted:
    """What the stack's processes ask of the servers: Redis commands by name, transactions by database, a second."""

    redis_per_s: dict[str, float]
    transactions_per_s: dict[str, float]


def count(stack: Stack, *, seconds: float) -> Counted:
    """Count for some seconds, by the servers' own statistics and clocks."""
    with redis.Redis.from_url(stack.redis_url) as client, psycopg.connect(stack.catalogue_dsn, autocommit=True) as own:
        commands, commands_at = _commands(client)
        transactions, transactions_at = _transactions(own)
        time.sleep(max(seconds, TRANSACTIONS_SHOWN_S))
        later, later_at = _commands(client)
        ended, ended_at = _transactions(own)
    return Counted(
        {name: (calls - commands.get(name, 0)) / (later_at - commands_at) for name, calls in later.items()},
        {name: (calls - transactions[name]) / (ended_at - transactions_at) for name, calls in ended.items()},
    )


def _commands(client: redis.Redis) -> tuple[dict[str, int], float]:
    """Calls of each command so far, but for those made here, and the server's time in seconds."""
    stats = client.info("commandstats")
    seconds, microseconds = client.time()
    calls = {name.removeprefix("cmdstat_"): int(of["calls"]) for name, of in stats.items()}
    return calls, seconds + microseconds / 1e6


def _transactions(connection: psycopg.Connection[Any]) -> tuple[dict[str, int], float]:
    """Transactions of each database so far, and the server's time in seconds."""
    rows = connection.execute(
        "SELECT datname, xact_commit + xact_rollback, extract(epoch FROM clock_timestamp())::float8"
        " FROM pg_stat_database WHERE datname = 'catalogue' OR datname LIKE 'shard%'"
    ).fetchall()
    return {name: calls for name, calls, _ in rows}, rows[0][2]


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
