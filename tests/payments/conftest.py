"""Fixtures of the payment tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
import redis

from devstack.servers import RedisServer
from tests.fixtures.fix_databases import Databases
from tests.payments.till import Till, open_till


@pytest_asyncio.fixture
async def till(databases: Databases, redis_server: RedisServer, redis_client: redis.Redis) -> AsyncIterator[Till]:
    """Empty databases and an empty Redis with one open sale."""
    async with open_till(databases, redis_server.url, redis_client) as opened:
        yield opened
