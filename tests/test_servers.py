"""The servers that every other test stands on."""

from __future__ import annotations

import psycopg
import pytest
import redis

from devstack.servers import PostgresServer, RedisServer


def test_redis_keeps_what_it_answered_over_a_crash(own_redis: RedisServer) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.set("key", "value")
    own_redis.kill()
    own_redis.start()
    with redis.Redis(port=own_redis.port) as client:
        assert client.get("key") == b"value"


def test_postgres_has_contrib_and_asks_for_the_password(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.dsn()) as connection:
        row = connection.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_trgm'").fetchone()
    assert row == (1,)
    without = postgres_server.dsn().replace(postgres_server.password, "wrong")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(without).close()
