"""The upkeep of a queue on Redis Streams rests while there are no messages, and a delivery ends its rest."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import redis

from devstack.servers import RedisServer
from domain.topology import QueueSpec
from runtime.queue import Consumer, Delivery, FailureKind
from runtime.queue import redis_streams_consumer as consumer_module
from runtime.queue.redis_streams import RedisStreamsQueue

CLAIM_MS = 1200
CLAIM_S = CLAIM_MS / 1000
SPECS = (QueueSpec("resting", retry_delays_ms=(20,)),)


def scripts_run(client: redis.Redis) -> int:
    stats = cast(dict[str, Any], client.info("commandstats"))
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def from_either(one: Consumer, other: Consumer, *, wait_s: float) -> list[Delivery]:
    return await one.next_batch(count_max=1, wait_s=wait_s) or await other.next_batch(count_max=1, wait_s=wait_s)


async def test_the_upkeep_rests_without_messages_and_a_delivery_ends_its_rest(
    redis_client: redis.Redis, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "REST_AFTER_S", 0.2)
    queue = RedisStreamsQueue(redis_server.url, SPECS, length_max=100, claim_ms=CLAIM_MS)
    try:
        async with queue.consume("resting", prefetch=2) as one, queue.consume("resting", prefetch=2) as other:
            await asyncio.sleep(CLAIM_S)
            before = scripts_run(redis_client)
            await asyncio.sleep(3 * CLAIM_S)
            # Two consumers in three claim times: 24 without rest, which a slow machine only makes fewer.
            assert 2 <= scripts_run(redis_client) - before <= 12
            await queue.publish("resting", b"", message_id="1")
            (held,) = await from_either(one, other, wait_s=5.0)
            # It gives signs of life: otherwise a consumer would take it after a claim time.
            for _ in range(3):
                assert not await from_either(one, other, wait_s=CLAIM_S / 2)
            await held.retry(20, FailureKind.NO_GRANT, "later")
            (again,) = await from_either(one, other, wait_s=5.0)
            assert again.attempt == 2
            await again.ack()
    finally:
        await queue.close()
