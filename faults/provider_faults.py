"""Faults of the payment provider: away, killed, slow, late, wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime
from typing import Final

from pydantic import SecretStr

from devstack.plan import SIMULATOR
from domain.topology import REFUNDS_QUEUE
from faults.conditions import Needs, NotFired
from faults.scenario import LONG, Act, Drill, Fault, Sale
from runtime.dead_letters import PAGE_LETTERS_MAX, open_dead_letters
from runtime.dead_letters.replay import replay
from runtime.queue import open_queue

DOWN_S: Final = 5.0
MINUTE_S: Final = 60.0
REFUNDED_S_MAX: Final = 150.0  # the fourth delay of refunds, and some
SLOW_S: Final = 8.0
SLOW_MS: Final = 6000  # longer than the edge waits for the provider
CHECKOUTS: Final = 150  # at once; the edge's two workers make 64 calls of the provider at once
ERRORS_S: Final = 2.5
MISBEHAVING_S: Final = 5.0
REFUSED_S: Final = 2.0
WAVES: Final = 8  # a minute of crowds
_RETRIED: Final = "flashsale_refunds_retried_total"
_DUE: Final = "SELECT count(*)::int FROM refunds WHERE state = 'due' AND created_at < %s"


def provider_down(down_s: float) -> Act:
    """The provider answers 503 to everything and sends nothing."""

    async def act(drill: Drill) -> str:
        before, began = drill.pace(), time.monotonic()
        await drill.stage.provider(down_s=down_s)
        await asyncio.sleep(down_s)
        drill.goes_on(began, before)
        back = datetime.now(UTC)
        refused = _payments(drill, since=began).get("dependency_unavailable", 0)
        if not refused:
            raise NotFired("no buyer was told that the provider is down")
        await _refunded(drill, back)
        return f"{refused} requests for payment were answered dependency_unavailable in {down_s:.0f} s"

    return act


async def _refunded(drill: Drill, until: datetime) -> None:
    """Return when the refunds that became due before a time are made; a finding if that takes too long.

    A refund that met a long outage waits minutes for its next attempt, longer than a drill waits for its backlogs.
    """
    deadline = time.monotonic() + REFUNDED_S_MAX
    while left := sum([await _due(drill, dsn, until) for dsn in drill.stage.stack.shard_dsns]):
        if time.monotonic() > deadline:
            drill.fail("F", f"{left} refunds were not made {REFUNDED_S_MAX:.0f} s after the provider was back")
            return
        await asyncio.sleep(0.5)


async def _due(drill: Drill, dsn: str, until: datetime) -> int:
    ((count,),) = await drill.stage.sql(dsn, _DUE, until)
    assert isinstance(count, int)
    return count


async def kill_provider(drill: Drill) -> str:
    """Kill the provider's process: it may send events again that the edge acknowledged."""
    stage, pids = drill.stage, [drill.stage.pid(SIMULATOR)]
    for _ in range(2):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(await stage.replaced(SIMULATOR, pids[-1]))
        await drill.pause(0.5, 1.0)
    return f"pids {' -> '.join(map(str, pids))}"


def provider_slow(waves: int) -> Act:
    """The provider takes longer than the edge waits, beside crowds that want to pay, one every `SLOW_S`."""

    async def act(drill: Drill) -> str:
        stage, before, began = drill.stage, drill.pace(), time.monotonic()
        await stage.provider(slow_ms=SLOW_MS)
        for _ in range(waves):
            wanted = [request for request in drill.buyers.history.requests if request.is_payable][-CHECKOUTS:]
            wires = [drill.buyers.new_wire() for _ in wanted]
            await asyncio.gather(
                *(drill.buyers.till.ask(wire, request) for wire, request in zip(wires, wanted, strict=True)),
                asyncio.sleep(SLOW_S),
            )
            for wire in wires:
                wire.close()
        served = drill.goes_on(began, before)
        await stage.provider(slow_ms=0)
        await _refunded(drill, datetime.now(UTC))
        answers = _payments(drill, since=began)
        if not answers.get("dependency_unavailable"):
            raise NotFired(f"no request for payment met the slow provider: {answers}")
        return (
            f"requests for payment were answered {answers} in {waves * SLOW_S:.0f} s; "
            f"buyers got {served:.0f} answers/s beside them"
        )

    return act


async def refund_errors(drill: Drill) -> str:
    """The provider gives money back and answers 500."""
    stage = drill.stage
    before, retried = await stage.provider(refund_error_share=1.0), await stage.metric("payments-0", _RETRIED)
    await asyncio.sleep(ERRORS_S)
    after = await stage.provider(refund_error_share=0.0)
    made, failed = (
        after["counts"]["refunds"] - before["counts"]["refunds"],
        await drill.stage.metric("payments-0", _RETRIED) - retried,
    )
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


FAULTS = [
    Fault(
        "payment-provider-down", "the payment provider answers nothing but 503 for 5 s",
        "buyers are told so; orders, holds and events are as before; refunds are retried", provider_down(DOWN_S),
    ),
    Fault(
        "payment-provider-slow", "the payment provider takes 6 s for each answer, beside 150 requests for payment",
        "answered in time as overloaded or dependency_unavailable; orders are as fast as before", provider_slow(1),
    ),
    Fault(
        "refund-answered-500", "the payment provider answers 500 after each refund, for 2.5 s",
        "asked again with the same key: the money goes back once", refund_errors,
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
        "payment-provider-misbehaves", "the provider duplicates and reorders events, captures twice or another amount, fails",
        "each event takes its effect once; what pays no order goes back", misbehave,
        needs=Needs(own="provider-misbehaves"),
    ),
    Fault(
        "payment-provider-down-for-a-minute", "the payment provider answers nothing but 503 for a minute",
        "as `payment-provider-down`; every refund is made once afterwards", provider_down(MINUTE_S), sale=LONG,
    ),
    Fault(
        "payment-provider-slow-for-a-minute",
        "the payment provider takes 6 s for each answer for a minute, beside 150 requests for payment every 8 s",
        "as `payment-provider-slow`; every refund is made once afterwards", provider_slow(WAVES), sale=LONG,
    ),
]  # fmt: skip
