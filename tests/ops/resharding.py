"""A mover on a test's databases, and what must be true of all shards before and after it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from domain.topology import BUCKETS, Topology, bucket_of_user
from ops.resharding import tables
from ops.resharding.opening import opened_mover
from ops.resharding.procedure import Mover, Progress
from runtime.process.settings import load_settings
from tests.fixtures.fix_databases import Databases

TOPOLOGY = Topology()
STEPS = (
    "announced", "frozen", "drained", "copying", "copied", "switched", "left", "opened", "known", "purged", "ended",
)  # fmt: skip


class Crash(Exception):
    """The mover ends here, as if its process had been killed: its connections close, and no code of it runs on."""


def crash_at(step: str) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Crash(step)

    return report


@asynccontextmanager
async def mover(
    databases: Databases, redis_url: str, report: Callable[[Progress], None] = lambda _: None
) -> AsyncIterator[Mover]:
    """A prepared mover with connections of its own, while a dispatcher empties the outboxes."""
    publishing = asyncio.create_task(_publish_outboxes(databases))
    try:
        settings = load_settings({**databases.environ, "FLASHSALE_REDIS_URL": redis_url})
        async with opened_mover(settings, report) as made:
            yield made
    finally:
        publishing.cancel()


async def _publish_outboxes(databases: Databases) -> None:
    async with AsyncExitStack() as stack:
        opened = []
        for dsn in databases.shard_dsns:
            opened.append(await stack.enter_async_context(await AsyncConnection.connect(dsn, autocommit=True)))
        while True:
            for connection in opened:
                await connection.execute("DELETE FROM outbox")
            await asyncio.sleep(0.01)


async def everything(databases: Databases) -> dict[str, tuple[int, int]]:
    """Rows and digest of each moved table, summed over all shards: a move changes neither."""
    sums: dict[str, tuple[int, int]] = {}
    for dsn in databases.shard_dsns:
        async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
            for name, found in (await tables.fingerprints(connection, range(BUCKETS))).items():
                rows, digest = sums.get(name, (0, 0))
                sums[name] = rows + found.rows, digest + found.digest
    return sums


def owners(databases: Databases) -> dict[int, int]:
    """The owner of every bucket by the catalogue."""
    with psycopg.connect(databases.catalogue_dsn) as connection:
        moved = dict(connection.execute("SELECT bucket, shard FROM bucket_owner").fetchall())
    return {bucket: moved.get(bucket, TOPOLOGY.first_shard_of_bucket(bucket)) for bucket in range(BUCKETS)}


def check_places(databases: Databases) -> None:
    """Every order and account is in the shard that owns its bucket, and only there; each quota fits its orders."""
    owner = owners(databases)
    granted: Counter[tuple[UUID, str]] = Counter()
    for shard, dsn in enumerate(databases.shard_dsns):
        with psycopg.connect(dsn) as connection:
            for table in tables.MOVED:
                held = connection.execute(
                    psycopg.sql.SQL("SELECT count(*) {}").format(
                        table.rows([bucket for bucket in range(BUCKETS) if owner[bucket] != shard])
                    )
                ).fetchone()
                assert held == (0,), (shard, table.name)
            for (user_id,) in connection.execute("SELECT id FROM users"):
                assert owner[bucket_of_user(user_id)] == shard
            charged = connection.execute(
                "SELECT sale_id, sku, sum(quantity)::int FROM audit_orders WHERE status IN ('reserved', 'paid') GROUP BY 1, 2"
            ).fetchall()
            sold = connection.execute("SELECT sale_id, sku, sold FROM quota WHERE sold > 0").fetchall()
            assert sorted(charged) == sorted(sold), shard
            quotas = {
                (s, k): (g, q) for s, k, g, q in connection.execute("SELECT sale_id, sku, granted, seq FROM quota")
            }
        with psycopg.connect(databases.catalogue_dsn) as connection:
            for sale_id, sku, total, seq in connection.execute(
                "SELECT sale_id, sku, total, seq FROM shard_grant WHERE shard = %s", (shard,)
            ):
                granted[sale_id, sku] += total
                held_granted, held_seq = quotas.get((sale_id, sku), (0, 0))
                assert held_granted <= total or held_seq != seq, (shard, sku)
    with psycopg.connect(databases.catalogue_dsn) as connection:
        ledger = connection.execute("SELECT sale_id, sku, granted FROM stock_ledger").fetchall()
        assert {(s, k): g for s, k, g in ledger} == dict(granted)
        assert connection.execute("SELECT count(*) FROM bucket_group").fetchone() == (0,)
        assert connection.execute("SELECT switches % 2 FROM bucket_map").fetchone() == (0,)
    for shard, dsn in enumerate(databases.shard_dsns):
        with psycopg.connect(dsn) as connection:
            closed = dict(connection.execute("SELECT bucket, state FROM closed_buckets").fetchall())
        assert closed == {bucket: "elsewhere" for bucket in range(BUCKETS) if owner[bucket] != shard}
