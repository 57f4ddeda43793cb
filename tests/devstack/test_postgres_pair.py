"""A primary and its standby: cloned, synchronous, bounded in the WAL that is kept, logged, and pooled."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis

from devstack.pgbouncer import PROGRAM_VARIABLE, PgBouncer, program
from devstack.postgres_pair import SLOT_WAL_MB_MAX, SLOW_STATEMENT_MS, PostgresPair, pair_at
from devstack.server_process import ServerError
from devstack.servers import RedisServer
from tests.fixtures.fix_pair import Tier, until

SEGMENT_MB = 16


@pytest.fixture
def pair(tier: Tier) -> PostgresPair:
    return tier.pair


def test_a_commit_is_on_the_standby_when_it_is_answered(pair: PostgresPair) -> None:
    pair.primary.ask("CREATE TABLE kept (number integer)")
    for number in range(20):
        pair.primary.ask(f"INSERT INTO kept VALUES ({number})")
    following = pair.following()
    assert following is not None and (following.state, following.sync_state) == ("streaming", "sync")
    until(lambda: pair.standby.ask("SELECT count(*) FROM kept") == [(20,)])
    assert pair.standby.ask("SELECT pg_is_in_recovery()") == [(True,)]


def test_a_commit_waits_for_a_standby_that_is_stopped(pair: PostgresPair) -> None:
    standby = pair.standby.process
    assert standby is not None
    receiver = _child(standby.pid, "walreceiver")
    os.kill(receiver, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        try:
            writing = pool.submit(pair.primary.ask, "CREATE TABLE awaited (number integer)")
            until(lambda: pair.primary.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
            assert not writing.done()
        finally:
            os.kill(receiver, signal.SIGCONT)
        writing.result()
    until(pair.in_step)


def _child(parent: int, title: str) -> int:
    """The pid of a process of a PostgreSQL server."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if title in Path(f"/proc/{pid}/cmdline").read_text():
            return int(pid)
    raise AssertionError(f"no {title} below {parent}")


def test_the_pair_can_be_rewound_keeps_bounded_wal_and_measures_statements(pair: PostgresPair) -> None:
    for setting, value in {
        "data_checksums": "on",
        "wal_log_hints": "on",
        "max_slot_wal_keep_size": f"{SLOT_WAL_MB_MAX // 1024}GB",
        "log_min_duration_statement": f"{SLOW_STATEMENT_MS}ms",
        "log_parameter_max_length": "0",
    }.items():
        assert pair.primary.ask(f"SHOW {setting}") == [(value,)]
    assert Path(pair.primary.program("pg_rewind")).exists()
    assert pair.primary.ask("SELECT slot_name, active FROM pg_replication_slots") == [("shard_0_replica", True)]
    assert pair.primary.ask("SELECT count(*) > 0 FROM pg_stat_statements WHERE query LIKE 'SHOW%%'") == [(True,)]


def test_a_slow_statement_is_logged_without_its_parameters(pair: PostgresPair) -> None:
    pair.primary.ask("SELECT pg_sleep(%(s)s::float8), length(%(secret)s)", s=0.6, secret="of-a-buyer")
    until(lambda: "pg_sleep" in pair.primary.log.read_text())
    assert "of-a-buyer" not in pair.primary.log.read_text()


def test_no_password_is_on_a_command_line(tier: Tier) -> None:
    password = tier.pair.primary.password
    for argv in (tier.pair.primary.argv, tier.pair.standby.argv, tier.pooler.argv):
        assert password not in " ".join(argv)


def test_roles_and_data_last_over_a_stop_with_other_ports(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A start after the standby lost its place clones it again; a start after a plain stop does not."""
    folder = tmp_path_factory.mktemp("again")
    settings = ("fsync=off", f"max_slot_wal_keep_size={2 * SEGMENT_MB}MB")
    pair = pair_at(folder, "shard-1", extra=settings)
    try:
        pair.start()
        pair.primary.ask("CREATE TABLE kept AS SELECT 7 AS number")
        for server in (pair.primary, pair.standby):
            server.stop()
        begun = (pair.standby.data / "backup_label.old").stat().st_mtime_ns
        pair = pair_at(folder, "shard-1", extra=settings)
        pair.start()
        assert pair.standby.ask("SELECT number FROM kept") == [(7,)]
        assert (pair.standby.data / "backup_label.old").stat().st_mtime_ns == begun
        pair.standby.stop()
        pair.primary.write_role(follows=None, awaits=None)
        pair.primary.reload()
        until(lambda: pair.primary.ask("SHOW synchronous_standby_names") == [("",)])
        until(lambda: _wal_status(pair) == "lost")
        pair.primary.write_role(follows=None, awaits=pair.standby)
        pair.primary.reload()
        pair.start_standby()
        assert (pair.standby.data / "backup_label.old").stat().st_mtime_ns != begun
        assert pair.standby.ask("SELECT number FROM kept") == [(7,)]
    finally:
        pair.destroy()
    assert not list(folder.iterdir())


def _wal_status(pair: PostgresPair) -> object:
    """Of the standby's slot, after another checkpoint: only a checkpoint gives a slot up."""
    pair.primary.ask("SELECT pg_switch_wal(), txid_current()")
    pair.primary.ask("CHECKPOINT")
    ((status,),) = pair.primary.ask("SELECT wal_status FROM pg_replication_slots")
    return status


def test_sessions_of_the_pooler_are_shared_and_its_console_counts(tier: Tier) -> None:
    dsn = tier.pooler.dsn("postgres")
    clients = [psycopg.connect(dsn, autocommit=True, prepare_threshold=None) for _ in range(12)]
    try:
        for client in clients:
            assert client.execute("SHOW IntervalStyle").fetchone() == ("postgres",)
        (pool,) = [row for row in tier.pooler.show("pools") if row["database"] == "postgres"]
        assert pool["cl_active"] == 12
        assert pool["sv_idle"] + pool["sv_active"] + pool["sv_used"] <= 4
    finally:
        for client in clients:
            client.close()


def test_an_exhausted_pool_is_an_error_after_a_bounded_wait(tier: Tier) -> None:
    dsn = tier.pooler.dsn("postgres")
    holders = [psycopg.connect(dsn) for _ in range(4)]
    try:
        for holder in holders:
            holder.execute("SELECT 1")
        with (
            psycopg.connect(dsn, autocommit=True) as client,
            pytest.raises(psycopg.OperationalError, match="query_wait_timeout"),
        ):
            client.execute("SELECT 1")
    finally:
        for holder in holders:
            holder.close()


def test_the_pooler_follows_another_server_without_losing_clients(tier: Tier) -> None:
    """How a failover repoints it: the connections of clients stay."""
    with psycopg.connect(tier.pooler.dsn("postgres"), autocommit=True) as client:
        assert client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        tier.pooler.server_port = tier.pair.standby.port
        tier.pooler.reload()
        try:
            until(lambda: client.execute("SELECT pg_is_in_recovery()").fetchone() == (True,))
        finally:
            tier.pooler.server_port = tier.pair.primary.port
            tier.pooler.reload()
        until(lambda: client.execute("SELECT pg_is_in_recovery()").fetchone() == (False,))


def test_a_missing_pooler_is_said_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PROGRAM_VARIABLE, str(tmp_path / "nothing"))
    assert program() is None
    with pytest.raises(ServerError, match="apt-get install pgbouncer"):
        PgBouncer(tmp_path, 1, "password").start()


def test_a_replica_of_redis_follows_with_the_password(tmp_path: Path) -> None:
    first = RedisServer(tmp_path / "first", password="of-both")
    second = RedisServer(tmp_path / "second", password="of-both", follows=first.port)
    try:
        first.start()
        second.start()
        with redis.Redis.from_url(first.url) as client, redis.Redis.from_url(second.url) as replica:
            client.set("key", "value")
            until(lambda: replica.get("key") == b"value")
            with pytest.raises(redis.exceptions.ReadOnlyError):
                replica.set("key", "other")
            # A SIGTERM is ignored while the replica writes its first append-only file.
            until(lambda: replica.info("persistence")["aof_rewrite_in_progress"] == 0)
    finally:
        second.destroy()
        first.destroy()
