"""Routing of reads with a real streaming replica that lags, fails or is unreachable, and a Redis that loses data."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import redis
from psycopg import AsyncConnection
from pydantic import SecretStr

from devstack.servers import RedisServer
from domain import topology
from runtime.postgres.databases import Database, Replica
from runtime.postgres.pool import postgres_pool
from runtime.postgres.positions import CALL_S_MAX, KEPT_MS, Positions
from runtime.process.tasks import cancel
from runtime.redis.client import redis_client
from tests.fixtures.fix_replica import Replication

WAIT_S_MAX = 20.0
MINE, OTHERS = ["user:1"], ["user:2"]


async def where(connection: AsyncConnection[Any]) -> str:
    row = await (await connection.execute("SELECT pg_is_in_recovery()")).fetchone()
    return "replica" if row is not None and row[0] else "primary"


async def rows(connection: AsyncConnection[Any]) -> int:
    row = await (await connection.execute("SELECT count(*) FROM notes")).fetchone()
    assert row is not None
    return int(row[0])


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def remember_for_long(server: RedisServer) -> None:
    """Make the cache Redis look older than the time for which it keeps positions."""
    with redis.Redis(port=server.port) as client:
        client.set(topology.POSITIONS_SINCE_KEY, int(time.time() * 1000) - KEPT_MS - 1000)


@asynccontextmanager
async def database_on(
    replication: Replication, redis_url: str, *, replica_dsn: str | None = None, lag_ms_max: int = 30_000
) -> AsyncIterator[Database]:
    dsn = replication.primary.dsn()
    client = redis_client(redis_url, timeout_s=CALL_S_MAX)
    pool = postgres_pool(SecretStr(replica_dsn or replication.dsn_of_replica(dsn)))
    replica = Replica(pool, lag_ms_max=lag_ms_max)
    database = Database("notes", postgres_pool(SecretStr(dsn)), replica=replica, positions=Positions(client))
    await database.open()
    watch = asyncio.create_task(database.watch())
    try:
        yield database
    finally:
        await cancel(watch)
        await database.close()
        await client.aclose()


@pytest.fixture
def notes(replication: Replication) -> str:
    """A fresh table on both servers."""
    with psycopg.connect(replication.primary.dsn(), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS notes")
        connection.execute("CREATE TABLE notes (id serial)")
    replication.catch_up()
    return "notes"


@pytest.fixture
async def database(replication: Replication, notes: str, own_redis: RedisServer) -> AsyncIterator[Database]:
    assert notes
    remember_for_long(own_redis)
    async with database_on(replication, own_redis.url) as database:
        yield database


async def reads_at(database: Database, place: str, subjects: list[str] = OTHERS) -> bool:
    return await database.read(where, subjects=subjects) == place


async def write(database: Database, *subjects: str) -> None:
    async with database.connection() as connection:
        await connection.execute("INSERT INTO notes DEFAULT VALUES")
    await database.wrote(*subjects)


async def test_reads_go_to_the_replica(database: Database, own_redis: RedisServer) -> None:
    await until(lambda: reads_at(database, "replica"))
    with redis.Redis(port=own_redis.port) as client:
        assert client.keys("flashsale:positions:notes:*") == []
    async with database.connection() as connection:
        assert await where(connection) == "primary"


async def test_writers_read_their_own_writes(
    database: Database, replication: Replication, own_redis: RedisServer
) -> None:
    async with database_on(replication, own_redis.url) as elsewhere:  # another process
        for process in (database, elsewhere):
            await until(lambda: reads_at(process, "replica"))  # noqa: B023 - awaited here
        with replication.paused():
            await write(database, *MINE)
            for process in (database, elsewhere):
                assert await process.read(rows, subjects=MINE) == 1
                assert await process.read(rows, subjects=[*OTHERS, *MINE]) == 1
                # Other readers may see the write later, and do not load the primary.
                assert await process.read(rows, subjects=OTHERS) == 0
                assert await reads_at(process, "replica", OTHERS)
        await until(lambda: reads_at(database, "replica", MINE))
        assert await database.read(rows, subjects=MINE) == 1


async def test_what_was_written_is_remembered_for_a_time(database: Database, own_redis: RedisServer) -> None:
    await write(database, *MINE, *OTHERS)
    with redis.Redis(port=own_redis.port) as client:
        for subject in (*MINE, *OTHERS):
            assert KEPT_MS - 5000 < client.pttl(topology.position_key("notes", subject)) <= KEPT_MS


async def test_a_replica_that_lags_is_not_read(replication: Replication, notes: str, own_redis: RedisServer) -> None:
    assert notes
    remember_for_long(own_redis)
    async with database_on(replication, own_redis.url, lag_ms_max=1000) as database:
        await until(lambda: reads_at(database, "replica"))
        with replication.paused():
            await write(database)  # without a subject
            await until(lambda: reads_at(database, "primary"))
            assert await database.read(rows, subjects=OTHERS) == 1
            assert database.replica is not None and not database.replica.may_be_read
        await until(lambda: reads_at(database, "replica"))
        assert await database.read(rows, subjects=OTHERS) == 1


async def test_a_replica_that_is_away_is_done_without(database: Database, replication: Replication) -> None:
    await until(lambda: reads_at(database, "replica"))
    replication.replica.stop()
    try:
        for _ in range(5):
            assert await reads_at(database, "primary")
    finally:
        replication.replica.start()
    await until(lambda: reads_at(database, "replica"))


async def test_a_read_that_fails_on_the_replica_is_made_on_the_primary(database: Database) -> None:
    await until(lambda: reads_at(database, "replica"))
    asked = []

    async def fatal(connection: AsyncConnection[Any]) -> str:
        asked.append(await where(connection))
        if asked[-1] == "replica":
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return asked[-1]

    assert await database.read(fatal, subjects=OTHERS) == "primary"
    assert asked == ["replica", "primary"]
    await until(lambda: reads_at(database, "replica"))


async def test_a_mistake_in_a_query_fails_neither_server(database: Database) -> None:
    await until(lambda: reads_at(database, "replica"))
    asked = []

    async def wrong(connection: AsyncConnection[Any]) -> None:
        asked.append(await where(connection))
        await connection.execute("SELECT nothing FROM nowhere")

    with pytest.raises(psycopg.ProgrammingError):
        await database.read(wrong, subjects=OTHERS)
    assert asked == ["replica"]


async def test_a_promoted_replica_is_not_read(replication: Replication, notes: str, own_redis: RedisServer) -> None:
    """A promoted replica is another primary, with writes that ours does not have."""
    assert notes
    remember_for_long(own_redis)
    async with database_on(replication, own_redis.url, replica_dsn=replication.primary.dsn()) as database:
        assert database.replica is not None
        for _ in range(3):
            await database.look(database.replica)
            assert not database.replica.may_be_read
            assert await reads_at(database, "primary")


async def test_a_redis_that_forgot_everything(
    database: Database, replication: Replication, own_redis: RedisServer
) -> None:
    await until(lambda: reads_at(database, "replica"))
    with replication.paused():
        await write(database, *MINE)
        with redis.Redis(port=own_redis.port) as client:
            client.flushall()
            assert await database.read(rows, subjects=MINE) == 1
            assert await database.read(rows, subjects=MINE) == 1
            since = client.get(topology.POSITIONS_SINCE_KEY)
            assert since is not None and abs(int(since) - time.time() * 1000) < 60_000
    remember_for_long(own_redis)
    await until(lambda: reads_at(database, "replica", MINE))


async def test_without_redis_reads_go_to_the_primary(
    database: Database, replication: Replication, own_redis: RedisServer
) -> None:
    await until(lambda: reads_at(database, "replica"))
    own_redis.stop()
    try:
        with replication.paused():
            await write(database, *MINE)
            for subjects in (MINE, OTHERS):
                assert await database.read(rows, subjects=subjects) == 1
            own_redis.start()
            # The position of the write was not stored, so positions are incomplete.
            remember_for_long(own_redis)
            for _ in range(80):
                assert await database.read(rows, subjects=MINE) == 1
                await asyncio.sleep(0.02)
            with redis.Redis(port=own_redis.port) as client:
                assert int(client.get(topology.POSITIONS_SINCE_KEY) or 0) > time.time() * 1000 - 60_000
    finally:
        if own_redis.process is None:
            own_redis.start()


async def test_the_larger_of_two_positions_stays(own_redis: RedisServer) -> None:
    remember_for_long(own_redis)
    client = redis_client(own_redis.url)
    positions = Positions(client)
    for position in (2**40, 2**52 + 3, 7):
        await positions.remember("notes", MINE, position)
    assert await positions.newest("notes", MINE) == 2**52 + 3
    assert await positions.newest("notes", OTHERS) == 0
    assert await positions.newest("other", MINE) == 0
    assert await positions.newest("notes", [*OTHERS, *MINE]) == 2**52 + 3
    await positions.remember("notes", OTHERS, None)
    assert await positions.newest("notes", MINE) is None
    await client.aclose()


def test_lag_is_counted_from_when_the_primary_was_asked() -> None:
    replica = Replica(postgres_pool(SecretStr("postgresql://nowhere")), lag_ms_max=1000)
    now = time.monotonic()
    assert (replica.lag_s, replica.may_be_read) == (None, False)
    for age_s, position in ((5.0, 100), (0.5, 200), (0.1, 300)):
        replica.primary_wrote(now - age_s, position)
    replica.replayed(99)
    assert replica.lag_s is None
    replica.replayed(199)
    assert replica.lag_s is not None and replica.lag_s >= 5.0 and not replica.may_be_read
    replica.replayed(250)
    assert replica.lag_s >= 0.5
    replica.failed()
    assert replica.lag_s is None
