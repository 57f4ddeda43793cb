"""Clients against real servers: bounded pools, no silent repetition, and recovery without a restart."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import psycopg
import pytest
import redis
from psycopg_pool import PoolTimeout, TooManyRequests
from pydantic import SecretStr
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from devstack.servers import PostgresServer, RedisServer, free_port
from domain.topology import FINGERPRINT_KEY, Topology
from runtime.postgres.pool import POSTGRES_WAITING_MAX, postgres_pool
from runtime.process import fingerprint
from runtime.redis.client import redis_client as new_client
from runtime.redis.scripts import load_script, run


async def test_redis_answers_bytes_and_a_pool_at_its_bound_makes_callers_wait(
    redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    client = new_client(redis_server.url, connections_max=2)
    redis_client.set("k", "v")
    assert await client.get("k") == b"v"
    before = len(redis_client.client_list())
    assert await asyncio.gather(*(client.get("k") for _ in range(50))) == [b"v"] * 50
    assert len(redis_client.client_list()) <= before + 1
    await client.aclose()


async def test_a_redis_command_that_times_out_is_not_repeated(
    redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    client = new_client(redis_server.url, timeout_s=0.2)
    await client.ping()
    redis_client.execute_command("CLIENT", "PAUSE", "600", "WRITE")
    with pytest.raises(RedisTimeoutError):
        await client.incr("counter")
    await asyncio.sleep(0.8)
    assert int(redis_client.get("counter") or 0) <= 1
    await client.aclose()


@pytest.mark.parametrize("way", ["closed, and the event loop was busy", "reset"])
async def test_connections_that_died_in_the_pool_cause_no_error(own_redis: RedisServer, way: str) -> None:
    """After a restart of Redis the first command on each pooled connection succeeds, and runs once."""
    client = new_client(own_redis.url, connections_max=8)
    await asyncio.gather(*(client.blpop(f"none-{i}", timeout=0.05) for i in range(8)))
    pooled = list(client.connection_pool._available_connections)
    assert len(pooled) == 8 and all(connection.is_connected for connection in pooled)
    assert own_redis.process is not None
    if way == "reset":
        # The kernel answers with a reset when a process dies with unread bytes.
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        for connection in pooled:
            connection._writer.write(b"PING\r\n")
        await asyncio.sleep(0.05)
        await asyncio.to_thread(own_redis.kill)
    else:
        own_redis.kill()
    own_redis.start()  # the event loop does not run in between
    assert sorted(await asyncio.gather(*(client.incr("counter") for _ in range(8)))) == list(range(1, 9))
    await client.aclose()


async def test_a_cancelled_command_ends_its_task_whenever_the_cancellation_comes(
    redis_client: redis.Redis, redis_server: RedisServer
) -> None:
    client = new_client(redis_server.url)
    redis_client.xgroup_create("s", "g", id="0", mkstream=True)

    async def forever() -> None:
        while True:
            await client.xreadgroup("g", "c", {"s": ">"}, count=1, block=1)

    rng = random.Random(1)
    for _ in range(300):
        task = asyncio.create_task(forever())
        await asyncio.sleep(rng.random() * 0.004)
        task.cancel()  # once
        done, _ = await asyncio.wait({task}, timeout=5)
        assert done
    assert await client.ping() is True
    await client.aclose()


async def test_a_redis_that_takes_no_bytes_is_a_time_out(own_redis: RedisServer) -> None:
    client = new_client(own_redis.url, timeout_s=0.3)
    await client.ping()
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RedisTimeoutError):
            await client.set("k", b"x" * 50_000_000)
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert await client.get("k") is None
    await client.aclose()


async def test_redis_restarted_serves_the_next_command(own_redis: RedisServer) -> None:
    client = new_client(own_redis.url)
    await client.set("k", "v")
    own_redis.kill()
    with pytest.raises((RedisConnectionError, OSError)):
        await client.get("k")
    own_redis.start()
    assert await client.get("k") == b"v"
    await client.aclose()


async def test_scripts_survive_a_flushed_script_cache(redis_client: redis.Redis, redis_server: RedisServer) -> None:
    client = new_client(redis_server.url)
    script = load_script("runtime.redis", "lease_acquire-2")
    assert await run(client, script, ("{a}l", "{a}f"), (60_000,)) == 1
    redis_client.script_flush()
    assert await run(client, script, ("{b}l", "{b}f"), (60_000,)) == 1
    assert redis_client.script_exists(script.sha) == [True]
    await client.aclose()


async def test_fingerprints_are_set_once_and_compared(redis_client: redis.Redis, redis_server: RedisServer) -> None:
    client = new_client(redis_server.url)
    await fingerprint.check(client, Topology())
    await fingerprint.check(client, Topology())
    with pytest.raises(fingerprint.FingerprintMismatch, match="FLASHSALE_LANES") as caught:
        await fingerprint.check(client, Topology(lanes=5))
    assert caught.value.theirs == Topology().fingerprint
    assert redis_client.get(FINGERPRINT_KEY) == Topology().fingerprint.encode()
    await client.aclose()


async def test_waiting_for_redis_ends_when_the_process_is_to_stop() -> None:
    client = new_client(f"redis://127.0.0.1:{free_port()}/0")
    pauses: list[float] = []

    async def pause(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 3

    assert await fingerprint.check_when_reachable(client, Topology(), pause) is False
    assert len(pauses) == 3
    await client.aclose()


async def test_postgres_waiting_is_bounded(postgres_server: PostgresServer) -> None:
    pool = postgres_pool(SecretStr(postgres_server.dsn()), size_max=1)
    await pool.open()
    try:
        async with pool.connection() as held:
            await held.execute("SELECT 1")
            waiting = [asyncio.create_task(pool.getconn()) for _ in range(POSTGRES_WAITING_MAX)]
            await asyncio.sleep(0.05)
            with pytest.raises(TooManyRequests):
                await pool.getconn()
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
    finally:
        await pool.close()


async def test_postgres_restarted_serves_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = PostgresServer(tmp_path_factory.mktemp("postgres-restart"), settings=["fsync=off"])
    server.start()
    pool = postgres_pool(SecretStr(server.dsn()), size_max=2)
    try:
        await pool.open()
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            async with pool.connection(timeout=0.5) as connection:
                await connection.execute("SELECT 1")
        server.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    async with pool.connection(timeout=1) as connection:
                        await connection.execute("SELECT 1")
                    break
                except (psycopg.OperationalError, PoolTimeout):
                    continue
    finally:
        await pool.close()
        server.stop()
