"""Faults of the reservation Redis's disk: a torn tail, a full disk, a lost one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from devstack.program import responds
from devstack.servers import RedisServer
from faults.checker import Expectations
from faults.conditions import Needs, NotFired
from faults.history import Ending
from faults.redis_faults import LIMITED
from faults.scenario import Drill, Fault
from ops.shop import Shop, ShopError
from ops.stack_file import PROJECT
from runtime.process.settings import overrule

FULL_S = 3.0
REFUSED_S = 2.5  # the watch closes affected sales within half a second; the last second is checked
GONE_BACK_S = 2.0
ASKED_AGAIN = 50
PRODUCTS_MAX = 2000
REBUILD_S_MAX = 90
_AWAY = frozenset({"overloaded", "dependency_unavailable", "outcome_unknown"})  # answers to orders without Redis
_ENDED_BY_WRITE_ERRORS = frozenset({"redis", "postgres"})  # rather than confirm data that is not on disk
_TORN = b"*3\r\n$3\r\nSET\r\n$4\r\ntorn\r\n$20\r\nhalf"


def _data(drill: Drill) -> Path:
    disk = drill.stage.redis_disk
    return disk.path if disk else drill.stage.folder.data / "redis"


@asynccontextmanager
async def _redis_down(drill: Drill) -> AsyncIterator[int]:
    """Kill Redis, and stop the supervisor so that Redis stays down while the block runs. Yields the old pid."""
    stage = drill.stage
    supervisor, redis = stage.stack.supervisor, stage.pid("redis")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(redis, signal.SIGKILL)
        await asyncio.sleep(0.2)  # its files are closed
        yield redis
    finally:
        os.kill(supervisor, signal.SIGCONT)


async def tear_tail(drill: Drill) -> str:
    """Leave the last write of the append-only file incomplete, as after a power cut."""
    log = RedisServer(_data(drill), port=0).log
    read_before = log.stat().st_size  # an earlier drill's kill may also have torn a tail
    async with _redis_down(drill) as old:
        newest = max((_data(drill) / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
        with newest.open("ab") as file:
            file.write(_TORN)
    await drill.stage.replaced("redis", old)
    if b"truncat" not in log.read_bytes()[read_before:].lower():
        raise NotFired("Redis did not find the torn tail")
    return "half a command stood at the end of the append-only file; Redis cut it off when it loaded"


async def fill_disk(drill: Drill) -> str:
    """Fill the disk of the append-only file."""
    stage, old = drill.stage, drill.stage.pid("redis")
    ballast = _data(drill) / "ballast"
    began = time.monotonic()
    try:
        with ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 * 1024))
    except OSError:
        pass  # the disk is full, as intended
    try:
        await asyncio.sleep(FULL_S)
        met = sum(a.returned_at > began and a.code in _AWAY for a in drill.buyers.history.attempts())
    finally:
        ballast.unlink()
    new = await stage.replaced("redis", old)
    if not met:
        raise NotFired("no order met the full disk")
    return f"Redis ended by its write error (pid {old} became {new}); {met} attempts met it"


async def fill_state_disk(drill: Drill) -> str:
    """Fill the disk of the whole stack: the files of Redis and PostgreSQL, all logs, mails and `stack.json`."""
    stage, old, disk = drill.stage, drill.stage.pid("redis"), drill.stage.state_disk
    assert disk is not None
    staff, before, began = stage.staff(), dict(stage.stack.processes), time.monotonic()
    await asyncio.to_thread(disk.fill)
    try:
        await stage.until(
            lambda: not responds(f"{stage.stack.edge_url}/readyz"), "the edge stayed ready on a full disk"
        )
        refused = await _product_refused(drill, staff)
        await asyncio.sleep(FULL_S)
        met = sum(a.returned_at > began and a.code in _AWAY for a in drill.buyers.history.attempts())
    finally:
        disk.free()
    new = await stage.replaced("redis", old)
    for name in stage.stack.metrics:
        await stage.ready_again(name)
    ended = {name for name, pid in stage.stack.processes.items() if pid != before[name]} - _ENDED_BY_WRITE_ERRORS
    if ended:
        drill.fail("F", f"a full disk ended {sorted(ended)}: probably by their logs")
    if not met:
        raise NotFired("no order met the full disk")
    return (
        f"Redis ended by its write error (pid {old} became {new}), the edge was not ready, PostgreSQL refused a product "
        f"({refused}); {met} attempts met it"
    )


async def _product_refused(drill: Drill, staff: Shop) -> str:
    """Create products until PostgreSQL finds no room for one; the code of the answer. A finding for an untyped one."""
    for number in range(PRODUCTS_MAX):
        sku = f"FULL-{drill.stage.sales_made}-{number}"
        # Random, so that PostgreSQL cannot compress it into a page that it has.
        name = drill.rng.randbytes(100).hex()
        try:
            await asyncio.to_thread(partial(staff.create_product, sku=sku, name=name, price_minor=1))
        except ShopError as error:
            if "dependency_unavailable" not in str(error):
                drill.fail("E", f"a product on a full disk: {error}")
            return "dependency_unavailable"
    raise NotFired("PostgreSQL stored products on a full disk")


async def wipe(drill: Drill) -> str:
    """Delete all data of Redis during a sale; the sale stays closed until it is rebuilt."""
    await lose_data(drill)
    return await closed_until_rebuilt(drill)


async def lose_data(drill: Drill) -> None:
    """Delete all data of Redis and restart it."""
    async with _redis_down(drill) as old:
        shutil.rmtree(_data(drill) / "appendonlydir")
    await drill.stage.replaced("redis", old)


async def go_back(drill: Drill) -> str:
    """Restart Redis with the append-only file of two seconds ago, as from a backup copy."""
    files = _data(drill) / "appendonlydir"
    copy = files.with_name("appendonlydir-kept")
    await asyncio.to_thread(shutil.copytree, files, copy)
    await asyncio.sleep(GONE_BACK_S)
    async with _redis_down(drill) as old:
        shutil.rmtree(files)
        copy.rename(files)
    await drill.stage.replaced("redis", old)
    return await closed_until_rebuilt(drill)


async def closed_until_rebuilt(drill: Drill) -> str:
    """Check that a lost sale takes no orders, and rebuild it."""
    stage = drill.stage
    await asyncio.sleep(REFUSED_S)
    since = [a for a in drill.buyers.history.attempts() if a.returned_at > time.monotonic() - 1.0]
    if not since:
        raise NotFired("no buyer ordered at the lost sale")
    codes = {attempt.code or str(attempt.status) for attempt in since}
    if any(attempt.status == 202 for attempt in since):
        drill.fail("A", f"a Redis that lost its data accepts orders: {sorted(codes)}")
    if "sale_not_found" in codes:
        drill.fail("E", "a sale that Redis lost was answered with sale_not_found")
    argv = [sys.executable, "-m", "ops.cli", "rebuild", "--sale", str(drill.sale_id)]
    argv += ["--state-dir", str(stage.folder.path)]
    done = await asyncio.to_thread(
        subprocess.run, argv, cwd=PROJECT, env=overrule(os.environ, {}), capture_output=True, text=True,
        timeout=REBUILD_S_MAX, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotFired(f"the rebuild failed: {done.stdout[-300:]} {done.stderr[-300:]}")
    again = await _ask_again(drill)
    return (
        f"refused as {sorted(codes)} until `flashsale rebuild` reopened the sale: {done.stdout.strip().splitlines()[0]}; "
        f"{again} old keys got their orders again"
    )


async def _ask_again(drill: Drill) -> int:
    """Repeat the oldest orders, which were stored before the loss, with their keys; returns the number of replays.

    The checker compares the answers with the first ones.
    """
    wanted = [
        request for request in drill.buyers.history.requests if request.ending is Ending.OK and not request.misuse
    ]
    wire = drill.buyers.new_wire()
    answers = [await drill.buyers.ask(wire, request) for request in wanted[:ASKED_AGAIN]]
    wire.close()
    if not (replays := sum(attempt.replayed for attempt in answers)):
        raise NotFired("no old key got its order again")
    return replays


LOSS = Expectations(forgotten_events=True, lost_orders=True)
FAULTS = [
    Fault(
        "aof-torn-tail", "the append-only file ends in half a command, as after a power cut",
        "the torn command was never answered; all other data is there", tear_tail,
    ),
    Fault(
        "aof-disk-full", "the disk of the append-only file is full for 3 s",
        "Redis ends instead of answering an unwritten order; it restarts when there is space", fill_disk,
        needs=Needs(small_disk=True),
    ),
    Fault(
        "state-disk-full", "the disk of the whole stack is full for some seconds: Redis, PostgreSQL, logs",
        "no order is accepted and the edge is not ready; the stack stays up, and continues when there is space",
        fill_state_disk, needs=Needs(state_disk=True),
    ),
    Fault(
        "redis-wiped-mid-sale", "Redis loses its whole disk during a sale",
        "orders are refused until the sale is rebuilt from the shards; no unit is sold twice; accepted orders that were "
        "not stored are lost, as documented", wipe, needs=Needs(own="redis-wiped"),
        sale=LIMITED, allowed=LOSS,
    ),
    Fault(
        "redis-went-back", "Redis restarts with the append-only file of 2 s ago",
        "its sales are closed within half a second, and rebuilt; no unit is sold twice; accepted orders that were not "
        "stored are lost, as documented", go_back, needs=Needs(own="redis-went-back"), allowed=LOSS,
    ),
]  # fmt: skip
