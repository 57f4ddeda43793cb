"""Work in rounds on a real Redis: readiness through failures, standby, and rounds that take too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from redis.asyncio import Redis

from devstack.servers import RedisServer
from domain.topology import worker_fence_key, worker_lease_key
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.redis.client import redis_client as new_client
from runtime.redis.leases import Lease
from tests.workers.writing import eventually
from workers.rounds import run_rounds

ROLE = "test"
LIFE_MS = 2_000


@pytest.fixture
async def client(redis_client: redis.Redis, redis_server: RedisServer) -> AsyncIterator[Redis]:
    assert redis_client.dbsize() == 0
    made = new_client(redis_server.url)
    yield made
    await made.aclose()


async def test_a_role_that_stands_by_after_a_failure_is_ready(client: Redis) -> None:
    """The failure of its last tenure made the process not ready for as long as another one worked."""
    service = Service("test", load_settings({}))
    key, fence_key = worker_lease_key(ROLE), worker_fence_key(ROLE)

    async def work(_: Lease) -> bool:
        raise OSError("the shard is away")

    rounds = asyncio.create_task(run_rounds(service, client, role=ROLE, every_s=0.05, work=work, life_ms=LIFE_MS))

    async def failed() -> bool:
        return service.checks.get(ROLE) == (False, "OSError")

    async def stands_by() -> bool:
        return service.is_ready and service.checks[ROLE][0]

    try:
        await eventually(failed)
        assert not service.is_ready
        other = Lease(client, key=key, fence_key=fence_key, life_ms=60_000)
        await client.delete(key)
        assert await other.acquire()
        await eventually(stands_by)
        await other.release()
    finally:
        service.stopping.set()
        await rounds


async def test_a_round_that_stands_still_is_not_ready(client: Redis) -> None:
    service = Service("test", load_settings({}))
    stuck, release = asyncio.Event(), asyncio.Event()

    async def work(_: Lease) -> bool:
        stuck.set()
        await release.wait()
        return False

    rounds = asyncio.create_task(
        run_rounds(service, client, role=ROLE, every_s=0.05, work=work, life_ms=LIFE_MS, round_s_max=0.1)
    )

    async def is_late() -> bool:
        return f"task {ROLE} rounds" in service.checks

    try:
        await asyncio.wait_for(stuck.wait(), 20)
        await eventually(is_late)
        assert not service.is_ready
        release.set()

        async def is_ready() -> bool:
            return service.is_ready

        await eventually(is_ready)
    finally:
        release.set()
        service.stopping.set()
        await rounds
