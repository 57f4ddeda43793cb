"""A sale over many lanes: the cost of an order beside a sale of one lane, and the time for the last units.

    python -m perf.lanes [--seconds S] [--pairs N] [--units N] [--save] [--json] [--gate]

`--rebalance URL` runs the rebalancer alone; the program starts itself so, beside the edge, as the stack's expiry worker
does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from devstack.children import spawn
from domain import topology
from domain.sales import Stock
from perf.driver.loop import Loop
from perf.load import LoadFailed, write_tokens
from perf.processes import end
from perf.results import Figure, Target, add_options, conclude, progress
from perf.stage import ROOT, UNITS, Stage, edge_on_redis
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.redis.client import redis_client
from workers.rebalancer.director import Director

SKU = "SKU-1"
LANES_BESIDE_ONE = 4
LANES_OF_SALE = 8
CONNECTIONS = 256  # a crowd: with few connections the batches of four lanes are a quarter full
USERS = 20_000
COST_MOST = 1.25
LAST_SHARE = 0.01
LAST_S_MOST = 2.0
LOOK_S = 0.02
SELLING_S_MAX = 300.0
RATES = {"FLASHSALE_USER_RATE": "1000", "FLASHSALE_USER_BURST": "10000", "FLASHSALE_LANES": str(LANES_OF_SALE)}
METHOD = (
    "One edge on one Redis (fsync), 256 connections, 20,000 users. Cost: sales over 1 and over 4 lanes in turn, processor "
    "time of edge and Redis an order, the median of the ratios of neighbouring runs. Last units: a sale over 8 lanes with "
    "the rebalancer beside the edge is sold until the first answer `sold_out`; the time from 1% of the units left to none. "
    "The driver repeats an order that is told to try again."
)


def main() -> int:
    options = _options()
    if options.rebalance:
        asyncio.run(_rebalance(options.rebalance))
        return 0
    with progress() as say, edge_on_redis(RATES) as stage, rebalancer(stage):
        costs = [measure_costs(stage, seconds=options.seconds, say=say) for _ in range(options.pairs)]
        last = sell_all(stage, units=options.units, say=say)
    ratio = statistics.median(many / one for one, many in costs)
    targets = [
        Target("cost of an order over 4 lanes, over 1 lane", ratio, "times", most=COST_MOST),
        Target("units of a sale over 8 lanes that were sold", last["sold"] / options.units, "of 1", least=1.0),
        Target("the last 1% of a sale over 8 lanes", last["last_s"], "s", most=LAST_S_MOST),
    ]
    result: dict[str, Any] = {"us_an_order": [{"one": one, "four": many} for one, many in costs], **last}
    text = [f"{one:.1f} us of processor time an order over 1 lane, {many:.1f} over 4" for one, many in costs]
    text.append(f"{last['sold']:,} of {options.units:,} units sold in {last['took_s']:.1f} s")
    return conclude(Figure("lanes", METHOD, targets, result), options, text)


def measure_costs(stage: Stage, *, seconds: float, say: Callable[[str], None]) -> tuple[float, float]:
    """Microseconds of processor time an accepted order, over one lane and over four, one after the other."""
    found = []
    for lanes in (1, LANES_BESIDE_ONE):
        say(f"ordering over {lanes} lanes")
        loop = make_loop(stage, stage.publish({SKU: UNITS}, lanes=lanes), f"cost-{lanes}")
        loop.run(seconds / 4)  # caches and connections are warm, definitions are read
        before, accepted = sum(stage.cpu_us().values()), loop.accepted
        loop.run(seconds)
        spent, done = sum(stage.cpu_us().values()) - before, loop.accepted - accepted
        loop.finish(10.0)
        if loop.refused or not done:
            raise LoadFailed(f"unexpected answers: {loop.codes_seen()}")
        found.append(spent / done)
    return found[0], found[1]


def sell_all(stage: Stage, *, units: int, say: Callable[[str], None]) -> dict[str, float]:
    """Sell a sale over eight lanes to its end; `sold`, `took_s`, and `last_s` for the last units."""
    say(f"selling {units:,} units over {LANES_OF_SALE} lanes")
    sale_id = stage.publish({SKU: units}, lanes=LANES_OF_SALE)
    loop = make_loop(stage, sale_id, "all")
    began, last_from, none_at = time.monotonic(), 0.0, 0.0
    while not none_at or not loop.refused:
        loop.run(LOOK_S)
        now, left = time.monotonic(), units_left(stage, sale_id)
        if left <= units * LAST_SHARE:
            last_from = last_from or now
        if left == 0:
            none_at = none_at or now
        if now - began > SELLING_S_MAX:
            raise LoadFailed(f"{left} units are left after {SELLING_S_MAX:.0f} s: {loop.codes_seen()}")
    loop.finish(10.0)
    return {"sold": loop.accepted, "took_s": none_at - began, "last_s": none_at - last_from, "retries": loop.retries}


def units_left(stage: Stage, sale_id: UUID) -> int:
    """Units that are available in all lanes or in transit."""
    field = topology.stock_field(sale_id, 0)
    pipeline = stage.redis.pipeline(transaction=False)
    for lane in range(LANES_OF_SALE):
        pipeline.hget(topology.lane_state_key(lane), field)
    return sum(Stock.unpack(counters).unsold for counters in pipeline.execute())


def make_loop(stage: Stage, sale_id: UUID, prefix: str) -> Loop:
    """A closed loop of new orders of one unit."""
    tokens_file = stage.folder / "tokens"
    if not tokens_file.exists():
        write_tokens(tokens_file, stage.keys_file, users=USERS)
    tokens = [line.rpartition("\t")[2].encode() for line in tokens_file.read_text(encoding="ascii").splitlines()]
    return Loop(
        host="127.0.0.1", port=stage.port, paths=[f"/v1/sales/{sale_id}/orders"], tokens=tokens,
        bodies=[b'{"items":[{"sku":"%s","quantity":1}]}' % SKU.encode()], connections=CONNECTIONS, prefix=prefix,
        record_fd=os.open(os.devnull, os.O_WRONLY),
    )  # fmt: skip


@contextmanager
def rebalancer(stage: Stage) -> Iterator[None]:
    """The rebalancer beside the edge."""
    command = [sys.executable, "-m", "perf.lanes", "--rebalance", stage.server.url]
    process = spawn(command, env=dict(os.environ), log=stage.folder / "rebalancer.log", cwd=ROOT)
    try:
        yield
    finally:
        end(process)


async def _rebalance(url: str) -> None:
    client = redis_client(url)
    service = Service("rebalancer", load_settings({}))
    Director(client, lease_ms=service.settings.lease_ms).start(service)
    await service.background.finished()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.lanes", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--pairs", type=int, default=5, help="runs over one lane and over four")
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--rebalance", metavar="URL", help="run the rebalancer of this Redis")
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
