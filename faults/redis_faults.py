"""Faults of the reservation Redis and of its connections."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from redis.asyncio import Redis

from faults.conditions import NotFired
from faults.proxy import Harm, Trap
from faults.scenario import Drill, Fault, Sale

RESERVE = (b"EVALSHA", b":state", b":stream")  # a batch of orders on its way to Redis
TRAP_S_MAX = 15.0
LIMITED = Sale(per_user_limit=3)  # some buyers reach this limit


async def sprung(drill: Drill, trap: Trap, what: str) -> None:
    """Wait for a trap. NotFired if it does not spring in time."""
    await drill.stage.until(
        trap.done.is_set, f"{what}: sprung {trap.sprung} times of {trap.times}", within_s=TRAP_S_MAX
    )


async def kill_redis(drill: Drill) -> str:
    """Send SIGKILL under load."""
    await drill.pause(0, 0.5)
    old = drill.stage.pid("redis")
    os.kill(old, signal.SIGKILL)
    new = await drill.stage.replaced("redis", old)
    return f"pid {old} became {new}"


async def restart_redis(drill: Drill) -> str:
    """Send SIGTERM, for an orderly restart."""
    old = drill.stage.pid("redis")
    os.kill(old, signal.SIGTERM)
    new = await drill.stage.replaced("redis", old)
    return f"pid {old} became {new}"


async def kill_redis_often(drill: Drill) -> str:
    """Send SIGKILL three times, each soon after the last restart."""
    pids = [drill.stage.pid("redis")]
    for _ in range(3):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(await drill.stage.replaced("redis", pids[-1]))
        await drill.pause(0.1, 1.0)
    return f"pids {' -> '.join(map(str, pids))}"


async def pause_redis(drill: Drill) -> str:
    """Stop Redis for longer than an order may take."""
    pid = drill.stage.pid("redis")
    unanswered = sum(attempt.code == "outcome_unknown" for attempt in drill.buyers.history.attempts())
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(4.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    unknown = sum(attempt.code == "outcome_unknown" for attempt in drill.buyers.history.attempts()) - unanswered
    if not unknown:
        raise NotFired("no request got outcome_unknown while Redis was stopped")
    return f"{unknown} answers were outcome_unknown"


async def lose_replies(drill: Drill) -> str:
    """Execute batches and drop their replies."""
    proxy = drill.stage.proxy("edge")
    trap = proxy.set_trap(Trap(Harm.AFTER, RESERVE, times=8, skip=drill.rng.randrange(5)))
    await sprung(drill, trap, "replies lost")
    return f"{proxy.counted['after']} replies to executed batches were dropped"


async def tear_batches(drill: Drill) -> str:
    """Forward half of a batch, then end the connection."""
    proxy = drill.stage.proxy("edge")
    trap = proxy.set_trap(Trap(Harm.TORN, RESERVE, times=8, skip=drill.rng.randrange(5)))
    await sprung(drill, trap, "batches torn")
    return f"{proxy.counted['torn']} batches were torn"


async def cut_connections(drill: Drill) -> str:
    """End all connections of all processes to Redis, several times."""
    proxies = [proxy for (_, server), proxy in drill.stage.proxies.items() if server == "redis"]
    cut = 0
    for _ in range(6):
        cut += sum(proxy.cut() for proxy in proxies)
        await drill.pause(0.05, 0.5)
    if not cut:
        raise NotFired("there were no connections to cut")
    return f"{cut} connections were cut"


async def stall_link(drill: Drill) -> str:
    """Forward nothing; connections stay open."""
    proxy = drill.stage.proxy("edge")
    proxy.stall(stalled=True)
    await asyncio.sleep(5.0)
    proxy.stall(stalled=False)
    if not proxy.counted["stalled"]:
        raise NotFired("no write was delayed")
    return f"{proxy.counted['stalled']} writes were delayed"


async def slow_link(drill: Drill) -> str:
    """Delay each write by 40 ms in both directions."""
    proxy = drill.stage.proxy("edge")
    proxy.slow(0.04)
    await asyncio.sleep(3.0)
    proxy.slow(0)
    if not proxy.counted["slowed"]:
        raise NotFired("no write was slowed")
    return f"{proxy.counted['slowed']} writes were slowed"


async def unreachable(drill: Drill) -> str:
    """End all connections, and refuse new ones for longer than an order may take."""
    proxy = drill.stage.proxy("edge")
    proxy.refuse(refusing=True)
    proxy.cut()
    await asyncio.sleep(3.5)
    proxy.refuse(refusing=False)
    if not proxy.counted["refused"]:
        raise NotFired("the edge did not try to connect")
    return f"{proxy.counted['refused']} connections were refused"


async def flush_scripts(drill: Drill) -> str:
    """Empty the script cache several times, as a restart does."""
    async with drill.stage.redis() as redis:
        before = await _errors(redis, "NOSCRIPT")
        for _ in range(10):
            await redis.script_flush()
            await drill.pause(0.05, 0.3)
        missing = await _errors(redis, "NOSCRIPT") - before
    if not missing:
        raise NotFired("no call got NOSCRIPT")
    return f"{missing} calls got NOSCRIPT"


async def fill_memory(drill: Drill) -> str:
    """Lower maxmemory below the memory in use."""
    began = time.monotonic()
    async with drill.stage.redis() as redis:
        before, met_before = (await redis.config_get("maxmemory"))["maxmemory"], await _errors(redis, "OOM")
        try:
            await redis.config_set("maxmemory", int((await redis.info("memory"))["used_memory"] * 0.9))
            await asyncio.sleep(3.0)
        finally:
            await redis.config_set("maxmemory", str(before))
        met = await _errors(redis, "OOM") - met_before
    refused = sum(a.code == "overloaded" and a.returned_at > began for a in drill.buyers.history.attempts())
    if not refused:
        raise NotFired("no order was refused as overloaded")
    return f"{refused} answers were overloaded, {met} commands got OOM"


async def _errors(redis: Redis, kind: str) -> int:
    """Number of errors of a kind since Redis started; earlier drills caused some of them."""
    found = (await redis.info("errorstats")).get(f"errorstat_{kind}")
    return int(found["count"]) if found else 0


async def redis_gone_for_long(drill: Drill) -> str:
    """Stop Redis, then kill it: first silence, then a restart."""
    pid = drill.stage.pid("redis")
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(3.0)
    os.kill(pid, signal.SIGKILL)
    new = await drill.stage.replaced("redis", pid)
    return f"silent for {time.monotonic() - began:.1f} s, pid {pid} became {new}"


FAULTS = [
    Fault(
        "redis-kill9", "SIGKILL to Redis under load; the supervisor restarts it",
        "orders in flight are resubmitted or answered outcome_unknown; no accepted order is lost", kill_redis, fast=True,
    ),
    Fault("redis-restart-term", "Redis gets SIGTERM and is restarted", "as redis-kill9", restart_redis),
    Fault("redis-kill9-thrice", "SIGKILL to Redis three times in a row", "as redis-kill9", kill_redis_often),
    Fault(
        "redis-paused-past-deadline", "Redis stops (SIGSTOP) for longer than an order may take",
        "outcome_unknown in time; repeating with the same key returns the outcome", pause_redis,
    ),
    Fault("redis-paused-then-killed", "Redis stops for 3 s, then is killed", "as both", redis_gone_for_long),
    Fault(
        "reply-lost-after-execution", "replies to executed batches are lost, the connection ends",
        "the edge resubmits; the buyer gets the executed order", lose_replies, sale=LIMITED, fast=True,
    ),
    Fault(
        "connection-cut-mid-batch", "half a batch arrives at Redis, then the connection ends",
        "no part of the batch is executed; it is resubmitted", tear_batches,
    ),
    Fault("connections-cut", "all connections of all processes to Redis end, six times", "all reconnect", cut_connections),
    Fault(
        "connection-stalled", "the edge's connections to Redis pass no data for 5 s and stay open",
        "answers in time; a silent connection is replaced", stall_link,
    ),
    Fault("connection-slow", "each write between edge and Redis takes 40 ms longer", "slower, still correct", slow_link),
    Fault(
        "redis-unreachable", "the edge cannot connect to Redis for 3.5 s",
        "overloaded, or outcome_unknown for orders in flight; the edge reconnects", unreachable,
    ),
    Fault("script-flush", "SCRIPT FLUSH under load, ten times", "scripts are loaded again; buyers notice nothing", flush_scripts),
    Fault(
        "redis-out-of-memory", "maxmemory is below the memory in use for 3 s",
        "orders are refused as overloaded, none is half done; accepted orders still reach their shards", fill_memory,
    ),
]  # fmt: skip
