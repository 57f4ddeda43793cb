"""What the edge looks at before it admits orders, on a real Redis: a change is seen at the next look."""

from __future__ import annotations

import redis

from devstack.servers import RedisServer
from domain.topology import Topology
from edge.admission import Admission
from edge.clock import RedisClock
from runtime.process.settings import Durability
from runtime.redis.client import redis_client as open_client


async def test_a_switched_off_sync_is_seen_at_the_next_look_and_its_return_too(own_redis: RedisServer) -> None:
    """It was seen up to 30 s late: orders were promised and not durable meanwhile."""
    client = open_client(own_redis.url)
    admission = Admission(
        client,
        cluster=Topology(),
        clock=RedisClock(),
        durability=Durability.FSYNC,
        memory_percent_max=80,
        on_memory=lambda _: None,
        on_clock=lambda _: None,
    )
    assert admission.refuses_orders()
    with redis.Redis(port=own_redis.port) as operator:
        for _ in range(2):
            await admission.look()
            assert not admission.refuses_orders()
            for setting, off, on in (("appendfsync", "everysec", "always"), ("appendonly", "no", "yes")):
                operator.config_set(setting, off)
                await admission.look()
                assert admission.refuses_orders() and off in admission.observed.faults["durability"]
                operator.config_set(setting, on)
                await admission.look()
                assert not admission.refuses_orders() and not admission.observed.faults
        operator.config_set("maxmemory-policy", "allkeys-lru")
        await admission.look()
        assert admission.refuses_orders() and "allkeys-lru" in admission.observed.faults["eviction"]
        # A user without the right to see the configuration: what cannot be checked is not promised.
        operator.config_set("maxmemory-policy", "noeviction")
        operator.acl_setuser("default", enabled=True, commands=["-config"])
        await admission.look()
        assert admission.refuses_orders() and "cannot be checked" in admission.observed.faults["durability"]
    await client.aclose()
