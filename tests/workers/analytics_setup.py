"""Consumers of analytics on real servers, for tests."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from domain.topology import TOPICS
from runtime.event_log import EventLog, open_event_log
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import load_settings
from runtime.redis.client import redis_client as new_client
from runtime.redis.leases import Lease
from tests.fixtures.fix_databases import Databases
from tests.workers.counting import Story, is_drained
from workers.analytics import consumer as module
from workers.analytics.consumer import Consumer
from workers.analytics.store import Figures
from workers.analytics.topics import COUNTED_TOPICS

WAIT_S = 20.0
SEED = 20261128


def quick_consumers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers stop sooner."""
    monkeypatch.setattr(module, "RECEIVE_S", 0.05)
    monkeypatch.setattr(module, "GATHER_S", 0.01)


class Setup:
    """Consumers of both topics, their parts, and a story of orders."""

    def __init__(self, url: str, databases: Databases) -> None:
        self.dsn = databases.analytics_dsn
        self.redis = new_client(url)
        self.log: EventLog = open_event_log(url, TOPICS, records_max=10_000)
        self.pool = postgres_pool(SecretStr(self.dsn))
        self.service = Service("analytics", load_settings({}))
        self.now = time.time()
        self.figures: list[Figures] = []
        self.story = Story(random.Random(SEED), int(self.now * 1000) - 3_600_000)

    @asynccontextmanager
    async def running(self, make: Callable[[], Figures] | None = None) -> AsyncIterator[None]:
        self.service.stopping.clear()
        tasks, leases = [], []
        for topic in COUNTED_TOPICS:
            lease = Lease(self.redis, key=f"{{t-{topic.name}}}:l", fence_key=f"{{t-{topic.name}}}:f", life_ms=5000)
            assert await lease.acquire()
            leases.append(lease)
            consumer = Consumer(
                topic, event_log=self.log, figures=make() if make else Figures(self.pool, carrier="redis"), lease=lease,
                service=self.service, days=35, now=lambda: self.now,
            )  # fmt: skip
            tasks.append(asyncio.create_task(consumer.run()))
        try:
            yield
        finally:
            self.service.stopping.set()
            async with asyncio.timeout(WAIT_S):
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            for lease in leases:
                await lease.release()
        for end in ends:
            if end is not None:
                raise end

    async def counted(self) -> None:
        """All records are counted."""
        async with asyncio.timeout(WAIT_S):
            while not await is_drained(self.log, self.dsn):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def row(self, statement: str, *parameters: object) -> Any:
        with psycopg.connect(self.dsn) as connection:
            found = connection.execute(statement, parameters).fetchone()
        assert found is not None
        return found

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Setup]:
        """With its pool, closed at the end."""
        await self.pool.open()
        try:
            yield self
        finally:
            await self.pool.close()
            await self.log.close()
            await self.redis.aclose()
