"""Statements of a migration's text and the table locks they take. Performs no I/O.

Does not parse SQL: knows the statements of schema changes by their first words. Bodies of functions stay unread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_TOKEN = re.compile(
    r"(?P<comment>--[^\n]*|/\*.*?\*/)|(?P<quoted>'(?:[^']|'')*'|\"[^\"]*\"|(?P<tag>\$[A-Za-z_]*\$).*?(?P=tag))|(?P<end>;)",
    re.DOTALL,
)
_TABLE = r"(?P<table>[a-z_][a-z0-9_.]*)"
# The first that matches counts. Source: PostgreSQL, "Explicit Locking" and the pages of the commands.
_LOCKS = [
    (re.compile(rf"CREATE (?:UNIQUE )?INDEX CONCURRENTLY .*? ON (?:ONLY )?{_TABLE}", re.I), "SHARE UPDATE EXCLUSIVE"),
    (re.compile(rf"CREATE (?:UNIQUE )?INDEX .*?\bON (?:ONLY )?{_TABLE}", re.I), "SHARE"),
    (re.compile(rf"CREATE (?:OR REPLACE )?(?:CONSTRAINT )?TRIGGER .*? ON {_TABLE}", re.I), "SHARE ROW EXCLUSIVE"),
    (
        re.compile(rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_TABLE} VALIDATE CONSTRAINT .*", re.I),
        "SHARE UPDATE EXCLUSIVE",
    ),
    (re.compile(rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_TABLE} SET \(.*", re.I), "SHARE UPDATE EXCLUSIVE"),
    (re.compile(rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_TABLE}", re.I), "ACCESS EXCLUSIVE"),
    (re.compile(rf"DROP TABLE (?:IF EXISTS )?{_TABLE}", re.I), "ACCESS EXCLUSIVE"),
    (re.compile(rf"DROP TRIGGER (?:IF EXISTS )?\S+ ON {_TABLE}", re.I), "ACCESS EXCLUSIVE"),
    (re.compile(rf"TRUNCATE (?:TABLE )?{_TABLE}", re.I), "ACCESS EXCLUSIVE"),
    (re.compile(rf"LOCK (?:TABLE )?{_TABLE}", re.I), "ACCESS EXCLUSIVE"),
    (re.compile(rf"(?:INSERT INTO|UPDATE|DELETE FROM) {_TABLE}", re.I), "ROW EXCLUSIVE"),
]
_CREATED = re.compile(rf"CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?{_TABLE}", re.I)


def split_statements(text: str) -> list[str]:
    """The statements of a text without their comments, with single spaces; quoted text stays as it is."""
    statements: list[str] = []
    parts: list[str] = []
    position = 0

    def end() -> None:
        statement = "".join(parts).strip()
        if statement:
            statements.append(statement)
        parts.clear()

    for token in _TOKEN.finditer(text):
        parts.append(re.sub(r"\s+", " ", text[position : token.start()]))
        position = token.end()
        if token["end"]:
            end()
        else:
            parts.append(token["quoted"] or " ")
    parts.append(re.sub(r"\s+", " ", text[position:]))
    end()
    return [re.sub(r" {2,}", " ", statement) if "'" not in statement else statement for statement in statements]


def created_tables(statements: Iterable[str]) -> set[str]:
    """Tables that the statements create: no other session knows them yet."""
    return {match["table"] for statement in statements if (match := _CREATED.match(statement))}


def table_locks(text: str) -> list[str]:
    """`TABLE: MODE` of each lock on a table that existed before, in the order in which the file takes them."""
    statements = split_statements(text)
    new = created_tables(statements)
    locks: dict[str, None] = {}
    for statement in statements:
        found = ((match["table"], mode) for pattern, mode in _LOCKS if (match := pattern.match(statement)))
        table, mode = next(found, (None, None))
        if table is not None and table not in new:
            locks[f"{table}: {mode}"] = None
    return list(locks)
