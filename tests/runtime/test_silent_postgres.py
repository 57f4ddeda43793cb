"""A real PostgreSQL that is silent, stopped or cut off: every call ends at its bound, and works again afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pydantic import SecretStr

from devstack.servers import PostgresServer
from faults.proxy import FaultProxy
from runtime.postgres import connection as bounded
from runtime.postgres import pool as pools
from runtime.postgres.connection import DatabaseSilent
from runtime.postgres.pool import postgres_pool, single_statements

WAIT_S_MAX = 20.0  # far more than any bound of these tests
CALL_S_MAX = 0.3

Pool = AsyncConnectionPool[psycopg.AsyncConnection[tuple[object, ...]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that only this module stops."""
    server = PostgresServer(tmp_path_factory.mktemp("silent-postgres"), settings=["fsync=off"])
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE notes (id int PRIMARY KEY)")
        yield server
    finally:
        server.destroy()


@pytest.fixture(autouse=True)
def _short_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHECK_S_MAX", CALL_S_MAX)
    monkeypatch.setattr(pools, "POSTGRES_CONNECT_S", 2)
    monkeypatch.setattr(bounded, "CANCEL_S_MAX", 0.1)


@pytest.fixture
async def pool(server: PostgresServer) -> AsyncIterator[Pool]:
    async with postgres_pool(SecretStr(server.dsn()), size_max=2, call_s_max=CALL_S_MAX) as pool:
        await pool.wait()
        yield pool


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    """SIGSTOP to the server and every process of it: the kernel still takes connections and bytes for them."""
    assert server.process is not None
    main = server.process.pid
    pids = [main, *(int(pid) for pid in Path(f"/proc/{main}/task/{main}/children").read_text().split())]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


async def ids(pool: Pool) -> list[int]:
    async with asyncio.timeout(WAIT_S_MAX), pool.connection() as connection:
        rows = await (await connection.execute("SELECT id FROM notes ORDER BY id")).fetchall()
    return [int(str(row[0])) for row in rows]


async def note(pool: Pool, number: int) -> None:
    """Idempotent, like every write of a worker."""
    async with pool.connection() as connection:
        await connection.execute("INSERT INTO notes VALUES (%s) ON CONFLICT DO NOTHING", (number,))


async def test_a_statement_to_a_stopped_server_ends_at_its_bound(pool: Pool, server: PostgresServer) -> None:
    async def ask() -> None:
        async with pool.connection() as connection:
            used.append(connection)
            with stopped(server):
                await connection.execute("SELECT 1")

    used: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
    async with asyncio.timeout(WAIT_S_MAX):
        with pytest.raises(DatabaseSilent, match=r"no answer within 0\.3 s"):
            await ask()
    assert used[0].closed
    await note(pool, 1)
    assert 1 in await ids(pool)


async def test_a_commit_without_an_answer_is_unknown_and_repeating_it_stores_once(
    pool: Pool, server: PostgresServer
) -> None:
    async def store() -> None:
        with ExitStack() as stack:
            async with pool.connection() as connection:
                await connection.execute("INSERT INTO notes VALUES (2) ON CONFLICT DO NOTHING")
                stack.enter_context(stopped(server))  # the COMMIT follows

    async with asyncio.timeout(WAIT_S_MAX):
        with pytest.raises(DatabaseSilent, match="COMMIT may have happened or not"):
            await store()
        await note(pool, 2)
    assert (await ids(pool)).count(2) == 1


async def test_a_pipeline_and_a_server_side_cursor_are_bounded(pool: Pool, server: PostgresServer) -> None:
    async def ask_in_a_pipeline() -> None:
        async with pool.connection() as connection, connection.pipeline():
            with stopped(server):
                await (await connection.execute("SELECT 1")).fetchall()

    async def read_a_page() -> None:
        async with pool.connection() as connection, connection.cursor("numbers") as cursor:
            await cursor.execute("SELECT generate_series(1, 1000)")
            with stopped(server):
                await cursor.fetchmany(10)

    for ask in (ask_in_a_pipeline, read_a_page):
        async with asyncio.timeout(WAIT_S_MAX):
            with pytest.raises(DatabaseSilent):
                await ask()
    assert await ids(pool) is not None


async def test_a_cancelled_call_to_a_stopped_server_ends_once(pool: Pool, server: PostgresServer) -> None:
    """One cancellation, as a deadline makes it: psycopg waited for the server's consent to cancel, without a bound."""

    async def ask() -> None:
        async with pool.connection() as connection:
            assert isinstance(connection, bounded.BoundedConnection)
            connection.call_s_max = 10 * WAIT_S_MAX
            asking.set()
            await connection.execute("SELECT pg_sleep(3600)")

    asking = asyncio.Event()
    task = asyncio.create_task(ask())
    await asking.wait()
    await asyncio.sleep(0.1)
    with stopped(server):
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=WAIT_S_MAX)
        assert done and task.cancelled()
    assert await ids(pool) is not None


async def test_a_pool_of_silent_connections_keeps_its_bound(pool: Pool, server: PostgresServer) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        with stopped(server), pytest.raises((PoolTimeout, psycopg.OperationalError)):
            await ids(pool)
    assert await ids(pool) is not None


async def test_a_network_that_swallows_everything_is_the_same(server: PostgresServer) -> None:
    with FaultProxy(server.port) as proxy:
        dsn = server.dsn().replace(f":{server.port}/", f":{proxy.port}/")
        async with postgres_pool(SecretStr(dsn), size_max=2, call_s_max=CALL_S_MAX) as pool:
            await pool.wait()
            async with asyncio.timeout(WAIT_S_MAX), pool.connection() as connection:
                proxy.stall(stalled=True)
                with pytest.raises(DatabaseSilent):
                    await connection.execute("SELECT 1")
            proxy.stall(stalled=False)
            assert await ids(pool) is not None


async def test_an_error_of_the_server_stays_what_it_is(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with pool.connection() as connection:
            await connection.execute("SELECT 1 / 0")
    assert await ids(pool) is not None


async def test_a_loop_that_asks_all_the_time_is_spared_the_check_and_still_notices_a_restart(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = 0
    check_connection = AsyncConnectionPool.check_connection

    async def counted(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        nonlocal checks
        checks += 1
        await check_connection(connection)

    monkeypatch.setattr(AsyncConnectionPool, "check_connection", counted)
    async with postgres_pool(SecretStr(server.dsn()), size_max=1, call_s_max=5.0, unchecked_s=60.0) as pool:
        await pool.wait()
        for _ in range(3):
            await ids(pool)
        assert checks == 0
        server.kill()
        server.start()
        assert await ids(pool) is not None, "the socket showed that the server had gone"
        connection = pool._pool[0]
        assert isinstance(connection, bounded.BoundedConnection)
        assert connection.answered_within(60.0)
        connection._answered_at -= 61.0
        before = checks
        await ids(pool)
        assert checks == before + 1, "a connection that was not used for a while is asked"


async def test_an_unchecked_connection_to_a_silent_server_costs_one_call(server: PostgresServer) -> None:
    async with postgres_pool(
        SecretStr(server.dsn()), size_max=1, call_s_max=CALL_S_MAX, autocommit=True, unchecked_s=60.0
    ) as pool:
        await ids(pool)
        async with asyncio.timeout(WAIT_S_MAX):
            with stopped(server), pytest.raises(DatabaseSilent):
                await ids(pool)
        assert await ids(pool) is not None


async def test_single_statements_have_no_transaction_around_them(server: PostgresServer) -> None:
    async with postgres_pool(SecretStr(server.dsn()), size_max=1) as pool:
        async with single_statements(pool) as connection:
            await connection.execute("SELECT 1")
            assert connection.info.transaction_status == TransactionStatus.IDLE
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
            assert connection.info.transaction_status == TransactionStatus.INTRANS
        async with asyncio.timeout(WAIT_S_MAX):
            with pytest.raises(psycopg.Error, match=r"terminating|closed"):
                async with single_statements(pool) as connection:
                    await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            await ids(pool)
