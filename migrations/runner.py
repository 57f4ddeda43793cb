"""Applies numbered SQL files to databases, once each and in order. Synchronous: it runs before anything else does.

Does not create databases and does not undo: a step back is a new migration.

A file is applied in one transaction together with its record, so a crash leaves it wholly applied or not at all. A
file outside a transaction may be repeated: an index that an earlier try left invalid is dropped first. Several
processes may start at once: an advisory lock per database lets one of them work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from migrations.files import ANALYTICS, CATALOGUE, SHARD, Migration, MigrationError, Phase, read_migrations, select
from runtime.postgres.connection import BoundedCommand, DatabaseSilent, connect_command
from runtime.process.settings import Settings

LOCK_ID = 0x666C6173_68736C65  # "flashsle"
LOCK_WAIT_S_MAX = 60
LOCK_POLL_S = 0.1
CALL_S_MAX = 70.0
FILE_S_MAX = 3600.0  # for a file that rewrites a table or builds an index
DATABASES_AT_ONCE_MAX = 8
_CREATE_RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Waits:
    """Bounds of a file's wait for table locks. A waiting migration makes every later query of that table wait."""

    table_lock_ms: int = 5000
    tries: int = 5
    pause_s: float = 1.0  # doubles with each try


WAITS = Waits()


@dataclass(frozen=True, slots=True)
class Database:
    """A database with its files. `name` is its name in messages."""

    name: str
    dsn: str
    migrations: Sequence[Migration]


def databases(catalogue_dsn: str, shard_dsns: Sequence[str], *, analytics_dsn: str | None = None) -> list[Database]:
    """Catalogue, shards and analytics. Without `analytics_dsn` the deployment has no analytics database."""
    shard_migrations = read_migrations(SHARD)
    found = [Database("catalogue", catalogue_dsn, read_migrations(CATALOGUE))]
    found += [Database(f"shard_{number}", dsn, shard_migrations) for number, dsn in enumerate(shard_dsns)]
    if analytics_dsn is not None:
        found.append(Database("analytics", analytics_dsn, read_migrations(ANALYTICS)))
    return found


def databases_of(settings: Settings) -> list[Database]:
    """The databases of the settings, at their direct addresses: a migration needs a session."""
    analytics = settings.analytics_dsn
    return databases(
        settings.catalogue_session_dsn.get_secret_value(),
        [dsn.get_secret_value() for dsn in settings.shard_session_dsns],
        analytics_dsn=None if analytics is None else analytics.get_secret_value(),
    )


def migrate(
    catalogue_dsn: str, shard_dsns: Sequence[str], *, analytics_dsn: str | None = None, until: Phase = Phase.POST
) -> dict[str, list[str]]:
    """`migrate_databases` for these addresses."""
    return migrate_databases(databases(catalogue_dsn, shard_dsns, analytics_dsn=analytics_dsn), until=until)


def migrate_all(settings: Settings, *, until: Phase = Phase.POST) -> dict[str, list[str]]:
    """`migrate_databases` for the databases of the settings."""
    return migrate_databases(databases_of(settings), until=until)


def migrate_databases(targets: Sequence[Database], *, until: Phase = Phase.POST) -> dict[str, list[str]]:
    """Migrate all databases in parallel; database -> names of the migrations applied now.

    Safe to repeat and to run from several processes. A database that fails does not stop the others; afterwards
    MigrationError names each that failed, and running it again continues there.
    """
    return at_once(targets, lambda target: apply(target.dsn, target.migrations, database=target.name, until=until))


def at_once(targets: Sequence[Database], act: Callable[[Database], list[Any]]) -> dict[str, list[Any]]:
    """Results of `act` by database; at most DATABASES_AT_ONCE_MAX run. MigrationError joins the failures of all."""
    with ThreadPoolExecutor(DATABASES_AT_ONCE_MAX, thread_name_prefix="migrate") as pool:
        runs = {target.name: pool.submit(act, target) for target in targets}
    results: dict[str, list[Any]] = {}
    failures: list[MigrationError] = []
    for name, run in runs.items():
        try:
            results[name] = run.result()
        except MigrationError as error:
            failures.append(error)
    if failures:
        done = [f"{name}: {', '.join(names)}" for name, names in results.items() if names]
        rest = [f"completed nevertheless: {'; '.join(done)}"] if done else []
        raise MigrationError("\n".join([*map(str, failures), *rest])) from failures[0]
    return results


def migrate_shard(dsn: str, number: int) -> list[str]:
    """Bring the database of one shard to the newest schema; the names of the migrations applied now."""
    return apply(dsn, read_migrations(SHARD), database=f"shard_{number}")


def apply(
    dsn: str, migrations: Iterable[Migration], *, database: str, until: Phase = Phase.POST, waits: Waits = WAITS
) -> list[str]:
    """Apply the migrations that one database lacks; their names. `database` is its name in error messages.

    An empty database gets every file: no process of an older release uses it.
    """
    applied: list[str] = []
    try:
        with connect(dsn, database) as connection:
            _lock(connection, database)
            connection.execute(_CREATE_RECORD)
            done = read_done(connection)
            missing = lacking(migrations, done, database=database)
            for migration in select(missing, until if done else Phase.POST, database=database):
                _apply_one(connection, migration, database, waits)
                applied.append(migration.name)
    except psycopg.Error as error:
        raise MigrationError(f"{database}: {_reason(error)}") from error
    return applied


def lacking(migrations: Iterable[Migration], done: Mapping[int, tuple[str, str]], *, database: str) -> list[Migration]:
    """The migrations without a record; MigrationError for a record that differs from its file."""
    missing: list[Migration] = []
    for migration in migrations:
        if migration.number not in done:
            missing.append(migration)
            continue
        name, checksum = done[migration.number]
        if name != migration.name:
            raise MigrationError(
                f"{database}: has {name} in place of {migration.name}; its address may be another database's"
            )
        if checksum != migration.checksum:
            raise MigrationError(f"{database}: {migration.name} was changed after it had been applied")
    return missing


def connect(dsn: str, database: str) -> BoundedCommand[Any]:
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


def _lock(connection: BoundedCommand[Any], database: str) -> None:
    """Held until the connection closes, also when this process is killed."""
    # Polled: a session that waits in the server holds a snapshot, and a concurrent index build waits for its end.
    for _ in range(int(LOCK_WAIT_S_MAX / LOCK_POLL_S)):
        row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK_ID,)).fetchone()
        if row is not None and row[0]:
            return
        time.sleep(LOCK_POLL_S)
    raise MigrationError(f"{database}: another process migrates it; run this again when that process has ended")


def read_done(connection: BoundedCommand[Any]) -> Mapping[int, tuple[str, str]]:
    """Number -> name and checksum of the applied migrations."""
    rows = connection.execute("SELECT number, name, checksum FROM schema_migrations").fetchall()
    return {number: (name, checksum) for number, name, checksum in rows}


def _apply_one(connection: BoundedCommand[Any], migration: Migration, database: str, waits: Waits) -> None:
    """Repeat a file that does not get its locks; each try gives its locks back, so that queries behind it go on."""
    run = _in_transaction if migration.in_transaction else _outside_transaction
    for attempt in range(1, waits.tries + 1):
        try:
            run(connection, migration, waits)
            return
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if attempt == waits.tries:
                raise MigrationError(
                    f"{database}: {migration.name}: got no table lock in {waits.tries} tries of {waits.table_lock_ms} ms; "
                    "end the long transactions of this database, then run this again"
                ) from error
            time.sleep(waits.pause_s * 2 ** (attempt - 1))
        except psycopg.Error as error:
            raise MigrationError(f"{database}: {migration.name}: {_reason(error)}") from error


def _in_transaction(connection: BoundedCommand[Any], migration: Migration, waits: Waits) -> None:
    _lock_timeout(connection, waits.table_lock_ms)
    with connection.transaction():
        connection.call_s_max = FILE_S_MAX
        connection.execute(migration.text)
        connection.call_s_max = CALL_S_MAX
        _record(connection, migration)


def _outside_transaction(connection: BoundedCommand[Any], migration: Migration, waits: Waits) -> None:
    """A crash between the statement and its record leaves an index that is valid: IF NOT EXISTS passes over it."""
    _lock_timeout(connection, waits.table_lock_ms)
    invalid = connection.execute(
        "SELECT nspname, relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
        " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE indexrelid = to_regclass(%s) AND NOT indisvalid",
        (migration.concurrent_index,),
    ).fetchone()
    connection.call_s_max = FILE_S_MAX
    if invalid is not None:
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(*invalid)))
    # A concurrent build waits for the end of older transactions, and blocks no reads or writes meanwhile.
    _lock_timeout(connection, 0)
    connection.execute(migration.text)
    connection.call_s_max = CALL_S_MAX
    _record(connection, migration)


def _record(connection: BoundedCommand[Any], migration: Migration) -> None:
    connection.execute(
        "INSERT INTO schema_migrations (number, name, checksum) VALUES (%s, %s, %s)",
        (migration.number, migration.name, migration.checksum),
    )


def _lock_timeout(connection: BoundedCommand[Any], bound_ms: int) -> None:
    connection.execute(sql.SQL("SET lock_timeout = {}").format(sql.Literal(f"{bound_ms}ms")))


def _reason(error: psycopg.Error) -> str:
    """The server's words, or ours when the server said nothing; psycopg's own could quote an address."""
    return str(error) if isinstance(error, DatabaseSilent) else error.diag.message_primary or type(error).__name__
