"""What an order costs with more open sales and with more users: processor time of edge and Redis an order, and orders/s.

    python -m perf.flatness [--seconds 8] [--rounds 3] [--sales 1,10,100,1000] [--users 1000,...] [--save] [--json] [--gate]

Each point is measured beside the base (1 sale, 100,000 users) in the same round, each on a fresh Redis and edge, under a
closed loop of 64 connections. What counts is the ratio to the base next to it: a slow minute of the machine hits both.
Rate limits are raised, so that few users may order as often as many. Buyers are drawn in turn, so with few users each has
many orders: up to Redis's bound of a compact hash and beyond.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from perf.load import Aim, Load, require_all_accepted, write_tokens
from perf.results import Figure, Target, add_options, conclude, progress
from perf.stage import UNITS, edge_on_redis

BASE_SALES, BASE_USERS = 1, 100_000
SKU = "SKU-1"
WARM_UP_S = 1.5
COST_RATIO_MAX = 1.25  # of the dearest point to its base: what is called flat
METHOD = (
    "Closed loop of the bundled driver (64 connections, fresh keys) on an edge with one worker and a Redis that syncs its "
    "append-only file before each answer, both fresh for each point. Processor time from /proc. Cost: edge plus Redis, an "
    "accepted order; ratio: to the base measured next to it; medians over the rounds."
)
SETTINGS = {"FLASHSALE_USER_RATE": "1000", "FLASHSALE_USER_BURST": "10000"}


@dataclass(frozen=True, slots=True)
class Point:
    """How many sales are open, and how many users order."""

    sales: int
    users: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One run at one point. Microseconds of processor time an accepted order."""

    orders_per_s: float
    edge_us: float
    redis_us: float

    @property
    def cost_us(self) -> float:
        """Of edge and Redis together."""
        return self.edge_us + self.redis_us


def main() -> int:
    options = _options()
    base = Point(BASE_SALES, BASE_USERS)
    points = [Point(int(count), base.users) for count in options.sales.split(",")]
    points += [Point(base.sales, int(count)) for count in options.users.split(",")]
    pairs: dict[Point, list[tuple[Sample, Sample]]] = {point: [] for point in dict.fromkeys(points)}
    with progress() as say:
        for number in range(options.rounds):
            for point, measured in pairs.items():
                order = (base, point) if number % 2 == 0 else (point, base)
                samples = [measure(each, seconds=options.seconds, say=say) for each in order]
                measured.append((samples[0], samples[1]) if order[0] is base else (samples[1], samples[0]))
    rows = [summarise(point, measured) for point, measured in pairs.items()]
    highest = max(row["cost_ratio"] for row in rows)
    targets = [Target("dearest point, cost an order to its base", highest, "times", most=COST_RATIO_MAX)]
    return conclude(Figure("flatness", METHOD, targets, {"points": rows}), options, as_text(rows))


def measure(point: Point, *, seconds: float, say: Callable[[str], None], warm_up_s: float = WARM_UP_S) -> Sample:
    """One run. LoadFailed unless every order was accepted."""
    say(f"{point.sales:,} open sales, {point.users:,} users")
    with edge_on_redis(SETTINGS) as stage:
        sales = [stage.publish({SKU: UNITS}) for _ in range(point.sales)]
        tokens = stage.folder / "tokens"
        write_tokens(tokens, stage.keys_file, users=point.users)
        aim = Aim(stage.url, sales, [SKU], tokens)
        for name, length_s in (("warm", warm_up_s), ("run", seconds)):
            # What a thousand sales cost is not that each is read once: so each is, before the clock runs.
            before = stage.cpu_us()
            with Load(aim, name, length_s) as load:
                final = load.finish(stop=False)
            require_all_accepted(final)
            spent = {name: value - before[name] for name, value in stage.cpu_us().items()}
    accepted = final["accepted"]
    return Sample(accepted / seconds, spent["edge"] / accepted, spent["redis"] / accepted)


def summarise(point: Point, pairs: list[tuple[Sample, Sample]]) -> dict[str, float]:
    """The row of a point: medians over pairs (base, point)."""
    medians = {
        name: statistics.median(getattr(sample, name) for _, sample in pairs)
        for name in ("orders_per_s", "edge_us", "redis_us", "cost_us")
    }
    ratio = statistics.median(sample.cost_us / base.cost_us for base, sample in pairs)
    rate_ratio = statistics.median(sample.orders_per_s / base.orders_per_s for base, sample in pairs)
    return {**asdict(point), **medians, "cost_ratio": ratio, "rate_ratio": rate_ratio}


def as_text(rows: list[dict[str, float]]) -> list[str]:
    """The table."""
    lines = [
        f"{'sales':>6}{'users':>11}{'orders/s':>11}{'edge us':>9}{'Redis us':>10}{'cost/base':>11}{'rate/base':>11}"
    ]
    lines += [
        f"{row['sales']:>6,}{row['users']:>11,}{row['orders_per_s']:>11,.0f}{row['edge_us']:>9.1f}{row['redis_us']:>10.1f}"
        f"{row['cost_ratio']:>11.2f}{row['rate_ratio']:>11.2f}"
        for row in rows
    ]
    return lines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.flatness", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sales", default="1,10,100,1000", help="numbers of open sales")
    parser.add_argument("--users", default="1000,10000,100000,1000000", help="numbers of users")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
