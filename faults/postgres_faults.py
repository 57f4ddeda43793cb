"""Faults of PostgreSQL and of its connections. The embedded stack has one server; its shards are databases there."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from faults.conditions import NotFired
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault
from runtime.postgres.connection import CALL_S_MAX
from runtime.postgres.pool import POSTGRES_CONNECT_S

AWAY_S = 4.0
SLACK_S = 10.0  # for the pauses between attempts, and for a busy machine
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


def database_away(name: str, *, away_s: float = AWAY_S) -> Act:
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
            await asyncio.sleep(away_s / 2)
            stored = [await _stored(drill, dsn) for dsn in others]
            await asyncio.sleep(away_s / 2)
            drill.goes_on(began, before)
            later = [await _stored(drill, dsn) for dsn in others]
            if any(count == earlier for count, earlier in zip(later, stored, strict=True)):
                drill.fail("F", f"another shard stored nothing while {name} was away")
        finally:
            await stage.sql(stage.maintenance_dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        if not ended:
            raise NotFired(f"no process was connected to {name}")
        return f"{len(ended)} connections to {name} were ended, none accepted for {away_s:.0f} s"

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


async def silence_shard(drill: Drill) -> str:
    """Let one shard answer nothing, on old and new connections, for longer than any call may take."""
    stage, name = drill.stage, "shard_1"
    proxies = [proxy for (_, server), proxy in stage.proxies.items() if server == "postgres"]
    others = [dsn for dsn in stage.stack.shard_dsns if not dsn.endswith(f"/{name}")]
    before, began = drill.pace(), time.monotonic()
    try:
        for proxy in proxies:
            proxy.stall(stalled=True, greeting=b"\0database\0%b\0" % name.encode())
        said = await _says_so(drill, "shard-writer-0", "shard 1")
        stored = [await _stored(drill, dsn) for dsn in others]
        await asyncio.sleep(AWAY_S / 2)
        drill.goes_on(began, before)
        if any([await _stored(drill, dsn) == count for dsn, count in zip(others, stored, strict=True)]):
            drill.fail("F", f"another shard stored nothing while {name} was silent")
    finally:
        for proxy in proxies:
            proxy.stall(stalled=False)
    return f"{sum(proxy.counted['stalled'] for proxy in proxies)} writes were delayed; /readyz said {said!r}"


async def pause_postgres(drill: Drill) -> str:
    """Send SIGSTOP to every process of PostgreSQL: the kernel accepts connections and bytes, and nothing answers."""
    main = drill.stage.pid("postgres")
    before, began = drill.pace(), time.monotonic()
    pids = [main, *_children(main)]
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        said = await _says_so(drill, "shard-writer-0", "shard 0", "shard 1", "shard 2", "shard 3")
        await _says_so(drill, "dispatcher-0", "shard-0")
        drill.goes_on(began, before)
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    await drill.stage.ready_again("shard-writer-0")
    await drill.stage.ready_again("dispatcher-0")
    return f"{len(pids)} processes were stopped for {time.monotonic() - began:.0f} s; /readyz said {said!r}"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


async def take_standby_away(drill: Drill) -> str:
    """Make every COMMIT wait for a synchronous standby that does not exist. Reads are answered as before."""
    stage = drill.stage
    before, began = drill.pace(), time.monotonic()
    try:
        await stage.sql(stage.maintenance_dsn, "ALTER SYSTEM SET synchronous_standby_names = 'away'")
        await stage.sql(stage.maintenance_dsn, "SELECT pg_reload_conf()")
        said = await _says_so(drill, "shard-writer-0", "shard 0", "shard 1", "shard 2", "shard 3")
        drill.goes_on(began, before)
        waiting = await stage.sql(
            stage.maintenance_dsn, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
    finally:
        await stage.sql(stage.maintenance_dsn, "ALTER SYSTEM RESET synchronous_standby_names")
        await stage.sql(stage.maintenance_dsn, "SELECT pg_reload_conf()")
    if waiting == [(0,)]:
        raise NotFired("no COMMIT waited")
    await stage.ready_again("shard-writer-0")
    return f"{waiting[0][0]} COMMITs waited after {time.monotonic() - began:.0f} s; /readyz said {said!r}"


async def _says_so(drill: Drill, process: str, *checks: str) -> str:
    """Wait until /readyz of a process names the checks; the detail of the last one. NotFired if that takes too long."""
    details: dict[str, str] = {}

    def is_named() -> bool:
        details.update(drill.stage.troubles(process))
        return all(check in details for check in checks)

    within_s = CALL_S_MAX + POSTGRES_CONNECT_S + SLACK_S
    await drill.stage.until(is_named, f"{process} stayed ready beside a silent database", within_s=within_s)
    return details[checks[-1]]


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
    Fault(
        "shard-silent", "one shard answers nothing on its open connections, and on new ones",
        "the writer says so within the bound of a call; the other shards keep storing", silence_shard,
    ),
    Fault(
        "postgres-paused", "PostgreSQL stops (SIGSTOP) for longer than a call may take",
        "its clients are not ready within the bound of a call; sales continue; all orders are stored afterwards",
        pause_postgres,
    ),
    Fault(
        "standby-away", "COMMIT waits for a synchronous standby that is away",
        "the writer says so within the bound of a call; sales continue; an order whose COMMIT got no answer is stored "
        "once", take_standby_away,
    ),
    Fault("writer-stalled", "no data passes between writer and PostgreSQL for 4 s", _AWAY, stall_writer),
]  # fmt: skip
