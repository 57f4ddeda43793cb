"""Faults of the proof itself: damage that the reconciler must show, and a reconciler that cannot look.

The damage is undone at the end of each drill, so that the checker finds the stack whole.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, cast
from uuid import UUID

import orjson
import psycopg
from redis.asyncio import Redis

from domain.topology import VERDICTS_KEY, lane_state_key, stock_field
from faults.conditions import NotFired
from faults.scenario import Drill, Fault
from reservation.verdicts import VERDICT_AGE_MS_MAX, Judged, read_verdict

JUDGED_S_MAX = 45.0  # two deep looks
LOOK_S = 0.1
SLOW_S = 8.0  # a deep look stands still for this long
FRESH_S_MAX = 6.0  # beside it, verdicts are younger than this


async def _until_judged(redis: Redis, sale_id: UUID, wanted: Callable[[Judged], bool], otherwise: str) -> float:
    """Seconds until the sale's verdict is as wanted; NotFired if it is not within the time."""
    began = time.monotonic()
    while time.monotonic() - began < JUDGED_S_MAX:
        if wanted(await read_verdict(redis, sale_id)):
            return time.monotonic() - began
        await asyncio.sleep(LOOK_S)
    raise NotFired(f"{otherwise}: {await redis.hget(VERDICTS_KEY, str(sale_id))!r}")


async def _open_another_sale(drill: Drill, name: str) -> UUID:
    shop = await asyncio.to_thread(drill.stage.staff)
    sale = await asyncio.to_thread(
        partial(shop.create_open_sale, name=name, stock={drill.skus[1]: 10}, price_minor=1999)
    )
    return UUID(sale["id"])


async def corrupted_stock(drill: Drill) -> str:
    """Cut the last byte off a stock field of another sale."""
    damaged = await _open_another_sale(drill, "damaged")
    (lane,) = drill.cluster.lanes_of_sale(damaged, count=1)
    key, field = lane_state_key(lane), stock_field(damaged, 0)
    async with drill.stage.redis() as redis:
        for sale_id in (damaged, drill.sale_id):
            await _until_judged(redis, sale_id, lambda judged: judged.a is True, "A was not proved before the damage")
        whole = cast(bytes, await cast(Any, redis.hget(key, field)))
        await cast(Any, redis.hset(key, field, whole[:-1]))
        try:
            red_s = await _until_judged(redis, damaged, lambda judged: judged.a is False, "the damage was not shown")
            beside = await read_verdict(redis, drill.sale_id)
            if beside.a is not True:
                drill.fail("A", f"the verdict of the sale beside the damaged one is {beside.a}")
        finally:
            await cast(Any, redis.hset(key, field, whole))
        await _until_judged(redis, damaged, lambda judged: judged.a is True, "A was not proved after the repair")
    return (
        f"A of the damaged sale was violated after {red_s:.1f} s, proved for the sale beside it, and again at the end"
    )


async def crash_loop(drill: Drill) -> str:
    """Kill the reconciler at each of its starts, for longer than a verdict counts."""
    stage = drill.stage
    async with stage.redis() as redis:
        await _until_judged(redis, drill.sale_id, lambda judged: judged.a is True, "A was not proved before")
        kills, began, last = 0, time.monotonic(), 0
        while time.monotonic() - began < VERDICT_AGE_MS_MAX / 1000 + 3:
            pid = stage.pid("reconciler")
            if pid != last:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                last = pid
            await asyncio.sleep(LOOK_S / 2)
        judged = await read_verdict(redis, drill.sale_id)
        shop = await asyncio.to_thread(stage.staff)
        shown = (await asyncio.to_thread(shop.report, str(drill.sale_id)))["invariants"]
        if kills < 2:
            raise NotFired(f"the reconciler was killed {kills} times")
        if (judged.a, judged.b) != (None, None) or shown != {"A": None, "B": None}:
            drill.fail("A", f"the verdict stands without a reconciler: {judged}, in the report {shown}")
        again_s = await _until_judged(redis, drill.sale_id, lambda found: found.a is True, "A was not proved again")
    return f"killed {kills} times; the report said null, and proved again {again_s:.1f} s after the last kill"


@asynccontextmanager
async def _orders_locked(dsn: str) -> AsyncIterator[None]:
    """No statement can read or write the orders of a shard."""
    async with await psycopg.AsyncConnection.connect(dsn, connect_timeout=5) as connection:
        await connection.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        yield
        await connection.rollback()


async def slow_deep_look(drill: Drill) -> str:
    """Lock the orders of one shard while a deep look has to read them."""
    shard = drill.rng.randrange(drill.cluster.shards)
    async with drill.stage.redis() as redis:
        before = await read_verdict(redis, drill.sale_id)
        if before.deep_at_ms is None:
            await _until_judged(redis, drill.sale_id, lambda judged: judged.deep_at_ms is not None, "no deep look")
        async with _orders_locked(drill.stage.stack.shard_dsns[shard]):
            other = await _open_another_sale(drill, "new")  # a new sale makes a deep look due
            at_start = (await read_verdict(redis, drill.sale_id)).deep_at_ms
            began, missed, moved = time.monotonic(), 0, False
            oldest_s = 0.0
            while time.monotonic() - began < SLOW_S:
                await asyncio.sleep(0.5)
                beside = await read_verdict(redis, drill.sale_id)
                oldest_s = max(oldest_s, await _age_s(redis, drill.sale_id))
                moved = moved or beside.deep_at_ms != at_start
                missed += beside.a is False or beside.b is False
            unread = await read_verdict(redis, other)
        if missed or oldest_s > FRESH_S_MAX:
            drill.fail("A", f"beside a slow deep look verdicts were {oldest_s:.1f} s old, {missed} were violated")
        if moved:
            drill.fail("A", "the age of the deep look went down although one shard was not read")
        if unread.a is not None:
            drill.fail("A", f"A of a sale that no deep look has read is {unread.a}")
        again_s = await _until_judged(redis, other, lambda judged: judged.a is True, "no deep look afterwards")
    return (
        f"orders of shard {shard} were locked for {SLOW_S:.0f} s: verdicts were at most {oldest_s:.1f} s old, the deep "
        f"look's age stood; the new sale was proved {again_s:.1f} s later"
    )


async def _age_s(redis: Redis, sale_id: UUID) -> float:
    """Age of the published verdict by its own time."""
    raw = cast(bytes, await cast(Any, redis.hget(VERDICTS_KEY, str(sale_id))))
    seconds, microseconds = await redis.time()
    age_ms: int = seconds * 1000 + microseconds // 1000 - orjson.loads(raw)["at_ms"]
    return age_ms / 1000


async def duplicate_hides_loss(drill: Drill) -> str:
    """Give a stored version the place of another one: its own place is in no shard, the other one is there twice."""
    (lane,) = drill.lanes
    stage = drill.stage
    shard = drill.rng.randrange(drill.cluster.shards)
    dsn = stage.stack.shard_dsns[shard]
    found = "SELECT max(lane_seq) FROM order_transitions WHERE lane = %s"
    [(place,)] = await stage.sql(dsn, found, lane)
    if not isinstance(place, int) or place < 2:
        raise NotFired("the shard has no entries of the lane")
    move = "UPDATE order_transitions SET lane_seq = %s WHERE lane = %s AND lane_seq = %s RETURNING order_id, version"
    async with stage.redis() as redis:
        await _until_judged(redis, drill.sale_id, lambda judged: judged.a is True, "A was not proved before the damage")
        [(order_id, version)] = await stage.sql(dsn, move, place - 1, lane, place)
        try:
            red_s = await _until_judged(redis, drill.sale_id, lambda judged: judged.b is False, "the loss was hidden")
            raw = await cast(Any, redis.hget(VERDICTS_KEY, str(drill.sale_id)))
        finally:
            undo = "UPDATE order_transitions SET lane_seq = %s WHERE order_id = %s AND version = %s"
            await stage.sql(dsn, undo, place, order_id, version)
        if f"stored twice, {place - 1}".encode() not in raw:
            drill.fail("B", f"the verdict does not name place {place - 1}: {raw!r}")
        await _until_judged(redis, drill.sale_id, lambda judged: judged.b is not False, "B stayed violated")
    return f"place {place} of lane {lane} in no shard, {place - 1} twice: B was violated after {red_s:.1f} s"


FAULTS = [
    Fault(
        "corrupted-stock", "a stock field of another sale loses its last byte",
        "A of that sale is violated, the sale beside it keeps its verdict", corrupted_stock,
    ),
    Fault(
        "reconciler-crash-loop", "the reconciler is killed at each start for 18 s",
        "its verdicts count no more after 15 s, in the report as well", crash_loop,
    ),
    Fault(
        "slow-deep-look", "the orders of one shard are locked while a deep look reads them",
        "quick looks go on; the age of the deep look shows; a sale that it has not read is not proved", slow_deep_look,
    ),
    Fault(
        "duplicate-hides-loss", "a stored version takes the place of another one in its lane",
        "B is violated: places are compared, not their number", duplicate_hides_loss,
    ),
]  # fmt: skip
