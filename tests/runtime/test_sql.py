"""Named blocks of SQL: the loader rejects malformed files, and every block of the workers has a description."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.postgres.sql import SqlFileError, load_sql, parse_blocks

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "workers").rglob("*.sql"))


def test_blocks_have_a_name_a_description_and_a_statement() -> None:
    text = "-- The file.\n\n-- name: one\n-- Why\n-- so.\nSELECT 1\n-- not a name\n, 2;\n\n-- name: two\nSELECT 3;\n"
    one, two = parse_blocks(text, source="x").values()
    assert (one.name, one.description, one.statement) == ("one", "Why so.", "SELECT 1\n-- not a name\n, 2")
    assert (two.name, two.description, two.statement) == ("two", "", "SELECT 3")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SELECT 1;", "x: no block"),
        ("-- name: a\n-- only words\n", "x: a has no statement"),
        ("-- name: a\nSELECT 1;\n-- name: b and words\nSELECT 2;\n", "x: malformed name in '-- name: b and words'"),
        ("--name: a\nSELECT 1;\n", "x: malformed name in '--name: a'"),
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n", "x: duplicate block a"),
    ],
)
def test_malformed_files_are_refused(text: str, problem: str) -> None:
    with pytest.raises(SqlFileError, match=problem):
        parse_blocks(text, source="x")


def test_a_file_is_loaded_from_its_package() -> None:
    assert load_sql("workers.shard_writer", "orders.sql")["read_quotas"].startswith("SELECT")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name + "/" + path.name)
def test_every_block_is_described(path: Path) -> None:
    """At least one sentence on repetition and on the index, which the statement itself does not show."""
    for block in parse_blocks(path.read_text(encoding="utf-8"), source=path.name).values():
        assert len(block.description.split()) >= 5, block.name
