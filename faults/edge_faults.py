"""Faults of the edge itself: its workers, its main process, its clock, its descriptors; and a power loss."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from uuid import UUID

from devstack.children import alive, free_port, spawn
from devstack.launch import wait_until_up
from devstack.program import responds
from faults.checker import Expectations
from faults.clock import clock_shim
from faults.conditions import Needs, NotFired
from faults.history import Attempt, Ending
from faults.overload_faults import Answers
from faults.proxy import Harm, Trap
from faults.redis_faults import RESERVE, sprung
from faults.scenario import Drill, Fault
from faults.stage import Stage
from faults.wire import Wire, order_request
from ops.stack_file import PROJECT
from ops.tokens import mint_many
from runtime.process.settings import load_settings
from runtime.tokens.keys import load_token_keys

STOPPED_S = 4.0
SKEW_S = 300
TOKEN_MARGIN_S = 120
FILES_MAX = 220
IDLE_CONNECTIONS = 600


async def kill_worker(drill: Drill) -> str:
    """Send SIGKILL to one of two workers, twice."""
    stage, killed = drill.stage, []
    for _ in range(2):
        before = set(stage.edge_workers())
        pid = drill.rng.choice(sorted(before))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        await stage.until(partial(_is_replaced, stage, before), "no new worker came")
        await drill.pause(0.3, 0.8)
    return f"workers {killed} killed; the same main process has {len(stage.edge_workers())} workers again"


def _is_replaced(stage: Stage, before: set[int]) -> bool:
    now = set(stage.edge_workers())
    return len(now) >= len(before) and now != before


async def stop_worker(drill: Drill) -> str:
    """Stop one of two workers for longer than an order may take: its connections hang, the other's do not."""
    pid = drill.rng.choice(sorted(drill.stage.edge_workers()))
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
        served = drill.buyers.per_s(began, time.monotonic())
    finally:
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(0.5)
    drill.silence(began)
    late = sum(
        a.invoked_at < began + STOPPED_S - 1 and a.returned_at > began + STOPPED_S
        for a in drill.buyers.history.attempts()
    )
    if not late:
        raise NotFired("no request waited for the stopped worker")
    if not served:
        drill.fail("F", "the other worker answered no request")
    return f"{late} requests waited for the stopped worker, the other answered {served:.0f}/s meanwhile"


async def kill_main(drill: Drill) -> str:
    """Send SIGKILL to the edge's main process: its workers end with it, and the supervisor restarts it."""
    stage, began = drill.stage, time.monotonic()
    old, workers = stage.pid("edge"), stage.edge_workers()
    os.kill(old, signal.SIGKILL)
    new = await stage.replaced("edge", old)
    drill.silence(began)
    if any(alive(pid) for pid in workers):
        raise NotFired("workers outlived their main process")
    return f"pid {old} became {new}, its {len(workers)} workers ended with it"


async def kill_after_execution(drill: Drill) -> str:
    """Kill all workers between the execution of a batch and its answers."""
    stage, began = drill.stage, time.monotonic()

    def kill_workers() -> None:
        for pid in stage.edge_workers():
            os.kill(pid, signal.SIGKILL)

    trap = Trap(Harm.AFTER, RESERVE, skip=drill.rng.randrange(10), action=kill_workers)
    stage.proxy("edge").set_trap(trap)
    await sprung(drill, trap, "workers killed")
    await stage.until(lambda: responds(f"{stage.stack.edge_url}/readyz"), "no worker came back")
    drill.silence(began)
    return "both workers were killed while the reply of an executed batch was on its way to them"


async def drain_edge(drill: Drill) -> str:
    """Send SIGTERM to one of two edges under load, as behind a load balancer."""
    stage = drill.stage
    port = free_port()
    second = stage.start_extra("edge", "edge-second", edge_port=str(port), edge_workers="1")
    url = f"http://127.0.0.1:{port}"
    await stage.until(lambda: responds(f"{url}/readyz"), "the second edge did not become ready")
    drill.buyers.urls.append(url)
    await asyncio.sleep(0.5)
    old, before, began = stage.pid("edge"), drill.pace(), time.monotonic()
    os.kill(old, signal.SIGTERM)
    await stage.until(lambda: not alive(old), "the edge did not end")
    drill.goes_on(began, before)
    await stage.replaced("edge", old)
    await asyncio.sleep(0.5)
    drill.buyers.urls.remove(url)
    await stage.end_extra(second)
    return f"edge {old} drained and ended, its connections moved to the other edge; then that edge drained, too"


async def clock_ahead(drill: Drill) -> str:
    """Order with a token that is valid for two minutes, at an edge that is five minutes ahead."""
    attempt, proof = await _order_at_skewed(drill, SKEW_S, ttl_s=TOKEN_MARGIN_S)
    if attempt.ending is not Ending.OK:
        drill.fail("E", f"a token with two minutes left was refused by the edge that is ahead: {attempt.code}")
    return proof


async def clock_behind(drill: Drill) -> str:
    """Order with a token that expired two minutes ago, at an edge that is five minutes behind."""
    attempt, proof = await _order_at_skewed(drill, -SKEW_S, ttl_s=-TOKEN_MARGIN_S)
    if attempt.code != "token_expired":
        drill.fail("E", f"a token that expired two minutes ago was answered {attempt.code or attempt.status}")
    return proof


async def _order_at_skewed(drill: Drill, by_s: int, *, ttl_s: int) -> tuple[Attempt, str]:
    """Run a second edge with a wrong wall clock for a while, and order there first with a token of lifetime `ttl_s`.

    Returns the answer to that order, and the proof that buyers ordered there.
    """
    stage = drill.stage
    with tempfile.TemporaryDirectory(prefix="flashsale-clock-") as folder:
        shim = await asyncio.to_thread(clock_shim, Path(folder), by_s)
        port = free_port()
        skewed = stage.start_extra(
            "edge", "edge-skewed", environ={"LD_PRELOAD": str(shim)}, edge_port=str(port), edge_workers="1"
        )
        url = f"http://127.0.0.1:{port}"
        await stage.until(lambda: responds(f"{url}/readyz"), "the skewed edge did not become ready")
    keys = load_token_keys(stage.folder.token_keys)
    ((user, token),) = mint_many(keys, count=1, issuer=load_settings().token_issuer, ttl_s=ttl_s)
    wire = Wire([url])
    body = b'{"items": [{"sku": "%s", "quantity": 1}]}' % drill.skus[1].encode()
    path = f"/v1/sales/{drill.sale_id}/orders"
    attempt = await wire.ask(order_request(wire.host, path, token=token, key="skewed", body=body))
    wire.close()
    drill.buyers.note_order(UUID(user), token, "skewed", ((drill.skus[1], 1),), attempt)
    drill.buyers.urls.append(url)
    await asyncio.sleep(3.0)
    taken = (await asyncio.to_thread(Answers.read, url)).outcomes.get("accepted", 0) - (attempt.ending is Ending.OK)
    drill.buyers.urls.remove(url)
    await stage.end_extra(skewed)
    if not taken:
        raise NotFired("the skewed edge accepted no order of the buyers")
    return (
        attempt,
        f"an edge {abs(by_s)} s {'ahead' if by_s > 0 else 'behind'} accepted {taken:.0f} orders of the buyers",
    )


async def exhaust_descriptors(drill: Drill) -> str:
    """Open more idle connections than the edge may have open files."""
    host, _, port = drill.door_url.removeprefix("http://").partition(":")
    opened: list[asyncio.StreamWriter] = []
    workers, before = drill.stage.edge_workers(), drill.pace()
    began = time.monotonic()

    async def open_one() -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(2.0):
                opened.append((await asyncio.open_connection(host, int(port)))[1])

    await asyncio.gather(*(open_one() for _ in range(IDLE_CONNECTIONS)))
    await asyncio.sleep(2.0)
    files = [len(os.listdir(f"/proc/{pid}/fd")) for pid in drill.stage.edge_workers()]
    served = drill.goes_on(began, before)
    if drill.stage.edge_workers() != workers:
        drill.fail("F", "workers ended without free descriptors")
    for writer in opened:
        writer.transport.abort()
    drill.silence(began)
    if max(files) < FILES_MAX * 0.8:
        raise NotFired(f"the workers have only {files} files open")
    return f"{len(opened)} idle connections, {files} files open of {FILES_MAX}; buyers got {served:.0f} answers/s"


async def lose_power(drill: Drill) -> str:
    """Kill all processes at once, supervisor and servers included; then start the stack again."""
    stage, began = drill.stage, time.monotonic()
    stack = stage.stack
    pids = [stack.supervisor, *stack.processes.values(), *stage.edge_workers()]
    os.kill(stack.supervisor, signal.SIGSTOP)  # it must not restart anything meanwhile
    for pid in reversed(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # Wait for zombies, too: PostgreSQL takes a zombie with the pid in its lock file for a running server.
    orphans = [Path(f"/proc/{pid}") for pid in pids if pid != stack.supervisor]
    await stage.until(lambda: not any(orphan.exists() for orphan in orphans), "a process survived")
    log = stage.folder.log("supervisor")
    argv = [sys.executable, "-m", "faults.variation", str(stage.folder.path), "0", "0"]
    supervisor = spawn(
        argv, env={**os.environ, "PYTHONUNBUFFERED": "1"}, log=log, cwd=PROJECT, orphan_signal=signal.SIGTERM
    )
    stack = await asyncio.to_thread(wait_until_up, stage.folder, supervisor, log)
    drill.buyers.urls[:] = stage.edge_urls
    drill.silence(began)
    return f"{len(pids)} processes were killed at once, and all were restarted"


_CUT = Expectations(broken_connections=True)
FAULTS = [
    Fault(
        "edge-worker-kill9", "SIGKILL to one of two edge workers, twice", "respawned; buyers repeat with their keys",
        kill_worker, allowed=_CUT,
    ),
    Fault(
        "edge-worker-sigstop", "one of two edge workers stops for 4 s", "the other one serves; waiting requests are answered",
        stop_worker, allowed=_CUT,
    ),
    Fault("edge-main-killed", "SIGKILL to the edge's main process", "restarted with new workers", kill_main, allowed=_CUT),
    Fault(
        "edge-killed-after-execution", "all edge workers die between a batch's execution and its answers",
        "buyers repeat with their keys and get the executed orders", kill_after_execution, allowed=_CUT, fast=True,
    ),
    Fault(
        "edge-sigterm-under-load", "one of two edges gets SIGTERM under keep-alive load",
        "no request fails: answers close their connections, then the edge ends", drain_edge,
    ),
    Fault(
        "edge-clock-skewed", "the clock of one of two edges is five minutes ahead",
        "sale windows, holds, rates and token lifetimes use Redis time", clock_ahead,
    ),
    Fault(
        "edge-clock-behind", "the clock of one of two edges is five minutes behind",
        "as with a clock that is ahead", clock_behind,
    ),
    Fault(
        "descriptors-exhausted", "an edge that may open 220 files gets 600 idle connections",
        "open connections are served, no process ends; new connections wait", exhaust_descriptors, allowed=_CUT,
        needs=Needs(launchers={"edge": ["sh", "-c", f'ulimit -n {FILES_MAX}; exec "$0" "$@"']}),
    ),
    Fault(
        "power-loss", "SIGKILL to all processes at once, servers and supervisor included; then a restart",
        "every 202 is stored", lose_power, allowed=_CUT, needs=Needs(own="power-loss"),
    ),
]  # fmt: skip
