"""The scripts of docker-compose.yml that make a PostgreSQL a primary or a replica, on real servers, without images."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from devstack.children import free_port, log_tail, spawn
from devstack.servers import PostgresServer
from tests.devstack.compose_file import SCRIPTS

WAIT_S_MAX = 60.0
_ENTRY = (
    '#!/bin/sh\nexec "$@" -D "$PGDATA"\n'  # in place of the image's script, which does the same for data that exists
)


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path / "primary")
    server.start()
    yield server
    server.destroy()


@contextmanager
def running_replica(primary: PostgresServer, place: Path, env: dict[str, str]) -> Iterator[str]:
    """The DSN of a server that `replica.sh` starts; it answers when the block begins."""
    port, log = free_port(), place / "replica.log"
    argv = [
        "bash", str(place / "replica.sh"), "postgres", f"-cport={port}", "-clisten_addresses=127.0.0.1",
        "-cunix_socket_directories=", "-cmax_connections=200",
    ]  # fmt: skip
    process = spawn(argv, env=env, log=log, user=primary.user, cwd=place)
    dsn = primary.dsn("postgres").replace(f":{primary.port}/", f":{port}/")
    try:
        until(lambda: answer(dsn, "SELECT pg_is_in_recovery()") is True, log)
        yield dsn
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(WAIT_S_MAX)


def answer(dsn: str, statement: str) -> object:
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as connection:
            row = connection.execute(statement).fetchone()
    except psycopg.Error:
        return None
    return None if row is None else row[0]


def until(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline, log_tail(log)
        time.sleep(0.05)


def test_a_replica_copies_its_primary_and_commits_wait_for_it(primary: PostgresServer, tmp_path: Path) -> None:
    place = primary.data.parent / "replica-place"  # where the user of PostgreSQL may enter
    (place / "secrets").mkdir(parents=True)
    (place / "secrets" / "replication_password").write_text("of-the-replica\n")
    (place / "docker-entrypoint.sh").write_text(_ENTRY)
    (place / "docker-entrypoint.sh").chmod(0o755)
    shutil.copy(SCRIPTS / "replica.sh", place)
    if primary.user is not None:
        for path in (place, *place.rglob("*")):
            os.chown(path, primary.user, -1)
    programs = Path(primary.argv[0]).parent
    env = {
        **primary.env, "PATH": f"{place}:{programs}:{os.environ['PATH']}", "SECRETS": str(place / "secrets"),
        "PGHOST": "127.0.0.1", "PGPORT": str(primary.port), "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    of_primary = {
        "PGDATA": str(primary.data), "POSTGRES_USER": "flashsale", "POSTGRES_DB": "postgres", "FURTHER_DATABASE": "more",
        "PGPASSWORD": primary.password,
    }  # fmt: skip
    done = subprocess.run(
        [SCRIPTS / "primary.sh"], env=env | of_primary, capture_output=True, text=True, check=False, timeout=WAIT_S_MAX
    )
    assert done.returncode == 0, done.stderr
    primary.stop()
    primary.start()
    of_replica = {
        "PGDATA": str(place / "pgdata"), "PRIMARY": "127.0.0.1", "PRIMARY_PORT": str(primary.port),
        "PGPASSFILE": str(place / "pgpass"),
    }  # fmt: skip
    (place / "copy").mkdir()  # of a copy that was interrupted
    for table in ("first", "second"):  # the second start finds the data of the first
        with running_replica(primary, place, env | of_replica) as replica:
            until(
                lambda: answer(primary.dsn("postgres"), "SELECT sync_state FROM pg_stat_replication") == "sync",
                tmp_path,
            )
            with psycopg.connect(primary.dsn("postgres"), connect_timeout=5) as connection:
                connection.execute(f"CREATE TABLE {table} ()")
            until(
                lambda table=table: answer(replica, f"SELECT to_regclass('{table}')::text") == table,
                place / "replica.log",
            )
    assert answer(primary.dsn("more"), "SELECT 1") == 1
    assert answer(primary.dsn("postgres"), "SELECT slot_name::text FROM pg_replication_slots") == "replica"
    assert "of-the-replica" not in (place / "pgdata" / "postgresql.auto.conf").read_text()
