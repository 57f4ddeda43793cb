"""A copy of one PostgreSQL server: its files, and its write-ahead log up to a named point.

A replication slot keeps the log from before the copy of the files until it has been fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ops.backup.errors import BackupError
from ops.backup.postgres_tools import Tools, connection_environ
from runtime.postgres.connection import connect_command

CALL_S_MAX: Final = 30.0
LOG_S_MAX: Final = 600.0
_INCREMENTAL_FROM: Final = 170_000
FILES: Final = "files"  # of the server, as pg_basebackup writes them
WAL: Final = "wal"
MANIFEST: Final = "backup_manifest"


@dataclass(frozen=True, slots=True)
class Server:
    """A PostgreSQL server with its databases of ours. `name`: of its first database."""

    name: str
    dsn: str = field(repr=False)
    databases: tuple[str, ...]


def servers_of(dsns: Sequence[tuple[str, str]]) -> list[Server]:
    """The servers behind (database's name, address), in this order."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name, dsn in dsns:
        parts = conninfo_to_dict(dsn)
        place = (str(parts.get("host", "localhost")), str(parts.get("port", 5432)))
        found.setdefault(place, []).append((name, dsn))
    return [Server(each[0][0], each[0][1], tuple(name for name, _ in each)) for each in found.values()]


class PostgresCopy:
    """In this order: `files`, `mark`, `log`. As a context manager it removes its slot from the server."""

    def __init__(self, server: Server, folder: Path, *, backup_id: str, tools: Tools) -> None:
        """Writes into `folder`, which must not exist."""
        self.server = server
        self.folder = folder
        self._id = backup_id
        self._slot = f"flashsale_backup_{backup_id}"
        self._tools = tools
        self._end = ""
        self.facts: dict[str, Any] = {"databases": list(server.databases)}

    def __enter__(self) -> Self:
        """Check the server and create the slot. Raises BackupError."""
        self.folder.mkdir(mode=0o700)
        with self._connect() as connection:
            self._check(connection)
            # Of a backup that was killed: it would keep the log for ever. The caller sees to it that no other one runs.
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                " WHERE slot_name LIKE 'flashsale\\_backup\\_%' AND NOT active"
            )
            connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", (self._slot,))
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the slot."""
        with self._connect() as connection:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                (self._slot,),
            )

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            return connect_command(self.server.dsn, call_s_max=CALL_S_MAX)
        except psycopg.OperationalError as error:
            raise BackupError(f"{self.server.name}: {' '.join(str(error).split())[:300]}") from error

    def _check(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(
            "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),"
            " (SELECT system_identifier FROM pg_control_system()),"
            " coalesce(current_setting('summarize_wal', true), 'off') = 'on',"
            " (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')),"
            " (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)"
        ).fetchone()
        assert row is not None, "one row"
        version, is_replica, system, summarizes, tablespaces, may = row
        if is_replica:
            raise BackupError(f"{self.server.name}: its address is a replica's; a backup is taken from primaries")
        if tablespaces:
            raise BackupError(f"{self.server.name}: has tablespaces of its own, which a backup does not support")
        if not may:
            raise BackupError(f"{self.server.name}: its user needs REPLICATION and EXECUTE on pg_create_restore_point")
        self.facts |= {
            "version": version, "system": str(system),
            "can_be_incremental": bool(summarizes) and version >= _INCREMENTAL_FROM,
        }  # fmt: skip

    def fits(self, earlier: dict[str, Any]) -> bool:
        """Whether this copy can be the difference from an earlier one of the same server."""
        return bool(self.facts["can_be_incremental"]) and all(
            earlier.get(name) == self.facts[name] for name in ("system", "version", "databases")
        )

    def files(self, *, since: Path | None) -> None:
        """Copy the server's files; with `since`, the folder of an earlier copy, only blocks that changed after it."""
        arguments = ["-D", str(self.folder / FILES), "-X", "none", "--checkpoint=fast", "--no-password"]
        if since is not None:
            arguments.append(f"--incremental={since / FILES / MANIFEST}")
        self._tools.run("pg_basebackup", arguments, environ=connection_environ(self.server.dsn))

    def mark(self) -> str:
        """Set the point; its name. Restoring ends there."""
        name = f"flashsale-{self._id}"
        with self._connect() as connection:
            row = connection.execute("SELECT pg_create_restore_point(%s)::text", (name,)).fetchone()
            assert row is not None, "one row"
            # The segment ends here, so that it can be fetched whole.
            end = connection.execute("SELECT pg_switch_wal()::text").fetchone()
            assert end is not None, "one row"
        self._end = end[0]
        self.facts["point"] = {"name": name, "lsn": row[0]}
        return name

    def log(self) -> None:
        """Fetch the write-ahead log up to the point."""
        folder = self.folder / WAL
        folder.mkdir(mode=0o700)
        arguments = ["-D", str(folder), "--slot", self._slot, "--endpos", self._end, "--no-loop", "--no-password"]
        self._tools.run("pg_receivewal", arguments, environ=connection_environ(self.server.dsn), s_max=LOG_S_MAX)
        for path in folder.glob("*.partial"):
            path.rename(path.with_suffix(""))  # complete up to the point, and filled with zeros
        if not any(folder.iterdir()):
            raise BackupError(f"{self.server.name}: no write-ahead log was fetched")
