"""Fixture of the tests of caching."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis
from prometheus_client import CollectorRegistry

from backoffice.caching.cache import Bounds, Codec
from backoffice.caching.caches import Caches
from runtime.process.supervision import TaskSupervisor
from tests.backoffice.caching.scene import CODEC, Process, Start, until


@pytest.fixture
async def start(redis_client: redis.Redis) -> AsyncIterator[Start]:
    """Starts the caches of one more process. The Redis of the session is empty."""
    assert redis_client
    async with AsyncExitStack() as stack:

        async def begin(url: str, bounds: Bounds | None = None, codec: Codec[str] = CODEC) -> Process:
            registry = CollectorRegistry()
            caches = Caches(url, registry)
            process = Process(caches, caches.add("row", codec, bounds or Bounds()), registry)
            await stack.enter_async_context(_following(caches))
            return process

        yield begin


@asynccontextmanager
async def _following(caches: Caches) -> AsyncIterator[None]:
    async with caches.running(TaskSupervisor()):
        await until(lambda: caches.follows)
        yield
