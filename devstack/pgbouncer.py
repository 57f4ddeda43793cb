"""A real PgBouncer of the distribution's package: its configuration, its start, its end, its figures.

Transaction pooling: a session belongs to a client only as long as a transaction. Works as root, as another user, and as
an ordinary user. Does not supervise.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from devstack.children import free_port, spawn
from devstack.places import place_of, unprivileged_uid, write_private
from devstack.server_process import ServerError, ServerProcess
from runtime.postgres.connection import connect_command

PROGRAM_VARIABLE: Final = "PGBOUNCER"  # path of the program
PACKAGE: Final = "pgbouncer"
HOW_TO_INSTALL: Final = (
    "PgBouncer is not installed: `apt-get install pgbouncer` (Debian, Ubuntu; the service need not run), "
    f"or set {PROGRAM_VARIABLE} to the path of the program"
)
_PLACES = ("/usr/sbin/pgbouncer", "/usr/local/bin/pgbouncer")
USER: Final = "flashsale"
ADMIN: Final = "pgbouncer"  # name of the database that is the console

POOL_SIZE: Final = 20  # connections to PostgreSQL for each database
CLIENTS_MAX: Final = 2000
# A client that gets no connection to PostgreSQL within this time is disconnected with an error.
QUERY_WAIT_S_MAX: Final = 2
CALL_S_MAX: Final = 5.0


def program() -> str | None:
    """Path of PgBouncer; None where it is not installed."""
    chosen = os.environ.get(PROGRAM_VARIABLE)
    if chosen:
        return chosen if os.access(chosen, os.X_OK) else None
    return next((path for path in _PLACES if os.access(path, os.X_OK)), shutil.which("pgbouncer"))


@dataclass(slots=True)
class PgBouncer(ServerProcess):
    """A pooler before one PostgreSQL server, for all its databases. Clients log in with the server's own password."""

    folder: Path
    server_port: int
    password: str = field(repr=False)
    port: int = field(default_factory=free_port)
    outside: Path | None = None
    pool_size: int = POOL_SIZE
    clients_max: int = CLIENTS_MAX
    query_wait_s_max: int = QUERY_WAIT_S_MAX
    process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str) -> str:
        """Connection string of a database through the pooler. Contains the password: never log it."""
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def user(self) -> int | None:
        """The uid to run as, because PgBouncer refuses to run as root; None for our own."""
        return unprivileged_uid()

    @property
    def log(self) -> Path:
        """Path of the log."""
        return self.folder / "pgbouncer.log"

    @property
    def env(self) -> dict[str, str]:
        """The environment to run in."""
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    @property
    def argv(self) -> list[str]:
        """The command line; the supervisor uses it, too."""
        path = program()
        if path is None:
            raise ServerError(HOW_TO_INSTALL)
        return [path, str(self._file("pgbouncer.ini"))]

    def _file(self, name: str) -> Path:
        return (place_of(self.folder, outside=self.outside, user=self.user) or self.folder) / name

    def initialise(self) -> None:
        """Write the configuration and the list of users. A running PgBouncer reads both again at `reload`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_private(self._file("userlist.txt"), f'"{USER}" "{self.password}"\n', user=self.user)
        write_private(self._file("pgbouncer.ini"), "\n".join(self._configuration()) + "\n", user=self.user)

    def _configuration(self) -> list[str]:
        return [
            "[databases]",
            # PgBouncer 1.18 does not follow IntervalStyle as it follows TimeZone and DateStyle of a client.
            f"* = host=127.0.0.1 port={self.server_port} connect_query='SET IntervalStyle TO postgres'",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = scram-sha-256",
            f"auth_file = {self._file('userlist.txt')}",
            f"admin_users = {USER}",
            "pool_mode = transaction",
            f"max_client_conn = {self.clients_max}",
            f"default_pool_size = {self.pool_size}",
            f"query_wait_timeout = {self.query_wait_s_max}",
            # A server that was away is asked again at once, not after the default of 15 s.
            "server_login_retry = 1",
            "server_connect_timeout = 3",
            "server_idle_timeout = 300",
            "server_check_delay = 5",
            "tcp_keepidle = 10",
            "tcp_keepintvl = 5",
            "tcp_keepcnt = 2",
            "log_connections = 0",
            "log_disconnections = 0",
            "log_stats = 0",
        ]

    def start(self) -> None:
        """Start, and return when the console answers."""
        self.initialise()
        self.process = spawn(self.argv, env=self.env, log=self.log, user=self.user, orphan_signal=signal.SIGINT)
        self.await_ready(self.answers, name=f"pgbouncer on port {self.port}", logs=(self.log,))

    def answers(self) -> bool:
        """Whether the console answers. The server behind may be away."""
        try:
            self.show("version")
        except psycopg.OperationalError:
            return False
        return True

    def show(self, subject: str) -> list[dict[str, Any]]:
        """Rows of SHOW `pools`, `stats`, `clients`, `servers` or `lists`. Raises psycopg.Error."""
        return self.command(f"SHOW {subject}")

    def command(self, command: str) -> list[dict[str, Any]]:
        """The rows of a command of the console, such as PAUSE or RELOAD. Raises psycopg.Error."""
        with connect_command(self.dsn(ADMIN), call_s_max=CALL_S_MAX) as connection:
            cursor = connection.cursor(row_factory=dict_row).execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def reload(self) -> None:
        """Apply another `server_port` or other bounds without disconnecting clients."""
        self.initialise()
        self.command("RELOAD")

    def stop(self) -> None:
        """Stop at once: a client's transaction would be cut by the end of its server, too."""
        self.end(signal.SIGTERM, then=signal.SIGKILL, s_max=5.0)

    def destroy(self) -> None:
        """Stop, and remove the folder, also the part outside of it."""
        self.stop()
        place = place_of(self.folder, outside=self.outside, user=self.user) if self.folder.exists() else None
        for folder in (self.folder, *(() if place is None else (place,))):
            shutil.rmtree(folder, ignore_errors=True)
