"""Faults of the event log on Kafka: the broker, its connections, its disk, and its producers and consumers.

The traps look at requests on the wire: a produce request carries the type of an event, a commit of positions the group
without members, generation -1 and retention -1.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial

from domain.topology import OUTBOX_PARTITIONS, TOPIC_ORDERS, TOPICS
from faults.checker import Expectations
from faults.conditions import Needs, NotFired
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Act, Drill, Fault
from faults.worker_faults import killed_anywhere, killed_at
from runtime.event_log import NewRecord, open_event_log

KAFKA = Needs(event_log="kafka")
ON_SMALL_DISK = Needs(event_log="kafka", state_disk=True)
FULL_S = 3.0
STORM_S = 6.0
MET_S_MAX = 20.0
ANNOUNCED_S_MAX = 30.0
_PRODUCE = (b"ce_type", b"order.reserved")
_GROUP = "announcer.email"
_COMMIT = (_GROUP.encode() + b"\xff\xff\xff\xff\x00\x00",)


async def kill_broker(drill: Drill) -> str:
    """Send SIGKILL to the broker while the dispatcher appends."""
    stage, old = drill.stage, drill.stage.pid("kafka")
    trap = Trap(Harm.BEFORE, _PRODUCE, action=partial(os.kill, old, signal.SIGKILL))
    stage.proxy("dispatcher-0", "kafka").set_trap(trap)
    await sprung(drill, trap, "the dispatcher appended")
    new = await stage.replaced("kafka", old)
    return f"killed with an append on its way: pid {old} became {new}"


async def kill_broker_often(drill: Drill) -> str:
    """Send SIGKILL three times, each soon after the last restart."""
    pids = [drill.stage.pid("kafka")]
    for _ in range(3):
        os.kill(pids[-1], signal.SIGKILL)
        pids.append(await drill.stage.replaced("kafka", pids[-1]))
        await drill.pause(0.2, 2.0)
    return f"pids {' -> '.join(map(str, pids))}"


async def stop_broker(drill: Drill) -> str:
    """Stop the broker for longer than an append may take: connections stay open, and no answer comes."""
    stage, pid = drill.stage, drill.stage.pid("kafka")
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(8.0)
        lag = await stage.metric("dispatcher-0", "flashsale_dispatcher_failures_total")
    finally:
        os.kill(pid, signal.SIGCONT)
    if not lag:
        raise NotFired("no delivery failed while the broker was stopped")
    return f"{lag:.0f} deliveries failed while the broker was stopped"


async def cut_connections(drill: Drill) -> str:
    """Drop acknowledgements of appends, and cut all connections of the dispatcher and the announcer."""
    stage = drill.stage
    proxy = stage.proxy("dispatcher-0", "kafka")
    trap = proxy.set_trap(Trap(Harm.AFTER, _PRODUCE, times=3))
    await sprung(drill, trap, "acknowledgements lost")
    cut = proxy.cut() + stage.proxy("announcer-0", "kafka").cut()
    return f"{trap.sprung} acknowledgements lost, {cut} connections cut"


def consumer_killed(marks: tuple[bytes, ...], harm: Harm, server: str) -> Act:
    """Kill the announcer at a step. Its notices are in the queue at most once for each event."""
    return killed_at("announcer-0", marks, harm, server=server)


async def storm(drill: Drill) -> str:
    """Move the announcers' partitions between processes all the time: start consumers and kill those that run."""
    stage, moves = drill.stage, 0
    ends_at = time.monotonic() + STORM_S
    extra: int | None = None
    while time.monotonic() < ends_at:
        second = stage.start_extra("workers.announcer", f"announcer-storm-{moves}")
        await drill.pause(0.3, 0.8)
        os.kill(stage.pid("announcer-0"), signal.SIGKILL)
        if extra is not None:
            os.kill(extra, signal.SIGKILL)
        extra = second
        moves += 1
        await drill.pause(0.3, 0.8)
    stage.stop_extras()
    await stage.ready_again("announcer-0")
    await _announced(drill)
    return (
        f"{moves} consumers started and as many killed in {STORM_S:.0f} s; all events until then were read afterwards"
    )


async def _announced(drill: Drill) -> None:
    """Wait until the announcer's positions pass the present ends. A finding if a partition does not move on."""
    log = open_event_log(drill.stage.stack.event_log_url, TOPICS)
    began, ends = time.monotonic(), dict[int, int]()
    try:
        while True:
            async with log.reader(_GROUP, TOPIC_ORDERS, range(OUTBOX_PARTITIONS)) as reader:
                lags = await reader.lag()
            ends = ends or {partition: lag.end for partition, lag in lags.items()}
            left = {partition: end for partition, end in ends.items() if lags[partition].position < end}
            if not left:
                return
            if time.monotonic() > began + ANNOUNCED_S_MAX:
                drill.fail("F", f"the announcer did not read partitions {sorted(left)} in {ANNOUNCED_S_MAX:.0f} s")
                return
            await asyncio.sleep(0.3)
    finally:
        await log.close()


async def poison(drill: Drill) -> str:
    """Append records that are no events, to each partition of orders."""
    stage = drill.stage
    log = open_event_log(stage.stack.event_log_url, TOPICS)
    try:
        for partition in range(OUTBOX_PARTITIONS):
            await log.append(TOPIC_ORDERS, partition, [NewRecord("nobody", drill.rng.randbytes(64))])
    finally:
        await log.close()
    found = 0.0
    ends_at = time.monotonic() + MET_S_MAX
    while found < OUTBOX_PARTITIONS and time.monotonic() < ends_at:
        await asyncio.sleep(0.3)
        found = await stage.metric(
            "announcer-0", "flashsale_announcer_events_total", channel="email", result="malformed"
        )
    if found < OUTBOX_PARTITIONS:
        raise NotFired(f"the announcer met {found:.0f} of {OUTBOX_PARTITIONS} poison records")
    await _announced(drill)
    return f"the announcer passed {found:.0f} poison records, and read on"


async def fill_disk(drill: Drill) -> str:
    """Fill the disk of the stack with Kafka's topics on it."""
    stage, disk = drill.stage, drill.stage.state_disk
    assert disk is not None
    before = dict(stage.stack.processes)
    await asyncio.to_thread(disk.fill)
    try:
        await asyncio.sleep(FULL_S)
    finally:
        disk.free()
    await stage.until(stage.kafka_answers, "Kafka did not answer again", within_s=60)
    for name in stage.stack.metrics:
        await stage.ready_again(name)
    ended = sorted(name for name, pid in stage.stack.processes.items() if pid != before[name])
    return f"ended by their write errors and started again: {', '.join(ended) or 'none'}"


FAULTS = [
    Fault(
        "kafka-kill9", "Kafka killed with an append on its way",
        "events wait in the outbox; the dispatcher appends again, with the same ids", kill_broker, needs=KAFKA, fast=True,
    ),
    Fault(
        "kafka-kill9-often", "Kafka killed three times, each soon after the last restart",
        "as after one kill", kill_broker_often, needs=KAFKA,
    ),
    Fault(
        "kafka-stopped", "Kafka is stopped for longer than an append may take",
        "appends end after 5 s and are repeated; orders go on", stop_broker, needs=KAFKA,
    ),
    Fault(
        "kafka-acknowledgements-lost", "acknowledgements of appends are lost, then all connections are cut",
        "the idempotent producer repeats its batches without effect", cut_connections, needs=KAFKA,
    ),
    Fault(
        "kafka-dispatcher-killed-before-append", "dispatcher killed with events read and not appended",
        "the next dispatcher reads them again",
        killed_at("dispatcher-0", _PRODUCE, Harm.BEFORE, server="kafka"), needs=KAFKA,
    ),
    Fault(
        "kafka-dispatcher-killed-after-append", "dispatcher killed after an append, before the acknowledgement arrives",
        "the events are appended again, with the same ids",
        killed_at("dispatcher-0", _PRODUCE, Harm.AFTER, server="kafka"), needs=KAFKA,
    ),
    Fault(
        "kafka-dispatcher-killed-before-delete", "dispatcher killed between acknowledgement and delete",
        "the events are appended again, with the same ids",
        killed_at("dispatcher-0", (b"DELETE FROM outbox",), Harm.BEFORE, server="postgres"), needs=KAFKA,
    ),
    Fault(
        "kafka-consumer-killed-before-commit", "announcer killed with notices queued and its position not stored",
        "the events are read again; a notice is sent once", consumer_killed(_COMMIT, Harm.BEFORE, "kafka"), needs=KAFKA,
    ),
    Fault(
        "kafka-consumer-killed-after-commit", "announcer killed after its position is stored, before the answer arrives",
        "the next one goes on behind it", consumer_killed(_COMMIT, Harm.AFTER, "kafka"), needs=KAFKA,
    ),
    Fault(
        "kafka-consumer-kill9", "announcer killed at random times",
        "as at the named steps", killed_anywhere("announcer-0"), needs=KAFKA,
    ),
    Fault(
        "kafka-rebalance-storm", "owners of partitions change all the time: consumers start and are killed for 6 s",
        "the last owner reads all events", storm, needs=KAFKA,
    ),
    Fault(
        "kafka-poison-event", "each partition of orders gets a record that is no event",
        "the announcer moves it to the dead letters and counts it; the partitions move on", poison, needs=KAFKA,
        allowed=Expectations(dead_letters=OUTBOX_PARTITIONS),
    ),
    Fault(
        "kafka-disk-full", "the disk of the whole stack is full for 3 s, with Kafka's topics on it",
        "Kafka ends and starts again when there is space; events wait in the outbox", fill_disk, needs=ON_SMALL_DISK,
    ),
]  # fmt: skip
