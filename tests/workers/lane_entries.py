"""Entries in a lane's stream as the reservation scripts would have left them, made fast enough for thousands."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from uuid import UUID

import redis

from domain import ids
from domain.messages import decode_orders
from domain.orders import OrderEntry, OrderLine, OrderStatus, encode_entry
from domain.topology import BUCKETS, Topology, lane_stream_key, order_queue
from runtime.queue.redis_streams import stream_key

TOPOLOGY = Topology()


def order_entry(rng: random.Random, *, lane: int, bucket: int | None = None) -> bytes:
    """An encoded entry of a random order."""
    bucket = rng.randrange(BUCKETS) if bucket is None else bucket
    now_ms = time.time_ns() // 1_000_000
    return encode_entry(
        OrderEntry(
            order_id=ids.order_id(unix_ms=now_ms, lane=lane, bucket=bucket, random=rng.getrandbits(52)),
            user_id=UUID(int=rng.getrandbits(128), version=4),
            sale_id=UUID(int=rng.getrandbits(128), version=4),
            idempotency_key=f"{rng.getrandbits(64):x}",
            currency="EUR",
            lines=(OrderLine(0, "SKU-1", 1, 1999),),
            status=OrderStatus.RESERVED,
            version=1,
            epoch=1,
            reserved_at_ms=now_ms,
            expires_at_ms=now_ms + 600_000,
            changed_at_ms=now_ms,
        )
    )


def fill_lane(
    client: redis.Redis, rng: random.Random, *, lane: int, count: int, first_seq: int = 1, shards: Sequence[int] = ()
) -> dict[int, bytes]:
    """Append `count` entries and return them by lane_seq. `shards` restricts them to some shards."""
    buckets = [b for b in range(BUCKETS) if not shards or TOPOLOGY.shard_of_bucket(b) in shards]
    written = {}
    pipeline = client.pipeline(transaction=False)
    for seq in range(first_seq, first_seq + count):
        written[seq] = order_entry(rng, lane=lane, bucket=rng.choice(buckets))
        pipeline.xadd(lane_stream_key(lane), {"e": written[seq]}, id=f"{seq}-0")
        if seq % 1000 == 0:
            pipeline.execute()
    pipeline.execute()
    return written


def queued(client: redis.Redis, *, shard: int, lane: int) -> dict[int, bytes]:
    """Entries of a lane that lie in a shard's queue, by lane_seq; asserts that they belong to the shard."""
    entries = {}
    for _, fields in client.xrange(stream_key(order_queue(shard))):
        for item in decode_orders(fields[b"b"]):
            assert TOPOLOGY.shard_of_order(UUID(bytes=item.entry[26:42])) == shard
            if item.lane == lane:
                entries[item.lane_seq] = item.entry
    return entries


def queued_anywhere(client: redis.Redis, *, lane: int) -> dict[int, bytes]:
    """Entries of a lane over all shards' queues."""
    entries: dict[int, bytes] = {}
    for shard in range(TOPOLOGY.shards):
        entries |= queued(client, shard=shard, lane=lane)
    return entries
