"""Faults of money: kills between two steps of a payment or a refund, a shard that is away, and lost decisions."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

from devstack.plan import SIMULATOR
from devstack.program import responds
from domain.payments import UNKNOWN_ID
from faults.checker import Expectations
from faults.conditions import Needs, NotFired
from faults.disk_faults import LOSS, closed_until_rebuilt, lose_data
from faults.postgres_faults import database_away
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault
from faults.till import Manner
from faults.worker_faults import killed_at
from reservation.scripts import SETTLE
from runtime.redis.scripts import load_script

SWEEP_S_MAX: Final = 25.0
PAID_BEFORE_LOSS: Final = 8
UNSTORED_S: Final = 1.0
LATE_EVENTS_MS: Final = 15_000
SHARD_AWAY_S: Final = 9.0  # longer than the edge keeps an event waiting
_WEBHOOK = (b"POST /v1/payments/webhook",)
_SETTLE = (SETTLE.sha.encode(),)
_REFUND = (b"POST /v1/refunds",)
_ACK = (load_script("runtime.queue", "queue_ack-1").sha.encode(),)
_CAPTURED = "SELECT count(*)::int FROM payments WHERE sale_id = %s AND state = 'captured'"
_LOST = """
    SELECT count(*)::int FROM refunds r JOIN payments p ON p.event_id = r.event_id
    WHERE p.sale_id = %s AND r.reason = 'lost'
"""
_CUT = Expectations(broken_connections=True)


def workers_killed_at(process: str, server: str, marks: tuple[bytes, ...], harm: Harm, *, times: int = 2) -> Act:
    """Kill all edge workers when a process sends something to a server, `times` times."""

    async def act(drill: Drill) -> str:
        stage, killed = drill.stage, 0
        for _ in range(times):
            began = time.monotonic()
            pids = stage.edge_workers()
            trap = Trap(harm, marks, skip=drill.rng.randrange(5), action=partial(_kill, pids))
            stage.proxy(process, server).set_trap(trap)
            await sprung(drill, trap, "workers killed")
            killed += len(pids)
            await stage.until(lambda: responds(f"{stage.stack.edge_url}/readyz"), "no worker came back")
            drill.silence(began)
        return f"{killed} workers were killed there, in {times} rounds"

    return act


def _kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def settled_by_the_sweep(drill: Drill) -> str:
    """Kill the edge between a payment's row and Redis's decision, and let the provider repeat nothing."""
    stage, began = drill.stage, time.monotonic()
    before = await drill.stage.metric("payments-0", "flashsale_payments_swept_total")
    trap = Trap(Harm.BEFORE, _SETTLE, skip=drill.rng.randrange(5), action=partial(_kill, stage.edge_workers()))
    stage.proxy("edge").set_trap(trap)
    await sprung(drill, trap, "workers killed")
    await stage.provider(down_s=SWEEP_S_MAX)
    await stage.until(lambda: responds(f"{stage.stack.edge_url}/readyz"), "no worker came back")
    drill.silence(began)
    deadline = time.monotonic() + SWEEP_S_MAX - 2
    while (swept := await drill.stage.metric("payments-0", "flashsale_payments_swept_total") - before) < 1:
        if time.monotonic() > deadline:
            raise NotFired("the payment worker settled no payment")
        await asyncio.sleep(0.3)
    return f"{swept:.0f} interrupted payments were settled by the payment worker while the provider was down"


async def kill_redis_after_settle(drill: Drill) -> str:
    """Kill Redis after it decided about a payment, before the edge has the reply."""
    stage = drill.stage
    old = stage.pid("redis")
    trap = Trap(Harm.AFTER, _SETTLE, skip=drill.rng.randrange(5), action=partial(os.kill, old, signal.SIGKILL))
    stage.proxy("edge").set_trap(trap)
    await sprung(drill, trap, "Redis killed")
    new = await stage.replaced("redis", old)
    return f"Redis decided and was killed, its reply was dropped; pid {old} became {new}"


async def shard_down(drill: Drill) -> str:
    """Take a shard away while the provider sends events."""
    refused, captured = await _sent(drill, 503), await _captured(drill, other_than="shard_1")
    proof = await database_away("shard_1", away_s=SHARD_AWAY_S)(drill)
    refused, captured = await _sent(drill, 503) - refused, await _captured(drill, other_than="shard_1") - captured
    if not refused:
        raise NotFired("no event of the provider met the shard that was away")
    if not captured:
        drill.fail("F", "no payment of another shard was captured meanwhile")
    return f"{proof}; {refused} events were refused for a later repeat, {captured} payments of other shards captured"


async def paid_and_lost(drill: Drill) -> str:
    """Redis loses paid orders that are not stored, and the payment of stored ones: the relay stands still before."""
    stage, swept = drill.stage, "flashsale_payments_swept_total"
    relay = stage.pid("relay-0")
    held = [request for request in drill.buyers.history.requests if request.is_payable][:PAID_BEFORE_LOSS]
    os.kill(relay, signal.SIGSTOP)
    try:
        wire = drill.buyers.new_wire()
        for request in held:
            await drill.buyers.till.pay(wire, request, Manner.ONCE)
        wire.close()
        await asyncio.sleep(UNSTORED_S)
        await lose_data(drill)
    finally:
        os.kill(relay, signal.SIGCONT)
    proof = await closed_until_rebuilt(drill)
    lost, again, deadline = 0, 0.0, time.monotonic() + SWEEP_S_MAX
    while not (lost and again):
        if time.monotonic() > deadline:
            raise NotFired(f"{lost} payments of lost orders went back, {again:.0f} paid their orders again")
        await asyncio.sleep(0.5)
        lost = await _count(drill, _LOST, stage.stack.shard_dsns)
        again = await stage.metric("payments-0", swept, result="captured")
    return f"{lost} payments of lost orders went back, {again:.0f} paid their restored orders again; {proof}"


async def paid_after_loss(drill: Drill) -> str:
    """Redis loses paid orders that are not stored before it hears of their payments: the provider is late."""
    stage = drill.stage
    relay = stage.pid("relay-0")
    os.kill(relay, signal.SIGSTOP)
    try:
        await asyncio.sleep(UNSTORED_S)
        held = [request for request in drill.buyers.history.requests if request.is_payable][-PAID_BEFORE_LOSS:]
        await stage.provider(webhook_delay_ms=LATE_EVENTS_MS)
        wire = drill.buyers.new_wire()
        for request in held:
            await drill.buyers.till.pay(wire, request, Manner.ONCE)
        wire.close()
        await lose_data(drill)
    finally:
        os.kill(relay, signal.SIGCONT)
    proof = await closed_until_rebuilt(drill)
    lost, deadline = 0, time.monotonic() + LATE_EVENTS_MS / 1000 + SWEEP_S_MAX
    while not lost:
        if time.monotonic() > deadline:
            raise NotFired("no payment of an unknown order went back")
        await asyncio.sleep(0.5)
        lost = await _count(drill, _LOST, stage.stack.shard_dsns, UNKNOWN_ID)
    return f"{lost} payments came for orders that were lost before, and went back; {proof}"


async def _sent(drill: Drill, status: int) -> int:
    """Events that the provider sent, and the edge answered with this status."""
    document: dict[str, Any] = await drill.stage.provider_state()
    return int(document["webhooks_sent"].get(str(status), 0))


async def _captured(drill: Drill, *, other_than: str) -> int:
    """Captured payments of the sale in all shards but one."""
    dsns = [dsn for dsn in drill.stage.stack.shard_dsns if not dsn.endswith(f"/{other_than}")]
    return await _count(drill, _CAPTURED, dsns)


async def _count(drill: Drill, query: str, dsns: Sequence[str], sale_id: UUID | None = None) -> int:
    sale_id = sale_id or drill.sale_id
    return sum([int(str((await drill.stage.sql(dsn, query, sale_id))[0][0])) for dsn in dsns])


_REPEATED = "the provider repeats the event; it takes its effect once"
FAULTS = [
    Fault(
        "payment-edge-killed-before-answer", "all edge workers die between the effect of a provider's event and its answer",
        _REPEATED, workers_killed_at(SIMULATOR, "edge", _WEBHOOK, Harm.AFTER), allowed=_CUT,
    ),
    Fault(
        "payment-redis-killed-after-settle", "Redis dies after it decided about a payment, before the edge has the reply",
        "the event is repeated and gets the same decision", kill_redis_after_settle, fast=True,
    ),
    Fault(
        "refunder-killed-before-commit", "the refund worker dies after the provider gave money back, before it stores that",
        "asked again with the same key: the money goes back once",
        killed_at("payments-0", _REFUND, Harm.AFTER, server="provider"), fast=True,
    ),
    Fault(
        "payment-shard-down", "one shard is away for 9 s while the provider sends events",
        "its events are repeated; payments of other shards are captured meanwhile", shard_down,
    ),
    Fault(
        "payment-edge-killed-before-settle", "all edge workers die with a payment stored and Redis not asked",
        _REPEATED, workers_killed_at("edge", "redis", _SETTLE, Harm.BEFORE), allowed=_CUT,
    ),
    Fault(
        "payment-edge-killed-after-settle", "all edge workers die with a payment decided in Redis and not stored",
        _REPEATED, workers_killed_at("edge", "redis", _SETTLE, Harm.AFTER), allowed=_CUT,
    ),
    Fault(
        "payment-settled-by-sweep", "all edge workers die with a payment stored, and the provider repeats nothing",
        "the payment worker settles it", settled_by_the_sweep, allowed=_CUT,
    ),
    Fault(
        "refunder-killed-before-ack", "the refund worker dies after it stored a refund, before it acknowledges the message",
        "the message comes again and finds the refund done", killed_at("payments-0", _ACK, Harm.BEFORE),
    ),
    Fault(
        "payments-lost-with-redis", "Redis loses its disk with paid orders, and payments of stored orders, not stored yet",
        "after the rebuild the payment worker settles again: stored orders are paid, the money of lost ones goes back",
        paid_and_lost, needs=Needs(own="payments-lost"), allowed=LOSS,
    ),
    Fault(
        "payments-of-lost-orders", "Redis loses its disk with orders that are not stored; then their payments arrive",
        "the payments are kept, and their money goes back", paid_after_loss, needs=Needs(own="payments-of-lost"),
        allowed=LOSS,
    ),
]  # fmt: skip
