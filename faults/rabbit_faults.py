"""Faults of RabbitMQ as the carrier of the work queues: crashes, lost confirms, alarms, lost queues.

Buyers order throughout: the edge does not depend on the queue, so orders wait in the lanes' streams meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import aiormq

from devstack.plan import QueueKind
from devstack.rabbitmq import CONTROL_S_MAX, DISK_FREE_MB_MIN, MEMORY_MB_MAX, programs_folder
from domain.topology import ORDER_RETRY_DELAYS_MS, order_queue
from faults.conditions import Needs, NotFired, NotHere
from faults.postgres_faults import TO_SHARD
from faults.proxy import Harm, Trap
from faults.redis_faults import sprung
from faults.scenario import Drill, Fault
from faults.worker_faults import killed_at
from runtime.queue.rabbitmq_link import FAILURES
from runtime.queue.rabbitmq_topology import control_exchange, delay_queue

ON_RABBITMQ = Needs(queue=QueueKind.RABBITMQ)
ALARM_S = 4.0
LOST_CONFIRMS = 4
# A crash of RabbitMQ 3.10 loses quorum queues that were declared in the last seconds.
DECLARED_S = 5.0
# Method frames (AMQP 0-9-1, 2.3.5.1): class and method. basic.publish goes on with a reserved short and the exchange.
_PUBLISH_ORDERS = b"\x00\x3c\x00\x28\x00\x00\x00%corders.shard." % len(order_queue(0))
_ACK = b"\x00\x3c\x00\x50"


async def killed(drill: Drill) -> str:
    """Kill the broker; the supervisor starts it again on the same data."""
    await asyncio.sleep(DECLARED_S)
    pid = drill.stage.pid("rabbitmq")
    os.kill(pid, signal.SIGKILL)
    new = await drill.stage.replaced("rabbitmq", pid)
    await _answers(drill)
    return f"pids {pid} -> {new}"


async def _answers(drill: Drill) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(*FAILURES):
                connection = await aiormq.connect(drill.stage.stack.queue_url)
                await connection.close()
                return
            await asyncio.sleep(0.1)


async def confirms_lost(drill: Drill) -> str:
    """Forward publishes of the relay, and cut its connection before the confirms arrive."""
    for _ in range(LOST_CONFIRMS):
        trap = Trap(Harm.AFTER, (_PUBLISH_ORDERS,), skip=drill.rng.randrange(3))
        drill.stage.proxy("relay-0", "queue").set_trap(trap)
        await sprung(drill, trap, "the relay published")
    return f"{LOST_CONFIRMS} confirms were lost with their connections"


async def publishes_torn(drill: Drill) -> str:
    """Cut the relay's connection in the middle of a publish."""
    for _ in range(LOST_CONFIRMS):
        trap = Trap(Harm.TORN, (_PUBLISH_ORDERS,), skip=drill.rng.randrange(3))
        drill.stage.proxy("relay-0", "queue").set_trap(trap)
        await sprung(drill, trap, "the relay published")
    return f"{LOST_CONFIRMS} publishes were torn"


async def memory_alarm(drill: Drill) -> str:
    """Lower the memory limit, so that the broker blocks all publishers for some seconds."""
    return await _alarm(
        drill,
        ("set_vm_memory_high_watermark", "absolute", "1MB"),
        ("set_vm_memory_high_watermark", "absolute", f"{MEMORY_MB_MAX}MB"),
    )


async def disk_alarm(drill: Drill) -> str:
    """Raise the limit of free disk space, so that the broker blocks all publishers for some seconds."""
    return await _alarm(drill, ("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", f"{DISK_FREE_MB_MIN}MB"))


async def _alarm(drill: Drill, begin: tuple[str, ...], end: tuple[str, ...]) -> str:
    await _control(drill, *begin)
    try:
        before = await drill.stage.metric("relay-0", "flashsale_relay_published_entries_total")
        await asyncio.sleep(ALARM_S)
        beside = await drill.stage.metric("relay-0", "flashsale_relay_published_entries_total")
        report = await _control(drill, "status", "--formatter", "json")
    finally:
        await _control(drill, *end)
    if '"alarms":[]' in report.replace(" ", ""):
        raise NotFired("the broker raised no alarm")
    return f"publishers were blocked for {ALARM_S:.0f} s and more; {beside - before:.0f} entries passed meanwhile"


async def delay_queues_deleted(drill: Drill) -> str:
    """Delete the delay queues and the control exchange of every shard's queue."""
    connection = await aiormq.connect(drill.stage.stack.queue_url)
    try:
        channel = await connection.channel()
        for shard in range(drill.cluster.shards):
            queue = order_queue(shard)
            for delay_ms in ORDER_RETRY_DELAYS_MS:
                await channel.queue_delete(delay_queue(queue, delay_ms))
            await channel.exchange_delete(exchange=control_exchange(queue))
    finally:
        await connection.close()
    return "deleted; processes declare them when they miss them"


async def _control(drill: Drill, *arguments: str) -> str:
    """`rabbitmqctl` on the stack's node, with the node's own environment."""
    folder = programs_folder()
    if folder is None:
        raise NotHere("RabbitMQ is not installed")
    raw = await asyncio.to_thread(Path(f"/proc/{drill.stage.pid('rabbitmq')}/environ").read_bytes)
    env = dict(item.split("=", 1) for item in raw.decode().split("\0") if "=" in item)
    argv = [str(folder / "rabbitmqctl"), "--quiet", "--node", env["RABBITMQ_NODENAME"], *arguments]
    done = await asyncio.to_thread(
        subprocess.run, argv, env=env, cwd="/", capture_output=True, text=True, timeout=CONTROL_S_MAX, check=False
    )
    if done.returncode != 0:
        raise NotFired(f"rabbitmqctl {arguments[0]}: {done.stdout} {done.stderr}".strip())
    return done.stdout


FAULTS = [
    Fault(
        "rabbitmq-killed", "RabbitMQ is killed under load", "orders wait in the lanes; confirmed messages are there",
        killed, needs=ON_RABBITMQ, fast=True,
    ),
    Fault(
        "rabbitmq-confirm-lost", "the relay's connection is cut between publish and confirm",
        "published again; dropped by version", confirms_lost, needs=ON_RABBITMQ,
    ),
    Fault(
        "rabbitmq-publish-torn", "the relay's connection is cut in the middle of a publish", "published again",
        publishes_torn, needs=ON_RABBITMQ,
    ),
    Fault(
        "rabbitmq-writer-killed-before-commit", "a writer is killed before its shard commits",
        "the broker gives its messages back; stored once",
        killed_at("shard-writer-0", (b"COMMIT",), Harm.BEFORE, server="postgres", greeting=TO_SHARD),
        needs=ON_RABBITMQ,
    ),
    Fault(
        "rabbitmq-writer-killed-before-ack", "a writer is killed after the commit, before the acknowledgement",
        "the broker gives its messages back; dropped by version",
        killed_at("shard-writer-0", (_ACK,), Harm.BEFORE, server="queue"), needs=ON_RABBITMQ,
    ),
    Fault(
        "rabbitmq-memory-alarm", "RabbitMQ's memory alarm blocks publishers", "orders wait in the lanes",
        memory_alarm, needs=ON_RABBITMQ,
    ),
    Fault(
        "rabbitmq-disk-alarm", "RabbitMQ's disk alarm blocks publishers", "orders wait in the lanes",
        disk_alarm, needs=ON_RABBITMQ,
    ),
    Fault(
        "rabbitmq-delay-queues-deleted", "delay queues and control exchanges are deleted",
        "declared again; no order is lost", delay_queues_deleted, needs=ON_RABBITMQ,
    ),
]  # fmt: skip
