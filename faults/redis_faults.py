"""Faults of the reservation Redis and of the way to it."""

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
LIMITED = Sale(per_user_limit=3)  # that some of the crowd reach


async def sprung(drill: Drill, trap: Trap, what: str) -> None:
    """Wait for a trap; NotFired if nothing springs it."""
    await drill.stage.until(
        trap.done.is_set, f"{what}: sprung {trap.sprung} times of {trap.times}", within_s=TRAP_S_MAX
    )


async def kill_redis(drill: Drill) -> str:
    """SIGKILL in mid-load."""
    await drill.pause(0, 0.5)
    old = drill.stage.pid("redis")
    os.kill(old, signal.SIGKILL)
    new = await drill.stage.replaced("redis", old)
    return f"pid {old} became {new}"


async def restart_redis(drill: Drill) -> str:
    """SIGTERM: an orderly restart."""
    old = drill.stage.pid("redis")
    os.kill(old, signal.SIGTERM)
    new = await drill.stage.replaced("redis", old)
    return f"pid {old} became {new}"


async def kill_redis_often(drill: Drill) -> str:
    """Three times, the next one soon after the last."""
    pids = [drill.stage.pid("redis")]
    for _ in range(3):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(await drill.stage.replaced("redis", pids[-1]))
        await drill.pause(0.1, 1.0)
    return f"pids {' -> '.join(map(str, pids))}"


async def pause_redis(drill: Drill) -> str:
    """SIGSTOP for longer than an order may take."""
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
    """The batch is executed, its reply never arrives."""
    proxy = drill.stage.proxy("edge")
    trap = proxy.set_trap(Trap(Harm.AFTER, RESERVE, times=8, skip=drill.rng.randrange(5)))
    await sprung(drill, trap, "replies lost")
    return f"{proxy.counted['after']} replies were swallowed behind executed batches"


async def tear_batches(drill: Drill) -> str:
    """Half of a batch arrives, then the connection ends."""
    proxy = drill.stage.proxy("edge")
    trap = proxy.set_trap(Trap(Harm.TORN, RESERVE, times=8, skip=drill.rng.randrange(5)))
    await sprung(drill, trap, "batches torn")
    return f"{proxy.counted['torn']} batches were torn"


async def cut_connections(drill: Drill) -> str:
    """All connections of all processes to Redis, again and again."""
    proxies = [proxy for (_, server), proxy in drill.stage.proxies.items() if server == "redis"]
    cut = 0
    for _ in range(6):
        cut += sum(proxy.cut() for proxy in proxies)
        await drill.pause(0.05, 0.5)
    if not cut:
        raise NotFired("there were no connections to cut")
    return f"{cut} connections were cut"


async def stall_link(drill: Drill) -> str:
    """Connections stay open, nothing passes."""
    proxy = drill.stage.proxy("edge")
    proxy.stall(stalled=True)
    await asyncio.sleep(5.0)
    proxy.stall(stalled=False)
    if not proxy.counted["stalled"]:
        raise NotFired("nothing was held back")
    return f"{proxy.counted['stalled']} writes were held back"


async def slow_link(drill: Drill) -> str:
    """Each write takes 40 ms longer in both directions."""
    proxy = drill.stage.proxy("edge")
    proxy.slow(0.04)
    await asyncio.sleep(3.0)
    proxy.slow(0)
    if not proxy.counted["slowed"]:
        raise NotFired("nothing was slowed")
    return f"{proxy.counted['slowed']} writes were slowed"


async def unreachable(drill: Drill) -> str:
    """Connections end and new ones are refused for longer than an order may take."""
    proxy = drill.stage.proxy("edge")
    proxy.refuse(refusing=True)
    proxy.cut()
    await asyncio.sleep(3.5)
    proxy.refuse(refusing=False)
    if not proxy.counted["refused"]:
        raise NotFired("nobody tried to connect")
    return f"{proxy.counted['refused']} connections were refused"


async def flush_scripts(drill: Drill) -> str:
    """The script cache is emptied, as a restart does, again and again."""
    async with drill.stage.redis() as redis:
        before = await _errors(redis, "NOSCRIPT")
        for _ in range(10):
            await redis.script_flush()
            await drill.pause(0.05, 0.3)
        missing = await _errors(redis, "NOSCRIPT") - before
    if not missing:
        raise NotFired("no script was missed")
    return f"{missing} calls met NOSCRIPT"


async def fill_memory(drill: Drill) -> str:
    """maxmemory is lowered below what is in use."""
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
    return f"{refused} answers were overloaded, {met} commands met OOM"


async def _errors(redis: Redis, kind: str) -> int:
    """How many errors of a kind Redis has answered since it started: the restarts before it met some, too."""
    found = (await redis.info("errorstats")).get(f"errorstat_{kind}")
    return int(found["count"]) if found else 0


async def redis_gone_for_long(drill: Drill) -> str:
    """Stopped, then killed: first silence, then a restart."""
    pid = drill.stage.pid("redis")
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(3.0)
    os.kill(pid, signal.SIGKILL)
    new = await drill.stage.replaced("redis", pid)
    return f"silent for {time.monotonic() - began:.1f} s, pid {pid} became {new}"


FAULTS = [
    Fault(
        "redis-kill9", "SIGKILL to Redis under load; the supervisor starts it again",
        "in-flight orders are resubmitted or answered outcome_unknown; nothing accepted is gone", kill_redis, fast=True,
    ),
    Fault("redis-restart-term", "Redis is restarted in an orderly way", "as redis-kill9", restart_redis),
    Fault("redis-kill9-thrice", "SIGKILL to Redis three times in a row", "as redis-kill9", kill_redis_often),
    Fault(
        "redis-paused-past-deadline", "Redis stops (SIGSTOP) for longer than an order may take",
        "outcome_unknown in time; repeating with the same key tells the outcome", pause_redis,
    ),
    Fault("redis-paused-then-killed", "Redis stops for 3 s, then is killed", "as both", redis_gone_for_long),
    Fault(
        "reply-lost-after-execution", "replies to executed batches are swallowed, the connection ends",
        "the edge resubmits; the buyer gets the order that was made", lose_replies, sale=LIMITED, fast=True,
    ),
    Fault(
        "connection-cut-mid-batch", "half a batch arrives at Redis, then the connection ends",
        "nothing of it is executed; it is resubmitted", tear_batches,
    ),
    Fault("connections-cut", "all connections of all processes to Redis end, six times", "all reconnect", cut_connections),
    Fault(
        "connection-stalled", "the edge's connections to Redis pass nothing for 5 s and stay open",
        "answers in time; a silent connection is replaced", stall_link,
    ),
    Fault("connection-slow", "each write between edge and Redis takes 40 ms longer", "slower, still right", slow_link),
    Fault(
        "redis-unreachable", "the edge cannot connect to Redis for 3.5 s",
        "overloaded, or outcome_unknown for what was sent; reconnects by itself", unreachable,
    ),
    Fault("script-flush", "SCRIPT FLUSH under load, ten times", "scripts are loaded again, unseen by buyers", flush_scripts),
    Fault(
        "redis-out-of-memory", "maxmemory is lowered below what is in use for 3 s",
        "orders are refused as overloaded, nothing half-done; what is accepted still reaches its shard", fill_memory,
    ),
]  # fmt: skip
