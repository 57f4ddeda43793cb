"""Brings the map of buckets back into a reservation Redis that lost it. The catalogue has the truth."""

from __future__ import annotations

from typing import Final

import structlog
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from runtime.buckets import following
from runtime.postgres.sql import load_sql
from runtime.process.service import Service

SQL = load_sql(__package__, "gate.sql")
EVERY_S: Final = 5.0

log = structlog.get_logger(__name__)


class MapKeeper:
    """Compares the map in Redis with the catalogue's. Any number of processes may."""

    def __init__(self, redis: Redis, catalogue: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        """Uses both, owns neither."""
        self._redis = redis
        self._catalogue = catalogue

    async def run(self, service: Service) -> None:
        """Look until the service stops."""
        with service.background.rounds("map of buckets") as beat:
            while not service.stopping.is_set():
                beat()
                try:
                    await self.look()
                    service.ready("map of buckets", ok=True)
                except Exception as error:  # a server that is away is asked again
                    service.ready("map of buckets", ok=False, detail=type(error).__name__)
                    log.warning("the map of buckets cannot be compared", error=type(error).__name__)
                await service.tick(EVERY_S)

    async def look(self) -> bool:
        """Publish the catalogue's map if Redis has none or an older one; whether it did. Raises the clients' errors."""
        async with self._catalogue.connection() as connection:
            rows = await (await connection.execute(SQL["read_map"])).fetchall()
            if not rows or rows[0][0] == 0:
                return False
            version = rows[0][0]
            there, _ = await following.read(self._redis)
            if there >= version:
                return False
            owners: dict[int, int] = dict(await (await connection.execute(SQL["read_owners"])).fetchall())
        # Owners of a later version under this number: the next look corrects the number.
        await following.publish(self._redis, version=version, owners=owners)
        log.info("the map of buckets was restored", version=version)
        return True
