"""The numbered SQL files of a kind of database: their order, phase and checksum. Performs no I/O but reading them.

    0015_name.sql        phase pre: expands the schema before the new code starts; the last release runs on it
    0016_name.post.sql   phase post: contracts the schema after the last process of the old release has ended

A file whose first line is `-- transaction: none` is one statement that PostgreSQL refuses in a transaction:
`CREATE INDEX CONCURRENTLY IF NOT EXISTS` or `DROP INDEX CONCURRENTLY IF EXISTS`.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from migrations.statements import split_statements
from runtime.process.errors import OperatorError

HERE = Path(__file__).parent
CATALOGUE = HERE / "catalogue"
SHARD = HERE / "shard"
ANALYTICS = HERE / "analytics"

NO_TRANSACTION = "-- transaction: none"
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+(\.post)?\.sql")
_CONCURRENT = re.compile(
    r"(?:CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+IF\s+NOT\s+EXISTS"
    r"|DROP\s+INDEX\s+CONCURRENTLY\s+IF\s+EXISTS)\s+(?P<index>[a-z_][a-z0-9_.]*)\b.*",
    re.IGNORECASE | re.DOTALL,
)


class MigrationError(OperatorError):
    """A database could not be brought to the newest schema; the message names database and file, never a password."""


class Phase(enum.StrEnum):
    """PRE runs before the new code, POST after the old code has ended."""

    PRE = "pre"
    POST = "post"


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

    @property
    def phase(self) -> Phase:
        """From the file's name."""
        return Phase.POST if self.name.endswith(".post") else Phase.PRE

    @property
    def in_transaction(self) -> bool:
        """Whether the file and its record are one transaction."""
        return not self.text.startswith(NO_TRANSACTION)

    @property
    def concurrent_index(self) -> str:
        """The index of a file outside a transaction; MigrationError if its text is anything but one such statement."""
        statements = split_statements(self.text)
        match = _CONCURRENT.fullmatch(statements[0]) if len(statements) == 1 else None
        if match is None:
            raise MigrationError(
                f"{self.name}: a file outside a transaction is one CREATE INDEX CONCURRENTLY IF NOT EXISTS "
                "or DROP INDEX CONCURRENTLY IF EXISTS"
            )
        return match["index"]


def read_migrations(folder: Path) -> list[Migration]:
    """The folder's migrations in order; MigrationError for a misnamed file or a number used twice."""
    migrations: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationError(f"{path.name}: not named NNNN_name.sql or NNNN_name.post.sql")
        number = int(match[1])
        if number in migrations:
            raise MigrationError(f"{path.name}: the number is taken by {migrations[number].name}")
        migration = Migration(number, path.stem, path.read_text(encoding="utf-8"))
        if not migration.in_transaction:
            _ = migration.concurrent_index  # a malformed file fails before any database changes
        migrations[number] = migration
    return list(migrations.values())


def select(missing: Sequence[Migration], until: Phase, *, database: str) -> list[Migration]:
    """The missing migrations to apply now, in order of their numbers.

    PRE ends before the first file of POST. MigrationError if a file of PRE follows it, because an earlier release is
    unfinished.
    """
    if until is Phase.POST:
        return list(missing)
    first_post = next((n for n, migration in enumerate(missing) if migration.phase is Phase.POST), len(missing))
    for later in missing[first_post:]:
        if later.phase is Phase.PRE:
            raise MigrationError(
                f"{database}: {later.name} comes after {missing[first_post].name} of an earlier release; "
                "stop the processes of the releases before it, then run flashsale migrate --post"
            )
    return list(missing[:first_post])
