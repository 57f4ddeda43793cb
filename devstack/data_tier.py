"""The data tier of a full stack for `flashsale status`: roles, lags, connections. Reads only, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import psycopg
import redis
from psycopg.rows import dict_row
from redis.exceptions import RedisError

from ops.stack_file import Stack
from runtime.postgres.connection import connect_command

CALL_S_MAX: Final = 2.0
# Lags are those of the standby as its primary knows them.
_POSTGRES = """
SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END AS role,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
    r.application_name AS standby, r.sync_state, coalesce(extract(epoch FROM r.replay_lag), 0)::float8 AS lag_s,
    pg_wal_lsn_diff(r.sent_lsn, r.replay_lsn)::bigint AS lag_bytes, (SELECT status FROM pg_stat_wal_receiver) AS receiving
FROM (SELECT 1) AS one LEFT JOIN pg_stat_replication r ON r.state = 'streaming' LIMIT 1
"""
Figures = dict[str, Any]


def data_tier(stack: Stack) -> dict[str, Figures]:
    """Process -> role and figures, or `error`, for those that answer nothing. Empty for an embedded stack."""
    looks: dict[str, Callable[[], Figures]] = {
        **{name: partial(_postgres, dsn) for name, dsn in stack.postgres_servers.items()},
        **{name: partial(_pooler, dsn) for name, dsn in stack.poolers.items()},
    }
    if not looks:
        return {}
    if stack.redis_replica_url is not None:
        looks |= {"redis": partial(_redis, stack.redis_url), "redis-replica": partial(_redis, stack.redis_replica_url)}
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        return dict(zip(looks, pool.map(_look, looks.values()), strict=True))


def in_words(figures: Figures) -> str:
    """One line about a server."""
    if "error" in figures:
        return f"does not answer: {figures['error']}"
    return ", ".join(f"{name} {value}" for name, value in figures.items() if name != "role" and value is not None)


def _look(look: Callable[[], Figures]) -> Figures:
    try:
        return look()
    except (psycopg.Error, RedisError, OSError) as error:
        return {"error": type(error).__name__}


def _rows(dsn: str, statement: str) -> list[Figures]:
    with connect_command(dsn, call_s_max=CALL_S_MAX, connect_s_max=int(CALL_S_MAX)) as connection:
        return connection.cursor(row_factory=dict_row).execute(statement.encode()).fetchall()


def _postgres(dsn: str) -> Figures:
    (row,) = _rows(dsn, _POSTGRES)
    if row["standby"] is None:
        row |= {"lag_s": None}
    return row


def _pooler(console: str) -> Figures:
    pools = [row for row in _rows(console, "SHOW POOLS") if row["database"] != "pgbouncer"]

    def total(*columns: str) -> int:
        return sum(int(row[column]) for row in pools for column in columns)

    return {
        "role": "pooler",
        "clients": total("cl_active", "cl_waiting"),
        "waiting": total("cl_waiting"),
        "longest_wait_s": max((int(row["maxwait"]) for row in pools), default=0),
        "servers": total("sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login"),
    }


def _redis(url: str) -> Figures:
    with redis.Redis.from_url(url, socket_timeout=CALL_S_MAX, socket_connect_timeout=CALL_S_MAX) as client:
        replication, clients = client.info("replication"), client.info("clients")
    figures = {"role": replication["role"], "connections": clients["connected_clients"]}
    if figures["role"] == "slave":
        return figures | {"role": "replica", "link": replication["master_link_status"]}
    lags = [value["lag"] for name, value in replication.items() if name.startswith("slave") and isinstance(value, dict)]
    return figures | {"role": "primary", "replicas": len(lags), "lag_s": max(lags, default=None)}
