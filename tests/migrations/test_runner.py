"""The migration runner against a real PostgreSQL: once each, in order, whatever happens meanwhile."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from devstack.servers import PostgresServer
from migrations.runner import ANALYTICS, CATALOGUE, SHARD, Migration, MigrationError, apply, migrate, read_migrations
from tests.fixtures.fix_databases import Databases
from tests.migrations.schema import describe

HERE = Path(__file__).parent
_numbers = itertools.count()


@pytest.fixture
def empty_database(postgres_server: PostgresServer) -> str:
    """A database of its own without any table."""
    return postgres_server.create_database(f"migrations_{next(_numbers)}")


def _migration(number: int, text: str) -> Migration:
    return Migration(number, f"{number:04d}_test", text)


def test_the_second_run_changes_nothing(empty_database: str) -> None:
    migrations = read_migrations(SHARD)
    assert apply(empty_database, migrations, database="x") == [m.name for m in migrations]
    before = describe(empty_database)
    assert apply(empty_database, migrations, database="x") == []
    assert describe(empty_database) == before


def test_racing_runs_apply_each_file_once(empty_database: str) -> None:
    migrations = [
        _migration(1, "CREATE TABLE a (x int); SELECT pg_sleep(0.2)"),
        _migration(2, "INSERT INTO a VALUES (1)"),
    ]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(apply, empty_database, migrations, database="x") for _ in range(4)]
        applied = [name for run in runs for name in run.result()]
    assert sorted(applied) == ["0001_test", "0002_test"]
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM a").fetchone() == (1,)


def test_a_file_that_fails_leaves_nothing_and_names_itself(empty_database: str) -> None:
    good = _migration(1, "CREATE TABLE a (x int)")
    bad = _migration(2, "CREATE TABLE b (x int); SELECT 1 / 0")
    with pytest.raises(MigrationError, match=r"x: 0002_test: division by zero"):
        apply(empty_database, [good, bad], database="x")
    assert "b.x" not in describe(empty_database)
    assert apply(empty_database, [good, _migration(2, "CREATE TABLE b (x int)")], database="x") == ["0002_test"]


def test_a_changed_file_is_refused(empty_database: str) -> None:
    apply(empty_database, [_migration(1, "CREATE TABLE a (x int)")], database="x")
    with pytest.raises(MigrationError, match=r"0001_test was changed after it had been applied"):
        apply(empty_database, [_migration(1, "CREATE TABLE a (y int)")], database="x")


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(MigrationError, match="catalogue") as failure:
        migrate("postgresql://flashsale:open-sesame@127.0.0.1:1/catalogue", [])
    assert "open-sesame" not in str(failure.value)


def test_reason_is_named() -> None:
    with pytest.raises(MigrationError, match=r"^catalogue: connection failed: .*127\.0\.0\.1.*refused"):
        migrate("postgresql://flashsale:open-sesame@127.0.0.1:1/catalogue", [])


@pytest.mark.parametrize(
    "dsn",
    [
        "open-sesame",
        "postgresql:/flashsale:open-sesame@127.0.0.1/x",
        "postgresql://flashsale:more@open-sesame@127.0.0.1:1/x",
        "postgresql://flashsale:open-sesame@127.0.0.1:open-sesame/x",
    ],
)
def test_password_in_a_malformed_address_is_not_shown(dsn: str) -> None:
    with pytest.raises(MigrationError, match=r"^catalogue: ") as failure:
        migrate(dsn, [])
    assert "open-sesame" not in str(failure.value)


def test_another_databases_migrations_are_not_taken_for_a_changed_file(empty_database: str) -> None:
    apply(empty_database, [Migration(1, "0001_orders", "CREATE TABLE a (x int)")], database="shard_0")
    with pytest.raises(MigrationError, match="catalogue: has 0001_orders in place of 0001_test; its address may be"):
        apply(empty_database, [_migration(1, "CREATE TABLE b (x int)")], database="catalogue")


def test_file_names_are_checked(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("SELECT 1")
    (tmp_path / "0001_b.sql").write_text("SELECT 1")
    with pytest.raises(MigrationError, match=r"0001_b\.sql: the number is taken by 0001_a"):
        read_migrations(tmp_path)
    (tmp_path / "0001_b.sql").rename(tmp_path / "b.sql")
    with pytest.raises(MigrationError, match="not named"):
        read_migrations(tmp_path)


@pytest.mark.parametrize("folder", [CATALOGUE, SHARD, ANALYTICS], ids=["catalogue", "shard", "analytics"])
def test_numbers_have_no_gaps(folder: Path) -> None:
    migrations = read_migrations(folder)
    assert [m.number for m in migrations] == list(range(1, len(migrations) + 1))


@pytest.mark.parametrize("kind", ["catalogue", "shard", "analytics"])
def test_the_schema_is_the_committed_one(migrated: Databases, kind: str) -> None:
    """A difference is either a mistake or to be committed: `python -m tests.migrations.snapshot` writes the files."""
    dsn = {
        "catalogue": migrated.catalogue_dsn, "shard": migrated.shard_dsns[0], "analytics": migrated.analytics_dsn,
    }[kind]  # fmt: skip
    assert describe(dsn) == (HERE / f"{kind}.schema").read_text(encoding="utf-8")


def test_the_command_migrates_by_settings(migrated: Databases) -> None:
    """`python -m migrations` on databases that are up to date says so, and prints no password."""
    run = subprocess.run(
        [sys.executable, "-m", "migrations"],
        env=os.environ | migrated.environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines() == [
        f"{name}: up to date" for name in ("catalogue", *(f"shard_{n}" for n in range(4)), "analytics")
    ]
