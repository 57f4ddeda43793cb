"""A shard writer's parts inside a test: pools, queue and store on real servers, and questions of tests about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import SecretStr
from redis.asyncio import Redis

from domain.messages import SequencedEntry
from domain.topology import order_queue
from runtime.dead_letters import DeadLetters, PostgresDeadLetters
from runtime.postgres.pool import postgres_pool
from runtime.process.service import Service
from runtime.process.settings import Settings
from runtime.queue import Queue, RetryPolicy, open_queue
from runtime.redis.client import redis_client
from tests.fixtures.fix_databases import Databases
from tests.workers.making import TOPOLOGY, message
from workers.shard_writer.grants import Grants
from workers.shard_writer.plan import Incoming, group_by_order, read_entry
from workers.shard_writer.store import ShardStore
from workers.shard_writer.sweep import Sweep
from workers.shard_writer.worker import ShardWriter

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
DRAINED_S_MAX = 90.0
FAST_POLICY = RetryPolicy(delays_ms=(10, 20))


@dataclass
class Bench:
    """Everything around the shard writers of one test."""

    databases: Databases
    redis: Redis
    queue: Queue
    catalogue: Pool
    pools: list[Pool]
    letters: DeadLetters

    def grants(self, shard: int) -> Grants:
        return Grants(self.catalogue, shard=shard)

    def store(self, shard: int) -> ShardStore:
        return ShardStore(self.pools[shard], self.grants(shard))

    def sweep(self, shard: int) -> Sweep:
        return Sweep(self.pools[shard], self.grants(shard), shard=shard)

    def writer(self, shard: int, service: Service, *, batch_max: int = 2000) -> ShardWriter:
        return ShardWriter(
            shard=shard, cluster=TOPOLOGY, queue=self.queue, letters=self.letters, store=self.store(shard),
            grants=self.grants(shard), redis=self.redis, service=service, batch_max=batch_max, policy=FAST_POLICY,
        )  # fmt: skip

    async def publish(self, entries: Iterable[SequencedEntry], *, shard: int = 0) -> None:
        """One message."""
        listed = list(entries)
        await self.queue.publish(order_queue(shard), message(listed), message_id=f"test-{listed[0].lane_seq}")

    @asynccontextmanager
    async def running(self, *shards: int, copies: int = 1, batch_max: int = 2000) -> AsyncIterator[Service]:
        """Writers of some shards at work until the block ends."""
        service = Service("test", Settings())
        writers = [self.writer(shard, service, batch_max=batch_max) for shard in shards or (0,) for _ in range(copies)]
        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.run())
            try:
                yield service
            finally:
                service.stopping.set()

    async def drained(self, shard: int = 0) -> None:
        """Return when nothing is in the shard's queue, neither waiting nor in hand nor to be retried."""

        async def empty() -> bool:
            # The barrier covers messages in hand, the depth those that a writer published in turn.
            passed = await self.queue.barrier(order_queue(shard), wait_s=0)
            depth = await self.queue.depth(order_queue(shard))
            return passed and depth.messages == depth.retrying == 0

        await eventually(empty)


async def eventually(holds: Callable[[], Any]) -> None:
    """Return when the awaited condition holds; AssertionError when it takes too long."""
    async with asyncio.timeout(DRAINED_S_MAX):
        while not await holds():  # noqa: ASYNC110 - other processes make it true, without an event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_bench(databases: Databases, redis_url: str) -> AsyncIterator[Bench]:
    """Clients of the servers; closed at the end."""
    async with AsyncExitStack() as stack:
        redis = redis_client(redis_url)
        stack.push_async_callback(redis.aclose)
        queue = open_queue(redis_url, TOPOLOGY.queues)
        stack.push_async_callback(queue.close)
        pools = []
        for dsn in (databases.catalogue_dsn, *databases.shard_dsns):
            pools.append(await stack.enter_async_context(postgres_pool(SecretStr(dsn), size_max=8)))
        yield Bench(databases, redis, queue, pools[0], pools[1:], PostgresDeadLetters(pools[0], letters_max=1000))


def incoming(entries: Sequence[SequencedEntry], *, shard: int = 0) -> list[Incoming]:
    """The orders of entries, as the writer groups them."""
    return group_by_order(read_entry(entry, shard=shard, topology=TOPOLOGY) for entry in entries)


def rows(dsn: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """A query's answer."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(query, values).fetchall()


def guard_of(databases: Databases, sale_id: UUID, sku: str = "SKU-1") -> dict[str, Any]:
    """Both halves of the guard for one SKU: stock, granted, and per shard (total) and (granted, sold)."""
    ledger = rows(
        databases.catalogue_dsn, "SELECT stock, granted FROM stock_ledger WHERE sale_id = %s AND sku = %s", sale_id, sku
    )
    grants = rows(
        databases.catalogue_dsn, "SELECT shard, total FROM shard_grant WHERE sale_id = %s AND sku = %s", sale_id, sku
    )
    quotas = {}
    for shard, dsn in enumerate(databases.shard_dsns):
        for granted, sold in rows(dsn, "SELECT granted, sold FROM quota WHERE sale_id = %s AND sku = %s", sale_id, sku):
            quotas[shard] = (granted, sold)
    return {"ledger": ledger[0], "totals": dict(grants), "quotas": quotas}


def statuses(databases: Databases) -> dict[UUID, tuple[int, int]]:
    """Status and version of every stored order."""
    return {
        order_id: (status, version)
        for dsn in databases.shard_dsns
        for order_id, status, version in rows(dsn, "SELECT id, status, version FROM orders")
    }


def event_ids(databases: Databases) -> list[str]:
    """Ids of all events in the outboxes, in order of the outbox."""
    return [
        event["id"]
        for dsn in databases.shard_dsns
        for (events,) in rows(dsn, "SELECT events FROM outbox ORDER BY id")
        for event in events
    ]
