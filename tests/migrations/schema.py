"""A database's schema as text, to be compared with a committed file. Reads the catalogue views only."""

from __future__ import annotations

import psycopg

_COLUMNS = """
SELECT table_name, column_name, data_type, is_nullable = 'NO', coalesce(column_default, '')
FROM information_schema.columns WHERE table_schema IN ('public', 'audit', 'figures', 'refused')
    AND NOT (SELECT relispartition FROM pg_class WHERE oid = format('%I.%I', table_schema, table_name)::regclass)
ORDER BY table_name, ordinal_position
"""
_CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(pg_constraint.oid)
FROM pg_constraint JOIN pg_namespace AS space ON space.oid = connamespace
WHERE nspname IN ('public', 'audit', 'figures', 'refused') AND contype <> 'n'
    AND NOT (SELECT relispartition FROM pg_class WHERE oid = conrelid)
ORDER BY 1, 2
"""
_INDEXES = """
SELECT indexdef FROM pg_indexes WHERE schemaname IN ('public', 'audit', 'figures', 'refused')
    AND NOT (SELECT relispartition FROM pg_class WHERE oid = format('%I.%I', schemaname, tablename)::regclass)
ORDER BY indexdef
"""
_TRIGGERS = """
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1
"""
_VIEWS = "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY viewname"


def describe(dsn: str) -> str:
    """Columns, constraints, indexes, triggers and views, a line each, sorted; without partitions, which come and go."""
    with psycopg.connect(dsn) as connection:
        lines = [
            f"{table}.{column} {kind}{' not null' if required else ''}{f' default {default}' if default else ''}"
            for table, column, kind, required, default in connection.execute(_COLUMNS)
        ]
        lines += [f"{table}: {name} {definition}" for table, name, definition in connection.execute(_CONSTRAINTS)]
        lines += [row[0] for row in connection.execute(_INDEXES)]
        lines += [row[0] for row in connection.execute(_TRIGGERS)]
        lines += [f"view {name}: {' '.join(text.split())}" for name, text in connection.execute(_VIEWS)]
    return "\n".join(lines) + "\n"
