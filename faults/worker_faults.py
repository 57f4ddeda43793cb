"""Workers killed between each two of their steps, stopped past their leases, and doubled.

The steps are found on the wire: a trap in the proxy between a worker and its server waits for the write that begins a
step and kills the worker. It forwards the write (executed, but the worker does not know) or drops it (never executed).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial

from redis.asyncio import Redis

from domain.topology import dispatcher_lease_key, lane_lease_key
from faults.conditions import NotFired
from faults.postgres_faults import TO_SHARD
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault, Sale
from runtime.redis.scripts import load_script

LEASE_WAIT_S_MAX = 20.0
_PUBLISH = (load_script("runtime.queue", "queue_publish-2").sha.encode(),)
_ACK = (load_script("runtime.queue", "queue_ack-1").sha.encode(),)
_APPEND = (load_script("runtime.event_log", "log_append-1").sha.encode(),)
_TRIM = (b"EVALSHA", b":stream", b":lease")
_EXPIRE = (b"EVALSHA", b":state", b"}o")
_COMMIT = (b"COMMIT",)
_TO_CATALOGUE = b"\0database\0catalogue\0"
_SHORT_HOLDS = Sale(hold_s=2, cancel=0.03)


def killed_at(
    process: str, marks: tuple[bytes, ...], harm: Harm, *, server: str = "redis", greeting: bytes = b"", times: int = 2
) -> Act:
    """Kill a worker at a step, `times` times."""

    async def act(drill: Drill) -> str:
        stage = drill.stage
        pids = [stage.pid(process)]
        for _ in range(times):
            pid = pids[-1]
            trap = Trap(
                harm, marks, greeting, skip=drill.rng.randrange(4), action=partial(os.kill, pid, signal.SIGKILL)
            )
            stage.proxy(process, server).set_trap(trap)
            await sprung(drill, trap, f"{process} reached the step")
            pids.append(await stage.replaced(process, pid))
        return f"killed there {times} times: pids {' -> '.join(map(str, pids))}"

    return act


def killed_anywhere(process: str, times: int = 3) -> Act:
    """Kill a worker at random times."""

    async def act(drill: Drill) -> str:
        pids = [drill.stage.pid(process)]
        for _ in range(times):
            await drill.pause(0.05, 0.6)
            os.kill(pids[-1], signal.SIGKILL)
            pids.append(await drill.stage.replaced(process, pids[-1]))
        return f"pids {' -> '.join(map(str, pids))}"

    return act


def stopped_past_lease(process: str, module: str, lease_of: Callable[[Drill], str]) -> Act:
    """Stop the owner of a lease until a second process has it, then wake it: a zombie with unfinished work."""

    async def act(drill: Drill) -> str:
        stage, key = drill.stage, lease_of(drill)
        pid = stage.pid(process)
        stage.start_extra(module, f"{process}-second")
        async with stage.redis() as redis:
            before = await redis.get(key)
            os.kill(pid, signal.SIGSTOP)
            try:
                after = await _another_owner(redis, key, before)
                await drill.pause(0.5, 1.5)
            finally:
                os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(1.0)
        return f"the lease's token went from {_text(before)} to {_text(after)} before the zombie woke"

    return act


async def _another_owner(redis: Redis, key: str, before: object) -> object:
    async with asyncio.timeout(LEASE_WAIT_S_MAX):
        while True:
            owner = await redis.get(key)
            if owner is not None and owner != before:
                return owner
            await asyncio.sleep(0.05)
    raise NotFired("no other process took the lease")


def _text(token: object) -> str:
    return token.decode() if isinstance(token, bytes) else str(token)


def _lane_lease(drill: Drill) -> str:
    return lane_lease_key(drill.lanes[0])


def _dispatcher_lease(_: Drill) -> str:
    return dispatcher_lease_key("shard-0")


def _at(name: str, about: str, expected: str, act: Act, *, sale: Sale | None = None, fast: bool = False) -> Fault:
    return Fault(name, about, expected, act, sale=sale or Sale(), fast=fast)


_REPEATED = "published or stored again, dropped by version; no order is lost"
RELAY = [
    _at(
        "relay-killed-before-publish", "relay killed with entries read and not published",
        "the next relay begins at the head", killed_at("relay-0", _PUBLISH, Harm.BEFORE),
    ),
    _at(
        "relay-killed-after-publish", "relay killed after a publish, before the confirm arrives",
        _REPEATED, killed_at("relay-0", _PUBLISH, Harm.AFTER), fast=True,
    ),
    _at(
        "relay-killed-before-trim", "relay killed after confirms, before it trims the stream",
        _REPEATED, killed_at("relay-0", _TRIM, Harm.BEFORE),
    ),
    _at(
        "relay-killed-after-trim", "relay killed after a trim, before the answer arrives",
        "the next relay begins after the trimmed entries", killed_at("relay-0", _TRIM, Harm.AFTER),
    ),
    _at("relay-kill9", "relay killed at random times", "as at the named steps", killed_anywhere("relay-0")),
    _at(
        "relay-paused-past-lease", "the relay stops past its lease; another takes the lane; the zombie wakes",
        "the zombie may publish again, but cannot trim", stopped_past_lease("relay-0", "workers.relay", _lane_lease),
    ),
]  # fmt: skip
WRITER = [
    _at(
        "writer-killed-before-grant", "writer killed with units raised in the catalogue and not committed",
        "rolled back, delivered again",
        killed_at("shard-writer-0", _COMMIT, Harm.BEFORE, server="postgres", greeting=_TO_CATALOGUE),
    ),
    _at(
        "writer-killed-after-grant", "writer killed when the catalogue has granted units and the shard has not taken them",
        "the next raise repairs it", killed_at(
            "shard-writer-0", _COMMIT, Harm.AFTER, server="postgres", greeting=_TO_CATALOGUE
        ),
    ),
    _at(
        "writer-killed-before-commit", "writer killed with a batch written and not committed",
        "rolled back, delivered again",
        killed_at("shard-writer-0", _COMMIT, Harm.BEFORE, server="postgres", greeting=TO_SHARD),
    ),
    _at(
        "writer-killed-after-commit", "writer killed after a commit, before the answer arrives",
        _REPEATED, killed_at("shard-writer-0", _COMMIT, Harm.AFTER, server="postgres", greeting=TO_SHARD), fast=True,
    ),
    _at(
        "writer-killed-before-ack", "writer killed between commit and acknowledgement",
        _REPEATED, killed_at("shard-writer-0", _ACK, Harm.BEFORE),
    ),
    _at(
        "writer-killed-after-ack", "writer killed after an acknowledgement, before the answer arrives",
        "no work is left", killed_at("shard-writer-0", _ACK, Harm.AFTER),
    ),
    _at("writer-kill9", "writer killed at random times", "as at the named steps", killed_anywhere("shard-writer-0")),
]  # fmt: skip
DISPATCHER = [
    _at(
        "dispatcher-killed-before-append", "dispatcher killed with events read and not appended",
        "the next dispatcher reads them again", killed_at("dispatcher-0", _APPEND, Harm.BEFORE),
    ),
    _at(
        "dispatcher-killed-after-append", "dispatcher killed after an append, before the answer arrives",
        "the events are published again, with the same ids", killed_at("dispatcher-0", _APPEND, Harm.AFTER),
    ),
    _at(
        "dispatcher-killed-before-delete", "dispatcher killed with events acknowledged and rows not deleted",
        "the events are published again, with the same ids",
        killed_at("dispatcher-0", (b"DELETE FROM outbox",), Harm.BEFORE, server="postgres"),
    ),
    _at(
        "dispatcher-killed-after-delete", "dispatcher killed after it deleted rows, before the answer arrives",
        "the next dispatcher continues after them",
        killed_at("dispatcher-0", (b"DELETE FROM outbox",), Harm.AFTER, server="postgres"),
    ),
    _at(
        "dispatcher-paused-past-lease", "the dispatcher stops past its leases; another takes them; the zombie wakes",
        "the zombie may publish events again; consumers know the ids",
        stopped_past_lease("dispatcher-0", "workers.dispatcher", _dispatcher_lease),
    ),
    _at("dispatcher-kill9", "dispatcher killed at random times", "as at the steps", killed_anywhere("dispatcher-0")),
]  # fmt: skip
EXPIRY = [
    _at(
        "expiry-killed-before-expire", "expiry worker killed with due holds found and not released",
        "the next worker releases them", killed_at("expiry-0", _EXPIRE, Harm.BEFORE), sale=_SHORT_HOLDS,
    ),
    _at(
        "expiry-killed-after-expire", "expiry worker killed after releasing holds, before the answer arrives",
        "repeated without effect; units go back once", killed_at("expiry-0", _EXPIRE, Harm.AFTER),
        sale=_SHORT_HOLDS,
    ),
    _at(
        "expiry-kill9", "expiry worker killed at random times", "as at the named steps",
        killed_anywhere("expiry-0"), sale=_SHORT_HOLDS,
    ),
]  # fmt: skip
