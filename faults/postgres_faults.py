"""Faults of PostgreSQL and of its connections. The embedded stack has one server; its shards are databases there."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from faults.conditions import NotFired
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault

AWAY_S = 4.0
CATALOGUE = "catalogue"
_COMMIT = (b"COMMIT",)
# Part of the start-up message: the name alone also occurs in statements, such as those about `shard_grant`.
TO_SHARD = b"\0database\0shard_"


async def kill_postgres(drill: Drill) -> str:
    """Send SIGKILL to the server, which then runs crash recovery."""
    old, before, began = drill.stage.pid("postgres"), drill.pace(), time.monotonic()
    os.kill(old, signal.SIGKILL)
    await drill.stage.replaced("postgres", old)
    drill.goes_on(began, before)
    return f"pid {old} became {drill.stage.pid('postgres')}"


def database_away(name: str) -> Act:
    """End all connections of a database and refuse new ones for a while."""

    async def act(drill: Drill) -> str:
        stage = drill.stage
        others = [dsn for dsn in stage.stack.shard_dsns if not dsn.endswith(f"/{name}")] if name != CATALOGUE else []
        before, began = drill.pace(), time.monotonic()
        try:
            await stage.sql(stage.maintenance_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            ended = await stage.sql(
                stage.maintenance_dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name
            )
            await asyncio.sleep(AWAY_S / 2)
            stored = [await _stored(drill, dsn) for dsn in others]
            await asyncio.sleep(AWAY_S / 2)
            drill.goes_on(began, before)
            later = [await _stored(drill, dsn) for dsn in others]
            if any(count == earlier for count, earlier in zip(later, stored, strict=True)):
                drill.fail("F", f"another shard stored nothing while {name} was away")
        finally:
            await stage.sql(stage.maintenance_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        if not ended:
            raise NotFired(f"no process was connected to {name}")
        return f"{len(ended)} connections to {name} were ended, none accepted for {AWAY_S:.0f} s"

    return act


async def _stored(drill: Drill, dsn: str) -> int:
    ((count,),) = await drill.stage.sql(dsn, "SELECT count(*)::int FROM orders WHERE sale_id = %s", drill.sale_id)
    assert isinstance(count, int)
    return count


def commits_harmed(harm: Harm) -> Act:
    """End connections at commits of the shard writer."""

    async def act(drill: Drill) -> str:
        trap = Trap(harm, _COMMIT, TO_SHARD, times=6, skip=drill.rng.randrange(5))
        drill.stage.proxy("shard-writer-0", "postgres").set_trap(trap)
        await sprung(drill, trap, "commits")
        return f"{trap.sprung} commits {'lost their answers' if harm is Harm.AFTER else 'did not reach the server'}"

    return act


async def stall_writer(drill: Drill) -> str:
    """Forward nothing between the writer and PostgreSQL; connections stay open."""
    proxy = drill.stage.proxy("shard-writer-0", "postgres")
    before, began = drill.pace(), time.monotonic()
    proxy.stall(stalled=True)
    await asyncio.sleep(AWAY_S)
    drill.goes_on(began, before)
    proxy.stall(stalled=False)
    if not proxy.counted["stalled"]:
        raise NotFired("no write was delayed")
    return f"{proxy.counted['stalled']} writes were delayed for {AWAY_S:.0f} s"


_AWAY = "sales continue; the writer pauses without spending attempts, and stores all orders afterwards"
FAULTS = [
    Fault("postgres-kill9", "SIGKILL to PostgreSQL, all shards and the catalogue", _AWAY, kill_postgres),
    Fault(
        "one-shard-down", "one shard ends its connections and accepts none for 4 s",
        "sales continue; the other shards keep storing", database_away("shard_2"), fast=True,
    ),
    Fault("catalogue-down", "the catalogue ends its connections and accepts none for 4 s", _AWAY, database_away(CATALOGUE)),
    Fault(
        "commit-reply-lost", "answers to the writer's commits are lost", "delivered again, dropped by version",
        commits_harmed(Harm.AFTER),
    ),
    Fault(
        "commit-never-arrives", "connections end as the writer commits", "rolled back, delivered again",
        commits_harmed(Harm.BEFORE),
    ),
    Fault("writer-stalled", "no data passes between writer and PostgreSQL for 4 s", _AWAY, stall_writer),
]  # fmt: skip
