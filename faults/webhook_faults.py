"""Faults of webhooks: a receiver slow, dead, failing for a while; the worker killed between answer and note.

Each drill reads the events themselves from the log and compares: each was taken by the receiver at least once, and has
one delivery, which is delivered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from domain.events import event_type, read_event
from domain.topology import OUTBOX_PARTITIONS, TOPIC_ORDERS, TOPICS
from domain.webhooks import matches, message_id
from faults.conditions import Needs, NotFired
from faults.receiver import Receiver, receiving
from faults.scenario import Drill, Fault
from ops.shop import call
from runtime.event_log import open_event_log
from runtime.redis.clock import now_ms

WORKER: Final = "webhooks-0"
TYPES: Final = ["order.paid", "order.cancelled"]
HARM_S: Final = 3.0
SLOW_S: Final = 0.7  # within the time-out
FRESH_MS: Final = 2000  # events of before are delivered or not: clocks, and the moment of the subscription
SETTLE_S_MAX: Final = 40.0
EVENTS_MIN: Final = 5
_NEEDS: Final = Needs(
    limits={
        "webhook_addresses_allowed": "127.0.0.0/8",
        "webhook_retry_delays_s": ",".join(["0.2", "0.5", *["1"] * 15]),
        "webhook_timeout_s": "1.5",
    }
)


@dataclass(slots=True)
class Subscribed:
    """A webhook of a drill, its receiver, and the time of the log from which on every event counts."""

    drill: Drill
    receiver: Receiver
    id: str
    since_ms: int

    async def rows(self) -> dict[str, tuple[str, int, int]]:
        """State, attempts and last status of deliveries by event id."""
        found = await self.drill.stage.sql(
            self.drill.stage.stack.catalogue_dsn,
            "SELECT event_id, state, attempts, coalesce(status, 0) FROM webhook_deliveries WHERE webhook_id = %s",
            self.id,
        )
        return {str(row[0]): (str(row[1]), int(str(row[2])), int(str(row[3]))) for row in found}

    async def settle(self) -> int:
        """Compare all events up to now with the receiver and the rows; the number of events."""
        wanted = await self._events()
        deadline = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline:
            rows = await self.rows()
            if all(rows.get(event, ("",))[0] == "delivered" for event in wanted):
                break
            await asyncio.sleep(0.2)
        rows = await self.rows()
        for event in sorted(wanted):
            if event not in rows:
                self.drill.fail("D", f"event {event} has no delivery")
            elif rows[event][0] != "delivered" or rows[event][1] < 1 or rows[event][2] != 200:
                self.drill.fail("D", f"the delivery of event {event} is {rows[event]}")
            elif not self.receiver.taken[event]:
                self.drill.fail("D", f"event {event} is noted as delivered, but the receiver never took it")
        if self.receiver.forged:
            self.drill.fail("D", f"{self.receiver.forged} messages had a wrong signature")
        if len(wanted) < EVENTS_MIN:
            raise NotFired(f"only {len(wanted)} events")
        return len(wanted)

    async def _events(self) -> set[str]:
        log = open_event_log(self.drill.stage.stack.event_log_url, TOPICS)
        found: set[str] = set()
        try:
            async with log.reader(None, TOPIC_ORDERS, range(OUTBOX_PARTITIONS)) as reader:
                ends = {partition: lag.end for partition, lag in (await reader.lag()).items()}
                while any(lag.position < ends[partition] for partition, lag in (await reader.lag()).items()):
                    for record in await reader.next_batch(count_max=5000, wait_s=0.1):
                        if record.at_ms >= self.since_ms and matches(TYPES, event_type(record.headers)):
                            found.add(message_id(read_event(record.headers, record.value)))
        finally:
            await log.close()
        return found


@asynccontextmanager
async def _subscribed(drill: Drill) -> AsyncIterator[Subscribed]:
    """A webhook while the block runs."""
    shop = await asyncio.to_thread(drill.stage.staff)
    with receiving() as receiver:
        body: dict[str, Any] = {"url": receiver.url, "event_types": TYPES}
        made = await asyncio.to_thread(call, "POST", f"{shop.url}/v1/webhooks", token=shop.token, body=body)
        receiver.use(made["secret"])
        try:
            async with drill.stage.redis() as redis:
                since_ms = await now_ms(redis) + FRESH_MS
            await asyncio.sleep(FRESH_MS / 1000)
            yield Subscribed(drill, receiver, made["id"], since_ms)
        finally:
            await asyncio.to_thread(call, "DELETE", f"{shop.url}/v1/webhooks/{made['id']}", token=shop.token)


async def receiver_slow(drill: Drill) -> str:
    """One receiver takes its time; another one beside it is not held up."""
    async with _subscribed(drill) as slow, _subscribed(drill) as quick:
        slow.receiver.slow_s = SLOW_S
        before = [each.receiver.taken.total() for each in (slow, quick)]
        await asyncio.sleep(HARM_S)
        behind, beside = (each.receiver.taken.total() - was for each, was in zip((slow, quick), before, strict=True))
        slow.receiver.slow_s = 0.0
        if beside <= behind:
            raise NotFired(f"the slow receiver took {behind} messages, the other one {beside}")
        events = await slow.settle()
        await quick.settle()
    return f"the slow receiver took {behind} messages, the other one {beside}; {events} events delivered to both"


async def receiver_dead(drill: Drill) -> str:
    """The receiver's port refuses connections."""
    async with _subscribed(drill) as webhook:
        webhook.receiver.close()
        await asyncio.sleep(HARM_S)
        failed = sum(state == "waiting" and attempts > 0 for state, attempts, _ in (await webhook.rows()).values())
        webhook.receiver.open()
        if not failed:
            raise NotFired("no delivery met the dead receiver")
        events = await webhook.settle()
    return f"{failed} deliveries found no receiver for {HARM_S:.0f} s; {events} events delivered"


async def receiver_fails(drill: Drill) -> str:
    """The receiver answers 500, then 200 again."""
    async with _subscribed(drill) as webhook:
        webhook.receiver.status = 500
        await asyncio.sleep(HARM_S)
        webhook.receiver.status = 200
        if not webhook.receiver.refused:
            raise NotFired("no delivery was answered 500")
        events = await webhook.settle()
    return f"{webhook.receiver.refused} attempts were answered 500; {events} events delivered afterwards"


async def worker_killed(drill: Drill) -> str:
    """Kill the worker when the receiver has answered and the worker has not noted the answer."""
    stage, pids = drill.stage, [drill.stage.pid(WORKER)]
    async with _subscribed(drill) as webhook:
        for _ in range(2):
            pid = pids[-1]

            def kill(pid: int = pid) -> None:
                webhook.receiver.answered = lambda: None
                os.kill(pid, signal.SIGKILL)

            webhook.receiver.answered = kill
            pids.append(await stage.replaced(WORKER, pid))
        events = await webhook.settle()
        again = sum(times > 1 for times in webhook.receiver.taken.values())
    return f"pids {' -> '.join(map(str, pids))}; {events} events delivered, {again} of them twice, with the same id"


FAULTS = [
    Fault(
        "webhook-receiver-slow", "a receiver of webhooks takes 0.7 s for each answer, for 3 s",
        "its deliveries wait; another receiver is not held up; every event is delivered", receiver_slow, needs=_NEEDS,
    ),
    Fault(
        "webhook-receiver-dead", "a receiver of webhooks refuses connections for 3 s",
        "retried by the ladder; every event is delivered", receiver_dead, needs=_NEEDS,
    ),
    Fault(
        "webhook-receiver-fails", "a receiver of webhooks answers 500 for 3 s, then 200",
        "retried with the same id; every event is delivered", receiver_fails, needs=_NEEDS,
    ),
    Fault(
        "webhook-worker-killed", "SIGKILL to the webhook worker after the receiver's answer, twice",
        "sent again with the same id, which receivers drop; every event is delivered", worker_killed, needs=_NEEDS,
    ),
]  # fmt: skip
