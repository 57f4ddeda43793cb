"""PostgreSQL behind a transaction pooler: pools work as on a server, sessions have addresses of their own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from backoffice.web.replica_metrics import ReplicaMetrics
from devstack.servers import RedisServer
from faults.proxy import FaultProxy
from migrations import runner
from migrations.files import MigrationError
from migrations.runner import migrate_all
from runtime.postgres import pool as pools
from runtime.postgres.connection import DatabaseSilent, connect_command
from runtime.postgres.databases import Database, Replica
from runtime.postgres.pool import postgres_pool
from runtime.postgres.positions import Positions
from runtime.process.settings import Settings, SettingsError, load_settings
from runtime.redis.client import redis_client
from tests.fixtures.fix_pair import Tier, until

CLIENTS = 12  # more than the pooler's 4 connections
NOWHERE = "postgresql://flashsale@127.0.0.1:1/nowhere"


@pytest.fixture
def proxy(tier: Tier) -> Iterator[FaultProxy]:
    """Before the pooler."""
    with FaultProxy(tier.pooler.port) as proxy:
        yield proxy


async def test_more_clients_than_connections_share_them_and_keep_their_own_format(tier: Tier) -> None:
    tier.pair.primary.ask("ALTER ROLE flashsale SET IntervalStyle TO sql_standard")
    tier.pair.primary.ask("ALTER ROLE flashsale SET TimeZone TO 'Asia/Tokyo'")
    try:
        await asyncio.to_thread(tier.pooler.command, "RECONNECT")
        dsn = SecretStr(tier.pooler.dsn("postgres"))
        async with postgres_pool(dsn, size_max=CLIENTS) as pool:

            async def ask(number: int) -> tuple[object, ...] | None:
                async with pool.connection() as connection:
                    await connection.execute("SELECT pg_sleep(0.02)")
                    asked = "SELECT '1 day 2 hours'::interval::text, '2026-01-01T00:00:00Z'::timestamptz::text, %s"
                    return await (await connection.execute(asked, (number,))).fetchone()

            answers = await asyncio.gather(*(ask(number) for number in range(4 * CLIENTS)))
        assert answers == [("1 day 02:00:00", "2026-01-01 00:00:00+00", number) for number in range(4 * CLIENTS)]
    finally:
        tier.pair.primary.ask("ALTER ROLE flashsale RESET ALL")
        await asyncio.to_thread(tier.pooler.command, "RECONNECT")


async def test_a_pooler_whose_server_is_silent_costs_a_call_its_bound(
    tier: Tier, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "CHECK_S_MAX", 0.3)
    dsn = tier.pooler.dsn("postgres").replace(f":{tier.pooler.port}/", f":{proxy.port}/")
    async with postgres_pool(SecretStr(dsn), size_max=2, call_s_max=0.3) as pool:
        await pool.wait()
        async with pool.connection() as connection:
            proxy.stall(stalled=True)
            with pytest.raises(DatabaseSilent):
                await connection.execute("SELECT 1")
        proxy.stall(stalled=False)
        async with pool.connection() as connection:
            assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


def test_a_command_is_bounded(tier: Tier, proxy: FaultProxy) -> None:
    dsn = tier.pooler.dsn("postgres").replace(f":{tier.pooler.port}/", f":{proxy.port}/")
    with connect_command(dsn, call_s_max=0.3) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        proxy.stall(stalled=True)
        with pytest.raises(DatabaseSilent, match=r"no answer within 0\.3 s"):
            connection.execute("SELECT 1")
        proxy.stall(stalled=False)
        with pytest.raises(psycopg.OperationalError, match="closed"):
            connection.execute("SELECT 1")


def test_a_migration_of_a_silent_database_ends_and_says_so(
    tier: Tier, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CALL_S_MAX", 0.3)
    dsn = tier.pair.primary.dsn().replace(f":{tier.pair.primary.port}/", f":{proxy.port}/")
    real = runner._lock

    def stalled(connection: object, database: str) -> None:
        proxy.stall(stalled=True)
        real(connection, database)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_lock", stalled)
    with pytest.raises(MigrationError, match=r"^catalogue: no answer within 0\.3 s"):
        runner.migrate(dsn, [])


def test_migrations_use_direct_addresses(tier: Tier) -> None:
    direct = [tier.pair.primary.create_database(name) for name in ("migrated_c", "migrated_s")]
    pooled = {"FLASHSALE_SHARDS": "1", "FLASHSALE_CATALOGUE_DSN": NOWHERE, "FLASHSALE_SHARD_DSNS": NOWHERE}
    with pytest.raises(MigrationError):
        migrate_all(load_settings(pooled))
    named = {"FLASHSALE_CATALOGUE_DIRECT_DSN": direct[0], "FLASHSALE_SHARD_DIRECT_DSNS": direct[1]}
    assert all(migrate_all(load_settings(pooled | named)).values())


def test_direct_addresses_are_those_of_all_shards() -> None:
    one = Settings(shards=2, shard_dsns=(SecretStr("a"), SecretStr("b")), shard_direct_dsns=(SecretStr("c"),))
    with pytest.raises(SettingsError, match="FLASHSALE_SHARD_DIRECT_DSNS: has 1 entries"):
        one.require_all_shards()


async def test_a_replica_behind_a_pooled_primary_is_left_out_while_it_lags_or_is_paused_and_comes_back(
    tier: Tier, own_redis: RedisServer
) -> None:
    registry = CollectorRegistry()
    client = redis_client(own_redis.url)
    replica = Replica(postgres_pool(SecretStr(tier.pair.standby.dsn()), call_s_max=1.0), lag_ms_max=1000)
    primary = postgres_pool(SecretStr(tier.pooler.dsn("postgres")))
    database = Database("shard_0", primary, replica=replica, positions=Positions(client))
    ReplicaMetrics([database], registry)

    def readable() -> float | None:
        return registry.get_sample_value("flashsale_replica_readable", {"database": "shard_0"})

    def lag_s() -> float | None:
        return registry.get_sample_value("flashsale_replica_lag_seconds", {"database": "shard_0"})

    assert (readable(), lag_s()) == (0.0, math.inf)
    await database.open()
    watch = asyncio.create_task(database.watch())
    try:
        await asyncio.to_thread(until, lambda: readable() == 1.0)
        with tier.replay_paused():
            await asyncio.to_thread(tier.pair.primary.ask, "SELECT pg_logical_emit_message(false, 'test', 'more')")
            await asyncio.to_thread(until, lambda: readable() == 0.0)
        await asyncio.to_thread(until, lambda: readable() == 1.0)
        tier.pair.standby.kill()
        try:
            await asyncio.to_thread(until, lambda: readable() == 0.0)
        finally:
            tier.pair.standby.start()
        await asyncio.to_thread(until, lambda: readable() == 1.0)
        measured = lag_s()
        assert measured is not None and measured < 1.0
    finally:
        watch.cancel()
        await database.close()
        await client.aclose()
