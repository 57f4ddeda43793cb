"""Two PostgreSQL servers, a primary and its streaming standby: initialised, cloned, told their roles.

The roles are in the data folders: a standby has `standby.signal`. Settings that depend on the role are in `role.conf`
beside it, which a running server reads again on SIGHUP. A start writes them anew, because ports change between runs.

    first = PostgresNode(folder / "postgres-shard-0", name="shard_0", settings=SETTINGS, checksums=True)
    second = PostgresNode(folder / "postgres-shard-0-replica", name="shard_0_replica", settings=SETTINGS)
    pair = PostgresPair(first, second)
    pair.initialise()        then start `pair.primary`
    pair.prepare_standby()   then start `pair.standby`

A server with a fence was a primary and has a successor (`postgres_failover`): it never starts as a primary again.
Does not supervise.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import psycopg

from devstack.children import log_tail, spawn
from devstack.places import write_private
from devstack.server_process import ServerError
from devstack.servers import PostgresServer
from runtime.postgres.connection import connect_command

CLONE_S_MAX: Final = 300.0
CALL_S_MAX: Final = 40.0
PROMOTE_S_MAX: Final = 30
SLOW_STATEMENT_MS: Final = 500  # a statement that takes longer is logged, without its parameters
# WAL that a primary keeps for a standby that is away. Beyond it the standby must be cloned again: the disk is safer.
SLOT_WAL_MB_MAX: Final = 1024
STREAMING_DELAY_MS_MAX: Final = 1000  # a query on a standby that conflicts with replay is cancelled after this time

SETTINGS: Final = (
    # Small: many servers share one machine.
    "shared_buffers=64MB",
    "max_connections=100",
    "max_wal_size=1GB",
    "wal_log_hints=on",
    f"max_slot_wal_keep_size={SLOT_WAL_MB_MAX}MB",
    f"max_standby_streaming_delay={STREAMING_DELAY_MS_MAX}ms",
    "wal_sender_timeout=10s",
    "wal_receiver_timeout=10s",
    "wal_receiver_status_interval=1s",
    "wal_retrieve_retry_interval=500ms",
    "shared_preload_libraries=pg_stat_statements",
    "pg_stat_statements.max=1000",
    f"log_min_duration_statement={SLOW_STATEMENT_MS}ms",
    "log_parameter_max_length=0",  # parameters are addresses, names and hashes
)
_ROLE_FILE = "role.conf"
_SLOT = """
SELECT pg_create_physical_replication_slot(%(name)s, true)
WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(name)s)
"""
_LOST_SLOT = """
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE slot_name = %(name)s AND wal_status = 'lost' AND NOT active
"""
_REPLICATION = """
SELECT application_name, state, sync_state, pg_wal_lsn_diff(pg_current_wal_flush_lsn(), replay_lsn)::bigint,
    coalesce(extract(epoch FROM replay_lag), 0)::float8
FROM pg_stat_replication WHERE application_name = %(name)s
"""


@dataclass(frozen=True, slots=True)
class Following:
    """A standby as its primary sees it. `replay_bytes` and `replay_s`: how far it is behind."""

    state: str  # streaming, catchup, backup
    sync_state: str  # sync, async, potential, quorum
    replay_bytes: int
    replay_s: float


class Fence(StrEnum):
    """Stages of a primary that was replaced."""

    FENCED = "fenced"  # it has what its successor may lack
    REWINDING = "rewinding"  # its data cannot be trusted: clone
    FOLLOWING = "following"  # it is a standby of its successor, and must not be rewound: it would write WAL of its own


@dataclass(slots=True)
class PostgresNode(PostgresServer):
    """One server of a pair. `name` is its replication slot and its application name: `[a-z0-9_]`."""

    name: str = ""

    @property
    def is_standby(self) -> bool:
        """Whether the data folder is that of a standby."""
        return (self.data / "standby.signal").exists()

    @property
    def fence(self) -> Path:
        """File with a word of `Fence`. Not in the data folder, which `pg_rewind` makes like the successor's."""
        return self.folder / "fence"

    @property
    def fenced(self) -> Fence | None:
        """How far this server is on its way from a primary to the standby of its successor; None: not on it."""
        return Fence(self.fence.read_text(encoding="utf-8").strip()) if self.fence.exists() else None

    @property
    def is_fenced(self) -> bool:
        """Whether this server has a successor and is not known to be in step with it."""
        return self.fenced is not None

    @property
    def exists(self) -> bool:
        """Whether the data folder is complete."""
        return self.folder.exists() and (self.data / "PG_VERSION").exists()

    def initialise(self) -> None:
        """Run `initdb` unless the cluster exists, and include `role.conf`."""
        PostgresServer.initialise(self)
        configuration = self.data / "postgresql.conf"
        include = f"include_if_exists = '{_ROLE_FILE}'\n"
        text = configuration.read_text(encoding="utf-8")
        if include not in text:
            # The command line has these; at each SIGHUP the server would report the values of the file as errors.
            text = re.sub(r"^(?=(shared_buffers|max_connections|max_wal_size)\b)", "#", text, flags=re.MULTILINE)
            write_private(configuration, text + include, user=self.user)

    def write_role(self, *, follows: PostgresNode | None, awaits: PostgresNode | None) -> None:
        """Write `role.conf`: the primary to follow, and the standby that each COMMIT waits for."""
        lines = [f"synchronous_standby_names = '{'' if awaits is None else f'FIRST 1 ({awaits.name})'}'"]
        if follows is not None:
            conninfo = f"{self.conninfo(follows)} application_name={self.name}"
            lines += [f"primary_conninfo = '{conninfo}'", f"primary_slot_name = '{self.name}'"]
        write_private(self.data / _ROLE_FILE, "".join(f"{line}\n" for line in lines), user=self.user)

    def conninfo(self, other: PostgresServer) -> str:
        """How a program of this server reaches another one: without the password, which is in a file."""
        passfile = self.data.with_name("pgpass")
        write_private(passfile, f"*:*:*:flashsale:{other.password}\n", user=self.user)
        return f"host=127.0.0.1 port={other.port} user=flashsale passfile={passfile}"

    def promote(self) -> None:
        """Take writes, unless it does already. Only for the successor of a fenced primary. Raises ServerError."""
        ((recovering,),) = self.ask("SELECT pg_is_in_recovery()")
        if recovering and self.ask(f"SELECT pg_promote(true, {PROMOTE_S_MAX})") != [(True,)]:
            raise ServerError(f"{self.name} was not promoted within {PROMOTE_S_MAX} s")

    def make_slot(self, name: str) -> None:
        """Keep WAL for the standby of this name."""
        self.ask(_SLOT, name=name)

    def drop_lost_slot(self, name: str) -> bool:
        """Whether WAL that the standby of this name needs was removed; its slot is dropped then."""
        return bool(self.ask(_LOST_SLOT, name=name))

    def reload(self) -> None:
        """Read `role.conf` again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def clone(self, primary: PostgresServer) -> None:
        """Replace the data by a copy of a running primary's, as a standby. Raises ServerError.

        A copy that is interrupted is not used: it gets its name when it is complete.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_private(self.folder / "password", primary.password, user=None)
        shutil.rmtree(self.data, ignore_errors=True)
        copy = self.make_folder(self.data.with_name("data.new"))
        argv = [
            self.program("pg_basebackup"), "-d", self.conninfo(primary), "-D", str(copy),
            "-X", "stream", "-S", self.name, "-c", "fast", "--sync-method=syncfs",
        ]  # fmt: skip
        if spawn(argv, env=self.env, log=self.log, user=self.user).wait(CLONE_S_MAX) != 0:
            raise ServerError(f"pg_basebackup: {log_tail(self.log)}")
        write_private(copy / "standby.signal", "", user=self.user)
        copy.replace(self.data)

    def ask(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of one statement on the maintenance database, in bounded time."""
        with connect_command(self.dsn(), call_s_max=CALL_S_MAX) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True, slots=True)
class PostgresPair:
    """`first` is the primary of a new pair. `synchronous`: a COMMIT waits until the standby has it on disk."""

    first: PostgresNode
    second: PostgresNode
    synchronous: bool = True

    @property
    def primary(self) -> PostgresNode:
        """The server that takes writes."""
        if self.second.is_fenced:
            return self.first
        has_successor = self.first.is_fenced or (self.first.exists and self.first.is_standby)
        return self.second if has_successor else self.first

    @property
    def standby(self) -> PostgresNode:
        """The other server."""
        return self.first if self.primary is self.second else self.second

    def initialise(self) -> None:
        """Prepare the primary to be started."""
        self.primary.initialise()
        self.primary.write_role(follows=None, awaits=self.standby if self.synchronous else None)

    def prepare_standby(self) -> None:
        """Prepare the standby to be started; the primary runs. Clones it unless it can go on from its own data.

        It cannot when it was never cloned completely, when the primary has removed WAL that it needs, or when it was
        the primary itself. A failover that was interrupted before the promotion takes effect.
        """
        primary, standby = self.primary, self.standby
        primary.promote()
        lost = primary.drop_lost_slot(standby.name)
        primary.make_slot(standby.name)
        if lost or standby.fenced in (Fence.FENCED, Fence.REWINDING) or not standby.exists:
            standby.clone(primary)
        standby.fence.unlink(missing_ok=True)
        standby.write_role(follows=primary, awaits=None)

    def following(self) -> Following | None:
        """The standby as the primary sees it; None while it is not connected. Raises psycopg.Error."""
        rows = self.primary.ask(_REPLICATION, name=self.standby.name)
        return Following(*rows[0][1:]) if rows else None

    def in_step(self) -> bool:
        """Whether the standby streams, and is the one that COMMITs wait for if the pair is synchronous."""
        with suppress(psycopg.Error):
            following = self.following()
            if following is not None and following.state == "streaming":
                return following.sync_state == "sync" or not self.synchronous
        return False

    def start(self) -> None:
        """Start both servers; return when the standby is in step."""
        self.initialise()
        self.primary.start()
        self.start_standby()

    def start_standby(self) -> None:
        """Start the standby of a running primary; return when it is in step."""
        self.prepare_standby()
        self.standby.start()
        logs = (self.standby.log, self.primary.log)
        self.standby.await_ready(self.in_step, name=f"standby {self.standby.name}", logs=logs)

    def destroy(self) -> None:
        """Stop both servers and remove their data."""
        for node in (self.primary, self.standby):
            node.destroy()


def install_statistics(node: PostgresNode) -> None:
    """Make `pg_stat_statements` readable in the maintenance database. It counts statements of all databases."""
    node.ask("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")


def pair_at(
    folder: Path, name: str, *, place: Callable[[str], Path] | None = None, extra: tuple[str, ...] = ()
) -> PostgresPair:
    """A pair with its data in `folder`/postgres-NAME and -replica, or in the `place` of these names (see `places`)."""
    first, second = (
        PostgresNode(
            folder / server,
            settings=(*SETTINGS, *extra),
            outside=None if place is None else place(server),
            checksums=True,
            name=server.removeprefix("postgres-").replace("-", "_"),
        )
        for server in (f"postgres-{name}", f"postgres-{name}-replica")
    )
    return PostgresPair(first, second)
