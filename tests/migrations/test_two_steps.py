"""New files of phase pre keep the last release working: statements that break it, or block it for long, are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from migrations.files import ANALYTICS, CATALOGUE, SHARD, Migration, Phase, read_migrations
from migrations.statements import created_tables, split_statements

# The last file of each folder that was written before this check; released files never change.
BEFORE_THE_CHECK = {CATALOGUE: 13, SHARD: 14, ANALYTICS: 1}
_VOLATILE = r"(?:random|clock_timestamp|timeofday|gen_random_uuid|uuid_generate_v\w+|nextval)\s*\("
_REFUSED = {
    "drops a column": r"^ALTER TABLE .*\bDROP (?:COLUMN )?(?!CONSTRAINT|NOT NULL|DEFAULT|EXPRESSION|IDENTITY)[a-z_]",
    "renames": r"^ALTER .*\bRENAME\b",
    "drops a table, view, schema, type or function": r"^DROP (?:TABLE|VIEW|SCHEMA|TYPE|FUNCTION|SEQUENCE)\b",
    "empties a table": r"^TRUNCATE\b",
    "changes the type of a column": r"^ALTER TABLE .*\bALTER (?:COLUMN )?\w+ (?:SET DATA )?TYPE\b",
    "sets NOT NULL, which reads the table under its lock": r"^ALTER TABLE .*\bSET NOT NULL\b",
    "adds a column that rewrites the table": rf"^ALTER TABLE .*\bADD (?:COLUMN )?.*\bDEFAULT\b.*{_VOLATILE}",
    "adds a column that old code does not fill": r"^ALTER TABLE .*\bADD (?:COLUMN )?(?!CONSTRAINT|CHECK|.*\bDEFAULT\b).*"
    r"\bNOT NULL\b",
    "adds a constraint without NOT VALID": r"^ALTER TABLE .*\bADD (?:CONSTRAINT \w+ )?(?:CHECK|FOREIGN KEY)\b"
    r"(?!.*\bNOT VALID\b)",
    "adds a unique constraint without USING INDEX": r"^ALTER TABLE .*\bADD (?:CONSTRAINT \w+ )?(?:UNIQUE|PRIMARY KEY)\b"
    r"(?!.*\bUSING INDEX\b)",
    "builds an index without CONCURRENTLY": r"^CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)",
}
_TABLE = re.compile(
    r"^(?:ALTER TABLE (?:IF EXISTS )?(?:ONLY )?|CREATE (?:UNIQUE )?INDEX .*?\bON (?:ONLY )?)([a-z_][a-z0-9_.]*)", re.I
)


def _breaches(migration: Migration) -> list[str]:
    if migration.phase is Phase.POST:
        return []
    statements = split_statements(migration.text)
    new = created_tables(statements)
    found = []
    for statement in statements:
        table = _TABLE.match(statement)
        if table is not None and table[1] in new:
            continue
        found += [why for why, pattern in _REFUSED.items() if re.search(pattern, statement, re.I | re.S)]
    return found


@pytest.mark.parametrize("folder", BEFORE_THE_CHECK, ids=lambda folder: Path(folder).name)
def test_new_files_of_phase_pre_only_expand(folder: Path) -> None:
    found = {m.name: _breaches(m) for m in read_migrations(folder) if m.number > BEFORE_THE_CHECK[folder]}
    assert {name: breaches for name, breaches in found.items() if breaches} == {}, "move it to NNNN_name.post.sql"


@pytest.mark.parametrize(
    ("statement", "breach"),
    [
        ("ALTER TABLE orders DROP COLUMN state", "drops a column"),
        ("ALTER TABLE orders DROP state", "drops a column"),
        ("ALTER TABLE orders RENAME COLUMN a TO b", "renames"),
        ("DROP TABLE orders", "drops a table, view, schema, type or function"),
        ("TRUNCATE orders", "empties a table"),
        ("ALTER TABLE orders ALTER COLUMN a TYPE bigint", "changes the type of a column"),
        ("ALTER TABLE orders ALTER a SET NOT NULL", "sets NOT NULL, which reads the table under its lock"),
        ("ALTER TABLE orders ADD COLUMN a uuid DEFAULT gen_random_uuid()", "adds a column that rewrites the table"),
        ("ALTER TABLE orders ADD COLUMN a int NOT NULL", "adds a column that old code does not fill"),
        ("ALTER TABLE orders ADD CONSTRAINT a CHECK (b > 0)", "adds a constraint without NOT VALID"),
        ("ALTER TABLE orders ADD UNIQUE (b)", "adds a unique constraint without USING INDEX"),
        ("CREATE INDEX a ON orders (b)", "builds an index without CONCURRENTLY"),
        ("-- a comment\nCREATE UNIQUE INDEX a\n    ON orders (b)", "builds an index without CONCURRENTLY"),
    ],
)
def test_refused_statement(statement: str, breach: str) -> None:
    assert _breaches(Migration(99, "0099_test", statement)) == [breach]
    assert _breaches(Migration(99, "0099_test.post", statement)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE orders ADD COLUMN a int",
        "ALTER TABLE orders ADD COLUMN a int NOT NULL DEFAULT 0",
        "ALTER TABLE orders ADD CONSTRAINT a CHECK (b > 0) NOT VALID",
        "ALTER TABLE orders VALIDATE CONSTRAINT a",
        "ALTER TABLE orders ALTER a DROP NOT NULL",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS a ON orders (b)",
        "CREATE TABLE a (b int NOT NULL); CREATE INDEX a_b ON a (b); ALTER TABLE a ADD UNIQUE (b)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ DROP TABLE orders; SELECT 1 $$",
        "INSERT INTO a VALUES ('DROP TABLE x; TRUNCATE y')",
    ],
)
def test_permitted_statement(statement: str) -> None:
    assert _breaches(Migration(99, "0099_test", statement)) == []
