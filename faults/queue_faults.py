"""Faults of a queue: duplicates, another order, and messages that cannot be read."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, cast

from domain.messages import encode_orders
from domain.topology import lane_state_key, lane_stream_key, order_queue
from faults.checker import Expectations
from faults.conditions import NotFired
from faults.scenario import Drill, Fault
from runtime.queue import open_queue

STOPPED_S = 2.0
POISON = 3
# Takes the lane's next place like the reserving script, so that the sequence has no gaps.
_PLANT = """
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
if ARGV[1] == 'stream' then redis.call('XADD', KEYS[2], seq .. '-0', 'e', 'this is no order') end
return seq
"""


def _stream(shard: int) -> str:
    return f"queue:{{{order_queue(shard)}}}:stream"


async def duplicate(drill: Drill) -> str:
    """Stop the writer so that its queues fill, and add each message twice more."""
    return await _meddle(drill, in_reverse=False)


async def reorder(drill: Drill) -> str:
    """Stop the writer so that its queues fill, and reverse the order of the messages."""
    return await _meddle(drill, in_reverse=True)


async def _meddle(drill: Drill, *, in_reverse: bool) -> str:
    pid = drill.stage.pid("shard-writer-0")
    count = 0
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
        async with drill.stage.redis() as redis:
            for shard in range(drill.cluster.shards):
                messages = cast(list[tuple[bytes, dict[Any, Any]]], await redis.xrange(_stream(shard)))
                for _, fields in reversed(messages) if in_reverse else messages + messages:
                    await redis.xadd(_stream(shard), fields)
                    count += 1
                if in_reverse and messages:
                    await redis.xdel(_stream(shard), *(entry_id for entry_id, _ in messages))
    finally:
        os.kill(pid, signal.SIGCONT)
    if not count:
        raise NotFired("the queues were empty")
    return f"{count} messages were {'put into reverse order' if in_reverse else 'added again'}"


async def poison_lane(drill: Drill) -> str:
    """Add entries that are not orders to a lane's stream, with places of their own."""
    lane = drill.lanes[0]
    seqs = []
    async with drill.stage.redis() as redis:
        for _ in range(POISON):
            keys = lane_state_key(lane), lane_stream_key(lane)
            seqs.append(int(await cast(Any, redis.eval(_PLANT, 2, *keys, "stream"))))
            await drill.pause(0.1, 0.4)
    return f"places {seqs} of lane {lane} are not orders"


async def poison_queue(drill: Drill) -> str:
    """Add messages with unreadable orders to shards' queues."""
    lane = drill.lanes[0]
    seqs = []
    queue = open_queue(drill.stage.stack.queue_url, drill.cluster.queues)
    try:
        async with drill.stage.redis() as redis:
            for shard in range(POISON):
                keys = lane_state_key(lane), lane_stream_key(lane)
                seq = int(await cast(Any, redis.eval(_PLANT, 2, *keys, "queue")))
                body = encode_orders(lane, [(seq, b"this is no order")])
                await queue.publish(order_queue(shard), body, message_id=f"poison-{seq}")
                seqs.append(seq)
    finally:
        await queue.close()
    return f"places {seqs} of lane {lane} are messages that cannot be read"


async def undecodable(drill: Drill) -> str:
    """Add entries without the fields of a message to shards' queues."""
    async with drill.stage.redis() as redis:
        for shard in range(POISON):
            await redis.xadd(_stream(shard), {"x": "y"})
            await drill.pause(0.1, 0.4)
    return f"{POISON} entries without the fields of a message"


FAULTS = [
    Fault("duplicate-queue-messages", "a full queue has every message three times", "dropped by version", duplicate),
    Fault("reordered-queue-messages", "the messages of a full queue are reversed", "dropped by version", reorder),
    Fault(
        "poison-entry", "entries in a lane's stream that are not orders",
        "dead letters with their place; later entries are relayed", poison_lane,
        allowed=Expectations(dead_letters=POISON),
    ),
    Fault(
        "poison-message", "messages in a shard's queue that cannot be read",
        "eight attempts, then dead letters; other orders are stored", poison_queue,
        allowed=Expectations(dead_letters=POISON),
    ),
    Fault(
        "undecodable-queue-entry", "entries in a shard's queue that are no messages",
        "dead letters at once; other orders are stored", undecodable,
        allowed=Expectations(dead_letters=POISON),
    ),
]  # fmt: skip
