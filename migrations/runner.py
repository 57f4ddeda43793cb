"""Applies numbered SQL files to a database, once each and in order. Synchronous: it runs before anything else does.

Does not create databases and does not undo: a step back is a new migration.

A file is `NNNN_name.sql` and is applied in one transaction together with its record, so a crash leaves it wholly
applied or not at all. Several processes may start at once: an advisory lock per database lets one of them work.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from runtime.postgres.connection import BoundedCommand, DatabaseSilent, connect_command
from runtime.process.errors import OperatorError
from runtime.process.settings import Settings

HERE = Path(__file__).parent
CATALOGUE = HERE / "catalogue"
SHARD = HERE / "shard"
ANALYTICS = HERE / "analytics"

LOCK_ID = 0x666C6173_68736C65  # "flashsle"
LOCK_WAIT_S_MAX = 60
# A migration that waits for a table lock makes every later query of that table wait behind it.
TABLE_LOCK_WAIT_S_MAX = 5
CALL_S_MAX = LOCK_WAIT_S_MAX + 10.0  # more than the lock's own bound, whose error says more
FILE_S_MAX = 3600.0  # for a file that rewrites a table or builds an index
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_CREATE_RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationError(OperatorError):
    """A database could not be brought to the newest schema; the message names database and file, never a password."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file. `checksum` is the SHA-256 of its text: an applied file must never change."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """Hexadecimal SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_migrations(folder: Path) -> list[Migration]:
    """The folder's migrations in order; MigrationError for a misnamed file or a number used twice."""
    migrations: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name}: not named NNNN_name.sql")
        number = int(match[1])
        if number in migrations:
            raise MigrationError(f"{path.name}: the number is taken by {migrations[number].name}")
        migrations[number] = Migration(number, path.stem, path.read_text(encoding="utf-8"))
    return list(migrations.values())


def migrate(catalogue_dsn: str, shard_dsns: Sequence[str], *, analytics_dsn: str | None = None) -> dict[str, list[str]]:
    """Bring all databases to the newest schema; database -> names of the migrations applied now.

    Without `analytics_dsn` the deployment has no analytics database.
    Safe to repeat and to run from several processes. Raises MigrationError at the first database that fails;
    those before it stay migrated.
    """
    applied = {"catalogue": apply(catalogue_dsn, read_migrations(CATALOGUE), database="catalogue")}
    shard_migrations = read_migrations(SHARD)
    for shard, dsn in enumerate(shard_dsns):
        database = f"shard_{shard}"
        applied[database] = apply(dsn, shard_migrations, database=database)
    if analytics_dsn is not None:
        applied["analytics"] = apply(analytics_dsn, read_migrations(ANALYTICS), database="analytics")
    return applied


def migrate_shard(dsn: str, number: int) -> list[str]:
    """Bring the database of one shard to the newest schema; the names of the migrations applied now."""
    return apply(dsn, read_migrations(SHARD), database=f"shard_{number}")


def migrate_all(settings: Settings) -> dict[str, list[str]]:
    """`migrate` for the databases of the settings, at their direct addresses: it needs sessions."""
    analytics = settings.analytics_dsn
    return migrate(
        settings.catalogue_session_dsn.get_secret_value(),
        [dsn.get_secret_value() for dsn in settings.shard_session_dsns],
        analytics_dsn=None if analytics is None else analytics.get_secret_value(),
    )


def apply(dsn: str, migrations: Iterable[Migration], *, database: str) -> list[str]:
    """Apply the migrations that one database lacks; their names. `database` is its name in error messages."""
    applied: list[str] = []
    try:
        with _connect(dsn, database) as connection:
            _lock(connection)
            connection.execute(_CREATE_RECORD)
            done = _done(connection)
            for migration in migrations:
                if migration.number in done:
                    name, checksum = done[migration.number]
                    if name != migration.name:
                        raise MigrationError(
                            f"{database}: has {name} in place of {migration.name}; its address may be another database's"
                        )
                    if checksum != migration.checksum:
                        raise MigrationError(f"{database}: {migration.name} was changed after it had been applied")
                    continue
                _apply_one(connection, migration, database)
                applied.append(migration.name)
    except psycopg.Error as error:
        raise MigrationError(f"{database}: {_reason(error)}") from error
    return applied


def _connect(dsn: str, database: str) -> BoundedCommand[Any]:
    """MigrationError with the client's reason. The reason never contains a part of the password."""
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        parts = None
    # An `@` in the host is the rest of a password with an unescaped `@`.
    if parts is None or "@" in str(parts.get("host", "")):
        raise MigrationError(
            f"{database}: its address is malformed; use postgresql://user:password@host:port/database "
            "and write special characters of the password as %XX"
        )
    try:
        return connect_command(dsn, call_s_max=CALL_S_MAX)
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        password = parts.get("password")
        if password and str(password) in reason:
            reason = type(error).__name__
        raise MigrationError(f"{database}: {reason}") from error


def _lock(connection: BoundedCommand[Any]) -> None:
    """Held until the connection closes, also when this process is killed."""
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{LOCK_WAIT_S_MAX}s")))
    connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_ID,))
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{TABLE_LOCK_WAIT_S_MAX}s")))


def _done(connection: BoundedCommand[Any]) -> Mapping[int, tuple[str, str]]:
    rows = connection.execute("SELECT number, name, checksum FROM schema_migrations").fetchall()
    return {number: (name, checksum) for number, name, checksum in rows}


def _apply_one(connection: BoundedCommand[Any], migration: Migration, database: str) -> None:
    try:
        with connection.transaction():
            connection.call_s_max = FILE_S_MAX
            connection.execute(migration.text)
            connection.call_s_max = CALL_S_MAX
            connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
                (migration.number, migration.name, migration.checksum),
            )
    except psycopg.Error as error:
        raise MigrationError(f"{database}: {migration.name}: {_reason(error)}") from error


def _reason(error: psycopg.Error) -> str:
    """The server's words, or ours when the server said nothing; psycopg's own could quote an address."""
    return str(error) if isinstance(error, DatabaseSilent) else error.diag.message_primary or type(error).__name__
