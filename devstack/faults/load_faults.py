"""More load than there is room for, and staff's own process killed while it publishes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import partial
from typing import Any
from uuid import UUID

from devstack.demo.recount import read_promises, recount
from devstack.faults.drill import Drill
from devstack.faults.history import Ending
from devstack.faults.proxy import Harm, Trap
from devstack.faults.redis_faults import sprung
from devstack.faults.scenario import Act, Fault, Needs, NotFired
from devstack.faults.wire import Wire, order_request
from devstack.shop import Shop, ShopError
from devstack.state import PROJECT

PEAK_CONNECTIONS = 64
OVERLOAD_CONNECTIONS = 900
OVERLOAD_FACTOR = 5
PEAK_S = 4.0
GOODPUT_SHARE = 0.9
LINK_DELAY_S = (
    0.02  # Redis is far: what can be taken is bounded by round trips, not by a processor that the load shares
)
STORED_S_MAX = 60.0
DRIVER_S_MAX = 60.0


async def overload(drill: Drill) -> str:
    """Five times as much as can be taken, by a driver of its own at a sale of its own."""
    stage = drill.stage
    link = stage.proxy("edge")
    link.slow(LINK_DELAY_S)
    shop = await asyncio.to_thread(Shop.log_in, stage.stack)
    sku = drill.skus[1]
    sale = await asyncio.to_thread(
        partial(shop.create_open_sale, name="Overload", stock={sku: 1_000_000}, price_minor=1)
    )
    peak = await _drive(drill, sale["id"], sku, "peak", PEAK_CONNECTIONS)
    over = await _drive(drill, sale["id"], sku, "over", OVERLOAD_CONNECTIONS)
    link.slow(0)
    offered = sum(count for _, _, count in over["answers"]) / PEAK_S
    peak_per_s, over_per_s = _rate(peak), _rate(over)
    if offered < OVERLOAD_FACTOR * peak_per_s:
        raise NotFired(f"only {offered:.0f}/s were offered, {peak_per_s:.0f}/s can be taken")
    if over_per_s < GOODPUT_SHARE * peak_per_s:
        drill.fail("F", f"{over_per_s:.0f} accepted/s under overload, {peak_per_s:.0f}/s at peak")
    codes = {code for _, code, _ in over["answers"] if code}
    if codes - {"overloaded", "outcome_unknown"}:
        drill.fail("E", f"answers under overload: {over['answers']}")
    await _recount(drill, UUID(sale["id"]), sku)
    return (
        f"{offered:.0f}/s offered, {over_per_s:.0f}/s accepted; peak {peak_per_s:.0f}/s; "
        f"ratio {over_per_s / peak_per_s:.2f}"
    )


def _rate(driver: dict[str, Any]) -> float:
    """Accepted a second, the first and the last half second apart."""
    bins = driver["accepted_per_100ms"][5 : int(PEAK_S * 10) - 5]
    return float(sum(bins) * 10 / max(1, len(bins)))


async def _drive(drill: Drill, sale_id: str, sku: str, name: str, connections: int) -> dict[str, Any]:
    """The last line of the bundled load driver."""
    folder = drill.stage.folder
    tokens = folder.path / "tokens.tsv"
    tokens.touch(mode=0o600)
    tokens.write_text("".join(f"{user}\t{token}\n" for user, token in drill.stage.users), encoding="ascii")
    argv = [
        sys.executable, "-m", "perf.driver", "--url", drill.stage.stack.edge_url, "--sale", sale_id, "--sku", sku,
        "--tokens", str(tokens), "--orders", str(folder.path / f"{name}.tsv"), "--key-prefix", name,
        "--connections", str(connections), "--seconds-max", str(PEAK_S),
    ]  # fmt: skip
    driver = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        cwd=PROJECT,
    )  # fmt: skip
    try:
        assert driver.stdout is not None and driver.stderr is not None
        async with asyncio.timeout(DRIVER_S_MAX):
            last = b""
            async for line in driver.stdout:
                last = line
            errors = await driver.stderr.read()
            await driver.wait()
    finally:
        if driver.returncode is None:
            driver.kill()
    if not last:
        raise NotFired(f"the load driver failed: {errors.decode(errors='replace')[-500:]}")
    answer: dict[str, Any] = json.loads(last)
    return answer


async def _recount(drill: Drill, sale_id: UUID, sku: str) -> None:
    """Every 202 of the driver against the shards, as soon as they have them."""
    stage = drill.stage
    users = [user for user, _ in stage.users]
    promises = []
    for name in ("peak", "over"):
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


def publish_killed(harm: Harm) -> Act:
    """The backoffice dies at the step that loads a lane, before or after it is done."""

    async def act(drill: Drill) -> str:
        stage = drill.stage
        shop = await asyncio.to_thread(Shop.log_in, stage.stack)
        draft = await asyncio.to_thread(
            partial(shop.create_draft_sale, name="Published", stock={drill.skus[1]: 100}, price_minor=1)
        )
        old = stage.pid("backoffice")
        trap = Trap(harm, (b"EVAL", b":state"), action=partial(os.kill, old, signal.SIGKILL))
        stage.proxy("backoffice").set_trap(trap)
        try:
            await asyncio.to_thread(shop.publish, draft["id"])
        except ShopError:
            pass  # the process died under it: that was wanted
        else:
            raise NotFired("publishing went through")
        await sprung(drill, trap, "the backoffice came to the point")
        await stage.replaced("backoffice", old)
        shop = await asyncio.to_thread(Shop.log_in, stage.stack)
        sale = await asyncio.to_thread(shop.publish, draft["id"])
        wire = Wire(list(drill.crowd.urls))
        user, token = drill.rng.choice(stage.users)
        body = json.dumps({"items": [{"sku": drill.skus[1], "quantity": 1}]}).encode()
        path = f"/v1/sales/{sale['id']}/orders"
        attempt = await wire.ask(order_request(wire.host, path, token=token, key=f"{user}", body=body))
        wire.close()
        available = (await asyncio.to_thread(shop.report, sale["id"]))["items"][0]["available"]
        if attempt.ending is not Ending.OK or sale["state"] != "open" or available != 99:
            drill.fail(
                "A",
                f"after publishing again: {sale['state']}, order {attempt.code or attempt.status}, {available} left",
            )
        return f"pid {old} killed there; published again, it is open with its stock once"

    return act


FAULTS = [
    Fault(
        "overload-5x", "five times as many orders as can be taken",
        "goodput stays at 90% of the peak or more; the rest is refused early as overloaded", overload,
        needs=Needs(
            limits={
                "edge_workers": "1", "batch_size_max": "16", "batches_in_flight_max": "1", "edge_queue_length_max": "256",
                "user_rate": "1000", "user_burst": "10000",
            }
        ),
    ),
    Fault(
        "backoffice-killed-before-load", "backoffice killed before it loads a lane",
        "publishing again finishes it", publish_killed(Harm.BEFORE),
    ),
    Fault(
        "backoffice-killed-after-load", "backoffice killed after it loaded a lane, without knowing it",
        "publishing again finishes it; the stock is there once", publish_killed(Harm.AFTER),
    ),
]  # fmt: skip
