"""The migrations that each database lacks, with the table locks they take. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from migrations.files import MigrationError, Phase
from migrations.runner import Database, at_once, connect, lacking, read_done
from migrations.statements import table_locks


@dataclass(frozen=True, slots=True)
class Step:
    """One migration that a database lacks. `locks` are `TABLE: MODE`, only of tables that existed before."""

    name: str
    phase: Phase
    in_transaction: bool
    locks: tuple[str, ...]


def plan(targets: Sequence[Database]) -> dict[str, list[Step]]:
    """Database -> its missing migrations in order. MigrationError as `migrate_databases` raises it."""
    return at_once(targets, _plan_one)


def _plan_one(target: Database) -> list[Step]:
    try:
        with connect(target.dsn, target.name) as connection:
            connection.execute("SET default_transaction_read_only = on")
            exists = connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL").fetchone()
            done = read_done(connection) if exists is not None and exists[0] else {}
    except psycopg.Error as error:
        raise MigrationError(f"{target.name}: {error.diag.message_primary or type(error).__name__}") from error
    return [
        Step(migration.name, migration.phase, migration.in_transaction, tuple(table_locks(migration.text)))
        for migration in lacking(target.migrations, done, database=target.name)
    ]
