"""Faults of money: kills between two steps of a payment or a refund, and a provider that is away, slow or wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from devstack.plan import SIMULATOR, responds
from domain.topology import REFUNDS_QUEUE
from faults.checker import Expectations
from faults.conditions import Needs, NotFired
from faults.disk_faults import LOSS, closed_until_rebuilt, lose_data
from faults.history import Ending, OrderRequest
from faults.postgres_faults import database_away
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault, Sale
from faults.till import Manner
from faults.worker_faults import killed_at
from reservation.scripts import SETTLE
from runtime.dead_letters import PAGE_LETTERS_MAX, open_dead_letters
from runtime.dead_letters.replay import replay
from runtime.queue import open_queue
from runtime.redis.scripts import load_script

DOWN_S: Final = 5.0
SWEEP_S_MAX: Final = 25.0
SLOW_S: Final = 8.0
SLOW_MS: Final = 6000  # longer than the edge waits for the provider
CHECKOUTS: Final = 150  # at once; the edge's two workers make 64 calls of the provider at once
ERRORS_S: Final = 2.5
MISBEHAVING_S: Final = 5.0
REFUSED_S: Final = 2.0
PAID_BEFORE_LOSS: Final = 8
UNSTORED_S: Final = 1.0
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
    before = await _metric(drill, "payments-0", "flashsale_payments_swept_total")
    trap = Trap(Harm.BEFORE, _SETTLE, skip=drill.rng.randrange(5), action=partial(_kill, stage.edge_workers()))
    stage.proxy("edge").set_trap(trap)
    await sprung(drill, trap, "workers killed")
    await stage.provider(down_s=SWEEP_S_MAX)
    await stage.until(lambda: responds(f"{stage.stack.edge_url}/readyz"), "no worker came back")
    drill.silence(began)
    deadline = time.monotonic() + SWEEP_S_MAX - 2
    while (swept := await _metric(drill, "payments-0", "flashsale_payments_swept_total") - before) < 1:
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


async def provider_down(drill: Drill) -> str:
    """The provider answers 503 to everything and sends nothing."""
    before, began = drill.pace(), time.monotonic()
    await drill.stage.provider(down_s=DOWN_S)
    await asyncio.sleep(DOWN_S)
    drill.goes_on(began, before)
    refused = _payments(drill, since=began).get("dependency_unavailable", 0)
    if not refused:
        raise NotFired("no buyer was told that the provider is down")
    return f"{refused} requests for payment were answered dependency_unavailable in {DOWN_S:.0f} s"


async def kill_provider(drill: Drill) -> str:
    """Kill the provider's process: it may send events again that the edge acknowledged."""
    stage, pids = drill.stage, [drill.stage.pid(SIMULATOR)]
    for _ in range(2):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(await stage.replaced(SIMULATOR, pids[-1]))
        await drill.pause(0.5, 1.0)
    return f"pids {' -> '.join(map(str, pids))}"


async def provider_slow(drill: Drill) -> str:
    """The provider takes longer than the edge waits, beside a crowd that wants to pay."""
    stage, before, began = drill.stage, drill.pace(), time.monotonic()
    await stage.provider(slow_ms=SLOW_MS)
    wanted = [request for request in drill.buyers.history.requests if _is_payable(request)][:CHECKOUTS]
    wires = [drill.buyers.new_wire() for _ in wanted]
    await asyncio.gather(
        *(drill.buyers.till.ask(wire, request) for wire, request in zip(wires, wanted, strict=True)),
        asyncio.sleep(SLOW_S),
    )
    for wire in wires:
        wire.close()
    served = drill.goes_on(began, before)
    answers = _payments(drill, since=began)
    if not answers.get("dependency_unavailable"):
        raise NotFired(f"no request for payment met the slow provider: {answers}")
    return (
        f"requests for payment were answered {answers} in {SLOW_S:.0f} s; buyers got {served:.0f} answers/s beside them"
    )


def _is_payable(request: OrderRequest) -> bool:
    return request.ending is Ending.OK and not (request.misuse or request.cancels or request.payments)


async def paid_and_lost(drill: Drill) -> str:
    """Redis loses paid orders that are not stored, and the payment of stored ones: the relay stands still before."""
    stage, swept = drill.stage, "flashsale_payments_swept_total"
    relay = stage.pid("relay-0")
    held = [request for request in drill.buyers.history.requests if _is_payable(request)][:PAID_BEFORE_LOSS]
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
        again = await _metric(drill, "payments-0", swept, result="captured")
    return f"{lost} payments of lost orders went back, {again:.0f} paid their restored orders again; {proof}"


async def refund_errors(drill: Drill) -> str:
    """The provider gives money back and answers 500."""
    stage = drill.stage
    before, retried = await stage.provider(refund_error_share=1.0), await _retried(drill)
    await asyncio.sleep(ERRORS_S)
    after = await stage.provider(refund_error_share=0.0)
    made, failed = after["counts"]["refunds"] - before["counts"]["refunds"], await _retried(drill) - retried
    if not made or not failed:
        raise NotFired(f"{made} refunds were made, {failed:.0f} of them answered 500")
    return f"{made} refunds were made and {failed:.0f} calls were answered 500 in {ERRORS_S:.1f} s"


async def refunds_refused(drill: Drill) -> str:
    """The provider refuses refunds for good: dead letters. Then it makes them, and staff replay the letters."""
    stage = drill.stage
    await stage.provider(refund_refusal_share=1.0)
    await asyncio.sleep(REFUSED_S)
    await stage.provider(refund_refusal_share=0.0)
    letters = open_dead_letters(SecretStr(stage.stack.catalogue_dsn))
    queue = open_queue(stage.stack.queue_url, drill.cluster.queues)
    replayed = 0
    try:
        await asyncio.sleep(REFUSED_S)  # those in the worker's hands become letters
        page, _ = await letters.list(REFUNDS_QUEUE, cursor=None, limit=PAGE_LETTERS_MAX)
        for letter in page:
            await replay(letters, queue, letter.id)
            replayed += 1
    finally:
        await queue.close()
        await letters.close()
    if not replayed:
        raise NotFired("no refund was refused")
    return f"{replayed} refunds were refused and became dead letters; all were replayed"


async def misbehave(drill: Drill) -> str:
    """Everything a provider may do: duplicates, another order, second and mismatching payments, declines, failures."""
    before = await drill.stage.provider(
        seed=drill.rng.randrange(2**31), duplicate_share=0.5, reorder_share=0.5, second_share=0.2, mismatch_share=0.1,
        decline_share=0.2, failure_share=0.3, refund_error_share=0.3, webhook_delay_ms=1000,
    )  # fmt: skip
    await asyncio.sleep(MISBEHAVING_S)
    after = await drill.stage.provider_state()
    captured = after["counts"]["payments"] - before["counts"]["payments"]
    mismatched = after["webhooks_sent"].get("422", 0) - before["webhooks_sent"].get("422", 0)
    if not captured or not mismatched:
        raise NotFired(f"{captured} payments, {mismatched} of another amount")
    return (
        f"{captured} payments in {MISBEHAVING_S:.0f} s; events of another amount were answered 422 {mismatched} times"
    )


async def after_the_hold(drill: Drill) -> str:
    """Events leave the provider after the end of the hold."""
    before = await drill.stage.provider(seed=drill.rng.randrange(2**31), late_share=0.7)
    await asyncio.sleep(MISBEHAVING_S)
    after = await drill.stage.provider(late_share=0.0)
    late = after["counts"]["webhooks_pending"]
    if not late:
        raise NotFired("no event was late")
    captured = after["counts"]["payments"] - before["counts"]["payments"]
    return f"{captured} payments; {late} of their events waited for the end of the hold"


def _payments(drill: Drill, *, since: float) -> dict[str, int]:
    """Answers to requests for payment, by code."""
    found: dict[str, int] = {}
    for request in drill.buyers.history.requests:
        for attempt in request.payments:
            if attempt.returned_at >= since:
                code = attempt.code or str(attempt.status)
                found[code] = found.get(code, 0) + 1
    return found


async def _sent(drill: Drill, status: int) -> int:
    """Events that the provider sent, and the edge answered with this status."""
    document: dict[str, Any] = await drill.stage.provider_state()
    return int(document["webhooks_sent"].get(str(status), 0))


async def _captured(drill: Drill, *, other_than: str) -> int:
    """Captured payments of the sale in all shards but one."""
    dsns = [dsn for dsn in drill.stage.stack.shard_dsns if not dsn.endswith(f"/{other_than}")]
    return await _count(drill, _CAPTURED, dsns)


async def _count(drill: Drill, query: str, dsns: Sequence[str]) -> int:
    return sum([int(str((await drill.stage.sql(dsn, query, drill.sale_id))[0][0])) for dsn in dsns])


async def _retried(drill: Drill) -> float:
    return await _metric(drill, "payments-0", "flashsale_refunds_retried_total")


async def _metric(drill: Drill, process: str, name: str, **labels: str) -> float:
    """A metric of a worker, summed over the other labels."""
    text = await asyncio.to_thread(drill.stage.metrics_of, process)
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


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
        "payment-provider-down", "the payment provider answers nothing but 503 for 5 s",
        "buyers are told so; orders, holds and events are as before; refunds are retried", provider_down,
    ),
    Fault(
        "payment-edge-killed-before-settle", "all edge workers die with a payment stored and Redis not asked",
        _REPEATED, workers_killed_at("edge", "redis", _SETTLE, Harm.BEFORE), allowed=_CUT,
    ),
    Fault(
        "payment-provider-slow", "the payment provider takes 6 s for each answer, beside 150 requests for payment",
        "answered in time as overloaded or dependency_unavailable; orders are as fast as before", provider_slow,
    ),
    Fault(
        "refund-answered-500", "the payment provider answers 500 after each refund, for 2.5 s",
        "asked again with the same key: the money goes back once", refund_errors,
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
        "payment-provider-killed", "SIGKILL to the payment provider, twice",
        "events that it sends again have no second effect", kill_provider,
    ),
    Fault(
        "refunds-refused", "the payment provider refuses refunds for good, for 2 s",
        "dead letters; the money stays due until staff replay them", refunds_refused,
    ),
    Fault(
        "payment-after-the-hold", "events of the payment provider come after the end of the hold",
        "the unit is on sale again, the money goes back", after_the_hold, sale=Sale(hold_s=2, cancel=0.03),
    ),
    Fault(
        "payments-lost-with-redis", "Redis loses its disk with paid orders, and payments of stored orders, not stored yet",
        "after the rebuild the payment worker settles again: stored orders are paid, the money of lost ones goes back",
        paid_and_lost, needs=Needs(own="payments-lost"), allowed=LOSS,
    ),
    Fault(
        "payment-provider-misbehaves", "the provider duplicates and reorders events, captures twice or another amount, fails",
        "each event takes its effect once; what pays no order goes back", misbehave,
        needs=Needs(own="provider-misbehaves"),
    ),
]  # fmt: skip
