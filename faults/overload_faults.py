"""More orders than the system can accept: limited by round trips to Redis, or limited by the processor."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from devstack.demo.recount import read_promises, recount
from faults.conditions import Needs, NotFired, NotHere
from faults.scenario import Drill, Fault
from ops.stack_file import PROJECT

PEAK_CONNECTIONS = 160
OVERLOAD_CONNECTIONS = 700
OVERLOAD_FACTOR = 5
GOODPUT_SHARE = 0.9
ROUNDS = 3  # of peak and overload in turn, because the speed of a shared machine changes from one second to the next
RUN_S = 5.0
SETTLE_S = 2.5  # start of each run, not measured: the first requests meet an empty queue
# A far Redis: round trips bound the capacity. So the load driver can offer five times as much without taking processor
# time from the edge, and the delays of a busy machine are small compared with a round trip.
LINK_DELAY_S = 0.1
STORED_S_MAX = 60.0
DRIVER_S_MAX = 60.0
PROCESSOR_S_MAX = 240.0
TOO_FEW_PROCESSORS = 2  # exit status of `perf.overload`


@dataclass(frozen=True, slots=True)
class Answers:
    """Counts of the answers of an edge with one worker, including answers to the drill's buyers."""

    at: float
    outcomes: dict[str, float]

    @classmethod
    def read(cls, edge_url: str) -> Answers:
        """Read them from /metrics."""
        with urllib.request.urlopen(f"{edge_url}/metrics", timeout=DRIVER_S_MAX) as answer:  # noqa: S310 - our own
            text = answer.read().decode()
        outcomes = {
            line.partition('outcome="')[2].partition('"')[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith("flashsale_edge_orders_total{")
        }
        return cls(time.monotonic(), outcomes)

    def rates_since(self, before: Answers) -> dict[str, float]:
        """Answers per second by outcome."""
        took_s = self.at - before.at
        return {name: (count - before.outcomes.get(name, 0)) / took_s for name, count in self.outcomes.items()}


async def far_redis(drill: Drill) -> str:
    """Offer five times the capacity, with the load driver at a separate sale."""
    stage = drill.stage
    link = stage.proxy("edge")
    link.slow(LINK_DELAY_S)
    shop = await asyncio.to_thread(stage.staff)
    sku = drill.skus[1]
    sale = await asyncio.to_thread(
        partial(shop.create_open_sale, name="Overload", stock={sku: 1_000_000}, price_minor=1)
    )
    peaks, overs = [], []
    for number in range(ROUNDS):
        peaks.append(await _drive(drill, sale["id"], sku, f"peak{number}", PEAK_CONNECTIONS))
        overs.append(await _drive(drill, sale["id"], sku, f"over{number}", OVERLOAD_CONNECTIONS))
    link.slow(0)
    # Replays count, too: their first answer was too late while the queue length settled, and each takes the place of
    # an order in a batch.
    peak_per_s, over_per_s = (
        sum(run["accepted"] + run["replayed"] for run in runs) / ROUNDS for runs in (peaks, overs)
    )
    offered_per_s = sum(sum(run.values()) for run in overs) / ROUNDS
    if offered_per_s < OVERLOAD_FACTOR * peak_per_s:
        raise NotFired(f"only {offered_per_s:.0f}/s were offered, the capacity is {peak_per_s:.0f}/s")
    if over_per_s < GOODPUT_SHARE * peak_per_s:
        drill.fail("F", f"{over_per_s:.0f} 202s/s under overload, {peak_per_s:.0f}/s at peak: {peaks} {overs}")
    await _recount(drill, UUID(sale["id"]), sku)
    return (
        f"{offered_per_s:.0f}/s offered, {over_per_s:.0f}/s answered 202; peak {peak_per_s:.0f}/s; "
        f"ratio {over_per_s / peak_per_s:.2f}"
    )


async def _drive(drill: Drill, sale_id: str, sku: str, name: str, connections: int) -> dict[str, float]:
    """Run the load driver; returns the edge's answers per second, without the start of the run."""
    folder = drill.stage.folder
    tokens = folder.path / "tokens.tsv"
    tokens.touch(mode=0o600)
    tokens.write_text("".join(f"{user}\t{token}\n" for user, token in drill.stage.users), encoding="ascii")
    argv = [
        "-m", "perf.driver", "--url", drill.door_url, "--sale", sale_id, "--sku", sku,
        "--tokens", str(tokens), "--orders", str(folder.path / f"{name}.tsv"), "--key-prefix", name,
        "--connections", str(connections), "--seconds-max", str(RUN_S),
    ]  # fmt: skip
    run = asyncio.create_task(_run(argv, within_s=DRIVER_S_MAX))
    await asyncio.sleep(SETTLE_S)
    before = await asyncio.to_thread(Answers.read, drill.stage.stack.edge_url)
    await asyncio.sleep(RUN_S - SETTLE_S)
    after = await asyncio.to_thread(Answers.read, drill.stage.stack.edge_url)
    _, output, errors = await run
    if not output:
        raise NotFired(f"the load driver failed: {errors[-500:]}")
    answers = json.loads(output.splitlines()[-1])["answers"]
    codes = {code for _, code, _ in answers if code}
    if codes - {"overloaded", "outcome_unknown"}:
        drill.fail("E", f"answers under load: {answers}")
    return after.rates_since(before)


async def _run(argv: list[str], *, within_s: float) -> tuple[int, str, str]:
    """Run a Python program; returns exit status, output and errors. Kills it after `within_s`: TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, cwd=PROJECT,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(within_s):
            output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return status, output.decode(errors="replace"), errors.decode(errors="replace")


async def _recount(drill: Drill, sale_id: UUID, sku: str) -> None:
    """Compare all 202s of the driver with the shards, as soon as they have them."""
    stage = drill.stage
    users = [user for user, _ in stage.users]
    promises = []
    for number in range(ROUNDS):
        for name in (f"peak{number}", f"over{number}"):
            promises += read_promises(stage.folder.path / f"{name}.tsv", users=users, skus=[sku])
    deadline = asyncio.get_running_loop().time() + STORED_S_MAX
    while True:
        counted = await asyncio.to_thread(
            partial(
                recount, promises, shard_dsns=stage.stack.shard_dsns, sale_id=sale_id, stock={sku: 1_000_000},
                topology=drill.cluster,
            )
        )  # fmt: skip
        if counted.is_right or asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.5)
    if not counted.is_right:
        drill.fail("B", f"the driver's orders do not agree with the shards: {counted}")


async def busy_processor(drill: Drill) -> str:
    """Overload a separate edge and Redis on one processor (`perf.overload`); the drill's own stack is not harmed."""
    status, output, errors = await _run(["-m", "perf.overload", "--json", "--gate"], within_s=PROCESSOR_S_MAX)
    if status == TOO_FEW_PROCESSORS:
        raise NotHere(errors.strip())
    if not output:
        raise NotFired(f"the measurement failed: {errors[-500:]}")
    figure: dict[str, Any] = json.loads(output)
    result = figure["result"]
    if not all(target["met"] for target in figure["targets"]):
        drill.fail("F", f"orders per unit of processor time fell to {result['share']:.2f} of the peak's: {result}")
    cost = result["us_an_accepted"]
    accepted_per_s = sum(run["accepted_per_s"] for run in result["overload"]) / len(result["overload"])
    return (
        f"{accepted_per_s:.0f}/s accepted in overload; an accepted order costs edge and Redis {cost['peak']:.0f} us at "
        f"the peak, {cost['overload']:.0f} us overloaded; ratio {result['share']:.2f}"
    )


FAULTS = [
    Fault(
        "overload-5x", "five times as many orders as the capacity, with a far Redis",
        "goodput stays at 90% of the peak or more; other orders are refused early as overloaded", far_redis,
        needs=Needs(
            limits={
                "edge_workers": "1", "batches_in_flight_max": "1", "user_rate": "1000", "user_burst": "10000",
            }
        ),
    ),
    Fault(
        "overload-processor", "five times as many orders in flight as batches hold",
        "goodput per unit of processor time stays at 90% of the peak's or more", busy_processor,
    ),
]  # fmt: skip
