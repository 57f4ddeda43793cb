"""Cost of an order with more open sales and more users: CPU time of edge and Redis per order, and orders/s.

    python -m perf.flatness [--seconds 3] [--rounds 4] [--sales 1,10,...] [--users 1000,...] [--save] [--json] [--gate]

Each point has its own Redis and edge, and so has the base beside it (1 sale, 100,000 users). On both, every user
orders once before the measurement; then they are measured alternately. The result is the ratio to the base of the same
round, so that a slow minute of the machine affects both. Rate limits are raised, so that few users may order as often
as many. Buyers order in turn, so with few users each has many orders: up to Redis' limit of a compact hash and beyond.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ops.tokens import mint_many
from perf.driver.loop import Loop
from perf.load import TOKEN_S, LoadFailed
from perf.results import Figure, Target, add_options, conclude, note, progress
from perf.stage import UNITS, Stage, edge_on_redis
from runtime.process.settings import load_settings
from runtime.tokens.keys import create_token_keys, load_token_keys

BASE_SALES, BASE_USERS = 1, 100_000
SKU = "SKU-1"
CONNECTIONS = 128  # as in the gate: with four lanes, fewer connections leave every batch half empty
FILL_ORDERS_MIN = 20_000  # enough to read each of a thousand sales before the measurement
FILL_ORDERS_AT_ONCE = 10_000
FILL_S_MAX = 60.0  # for all of them
SETTLE_S_MAX = 30.0
COST_RATIO_MAX = 1.25  # highest ratio of a point to its base that counts as flat
METHOD = (
    "Closed loop of the bundled driver (128 connections, fresh keys) on an edge with one worker and a Redis that "
    "syncs its append-only file before each answer, both new for each point and for the base beside it; every user "
    "has ordered before the measurement. CPU time from /proc. Cost: edge plus Redis, per accepted order; ratio: to "
    "the base of the same round; medians over the rounds."
)
SETTINGS = {"FLASHSALE_USER_RATE": "1000", "FLASHSALE_USER_BURST": "10000"}


@dataclass(frozen=True, slots=True)
class Point:
    """A number of open sales and of users that order."""

    sales: int
    users: int

    def __str__(self) -> str:
        return f"{self.sales:,} open sales, {self.users:,} users"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run at one point. Microseconds of CPU time per accepted order."""

    orders_per_s: float
    edge_us: float
    redis_us: float

    @property
    def cost_us(self) -> float:
        """CPU time of edge and Redis together."""
        return self.edge_us + self.redis_us


@dataclass(frozen=True, slots=True)
class Buyers:
    """Buyers for the largest point, and the key ring that signs their tokens."""

    keys: Path
    tokens: list[bytes]

    @classmethod
    def mint(cls, folder: Path, count: int) -> Self:
        """In memory, three seconds per million. All points take their buyers from this list."""
        path = folder / "keys.json"
        create_token_keys(path)
        pairs = mint_many(load_token_keys(path), count=count, issuer=load_settings().token_issuer, ttl_s=TOKEN_S)
        return cls(path, [token.encode("ascii") for _, token in pairs])


@dataclass(frozen=True, slots=True)
class Site:
    """A point with its own servers and load generator."""

    stage: Stage
    loop: Loop

    @classmethod
    def of(cls, stage: Stage, point: Point, buyers: Buyers, *, sink: int, say: Callable[[str], None]) -> Self:
        """Publish the sales and let every user order, recorded in descriptor `sink`. LoadFailed unless all succeed."""
        sales = stage.publish_many({SKU: UNITS}, point.sales)
        loop = Loop(
            host="127.0.0.1", port=stage.port, paths=[f"/v1/sales/{sale}/orders" for sale in sales],
            tokens=buyers.tokens[: point.users], bodies=[b'{"items":[{"sku":"%s","quantity":1}]}' % SKU.encode()],
            connections=CONNECTIONS, prefix="flat", record_fd=sink,
        )  # fmt: skip
        site = cls(stage, loop)
        orders = max(point.users, FILL_ORDERS_MIN)
        while (left := orders - loop.next_order) > 0:
            say(f"{point}: {loop.next_order:,} of {orders:,} orders before the measurement")
            site._require_all(loop.run_orders(min(left, FILL_ORDERS_AT_ONCE), FILL_S_MAX))
        return site

    def sample(self, seconds: float) -> Sample:
        """Order for this time. Raises LoadFailed unless all are accepted."""
        cpu, accepted, began = self.stage.cpu_us(), self.loop.accepted, time.monotonic()
        self.loop.run(seconds)
        self._require_all(self.loop.run_orders(0, SETTLE_S_MAX))
        took_s, orders = time.monotonic() - began, self.loop.accepted - accepted
        spent = {name: value - cpu[name] for name, value in self.stage.cpu_us().items()}
        return Sample(orders / took_s, spent["edge"] / orders, spent["redis"] / orders)

    def _require_all(self, unanswered: int) -> None:
        if unanswered or self.loop.refused or self.loop.given_up:
            raise LoadFailed(f"not all orders were accepted: {self.loop.codes_seen()}, {unanswered} unanswered")


def main() -> int:
    options = _options()
    points = [Point(int(count), BASE_USERS) for count in options.sales.split(",")]
    points += [Point(BASE_SALES, int(count)) for count in options.users.split(",")]
    points = list(dict.fromkeys(points))
    deadline = time.monotonic() + options.minutes_max * 60
    rows: list[dict[str, float]] = []
    note(HEADING)
    with progress() as say, tempfile.TemporaryDirectory(prefix="flashsale-flatness-") as folder:
        count = max(BASE_USERS, *(point.users for point in points))
        say(f"minting tokens of {count:,} users")
        buyers = Buyers.mint(Path(folder), count)
        for number, point in enumerate(points, 1):
            if time.monotonic() > deadline:
                note(f"{options.minutes_max:g} min are over; not measured: {', '.join(map(str, points[number - 1 :]))}")
                break

            def say_where(what: str, where: str = f"point {number} of {len(points)}: ") -> None:
                say(where + what)

            pairs = measure(
                point,
                Point(BASE_SALES, BASE_USERS),
                buyers,
                rounds=options.rounds,
                seconds=options.seconds,
                say=say_where,
            )
            rows.append(summarise(point, pairs))
            note(as_line(rows[-1]))
    highest = max((row["cost_ratio"] for row in rows), default=0.0)
    targets = [
        Target("dearest point, cost an order to its base", highest, "times", most=COST_RATIO_MAX),
        Target("points measured", len(rows), "points", least=len(points)),
    ]
    return conclude(Figure("flatness", METHOD, targets, {"points": rows}), options, as_text(rows))


def measure(
    point: Point, base: Point, buyers: Buyers, *, rounds: int, seconds: float, say: Callable[[str], None]
) -> list[tuple[Sample, Sample]]:
    """Pairs of base and point, measured alternately. Raises LoadFailed unless every order was accepted."""
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        with edge_on_redis(SETTINGS, keys=buyers.keys) as own, edge_on_redis(SETTINGS, keys=buyers.keys) as beside:
            base_site = Site.of(beside, base, buyers, sink=sink, say=say)
            point_site = Site.of(own, point, buyers, sink=sink, say=say)
            pairs = []
            for number in range(rounds):
                say(f"{point}, round {number + 1} of {rounds}")
                if number % 2 == 0:
                    first = base_site.sample(seconds)
                    pairs.append((first, point_site.sample(seconds)))
                else:
                    first = point_site.sample(seconds)
                    pairs.append((base_site.sample(seconds), first))
            return pairs
    finally:
        os.close(sink)


def summarise(point: Point, pairs: Sequence[tuple[Sample, Sample]]) -> dict[str, float]:
    """The row of a point: medians over pairs (base, point)."""
    medians = {
        name: statistics.median(getattr(sample, name) for _, sample in pairs)
        for name in ("orders_per_s", "edge_us", "redis_us", "cost_us")
    }
    ratio = statistics.median(sample.cost_us / base.cost_us for base, sample in pairs)
    rate_ratio = statistics.median(sample.orders_per_s / base.orders_per_s for base, sample in pairs)
    return {**asdict(point), **medians, "cost_ratio": ratio, "rate_ratio": rate_ratio}


HEADING = f"{'sales':>6}{'users':>11}{'orders/s':>11}{'edge us':>9}{'Redis us':>10}{'cost/base':>11}{'rate/base':>11}"


def as_line(row: dict[str, float]) -> str:
    """One row of the table."""
    return (
        f"{row['sales']:>6,}{row['users']:>11,}{row['orders_per_s']:>11,.0f}{row['edge_us']:>9.1f}{row['redis_us']:>10.1f}"
        f"{row['cost_ratio']:>11.2f}{row['rate_ratio']:>11.2f}"
    )


def as_text(rows: Sequence[dict[str, float]]) -> list[str]:
    """The table."""
    return [HEADING, *map(as_line, rows)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.flatness", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=4, help="runs of each point, and of the base beside it")
    parser.add_argument("--sales", default="1,10,100,1000", help="numbers of open sales")
    parser.add_argument("--users", default="1000,10000,100000,1000000", help="numbers of users")
    parser.add_argument("--minutes-max", type=float, default=12.0, help="no point begins later than this")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
