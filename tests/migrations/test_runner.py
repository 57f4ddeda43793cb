"""The migration runner against a real PostgreSQL: once each, in order, whatever happens meanwhile."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from devstack.servers import PostgresServer
from migrations.files import ANALYTICS, CATALOGUE, SHARD, Migration, MigrationError, Phase, read_migrations
from migrations.plan import Step, plan
from migrations.runner import Database, Waits, apply, at_once, migrate, migrate_databases
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


def _post(number: int, text: str) -> Migration:
    return Migration(number, f"{number:04d}_test.post", text)


def test_a_database_that_fails_does_not_stop_the_others(empty_database: str, postgres_server: PostgresServer) -> None:
    other = postgres_server.create_database(f"migrations_{next(_numbers)}")
    good, bad = [_migration(1, "CREATE TABLE a (x int)")], [_migration(1, "SELECT 1 / 0")]
    targets = [Database("shard_0", empty_database, bad), Database("shard_1", other, good)]
    with pytest.raises(MigrationError) as failure:
        migrate_databases(targets)
    assert str(failure.value) == "shard_0: 0001_test: division by zero\ncompleted nevertheless: shard_1: 0001_test"
    targets[0] = Database("shard_0", empty_database, good)
    assert migrate_databases(targets) == {"shard_0": ["0001_test"], "shard_1": []}


def test_databases_are_migrated_at_the_same_time() -> None:
    both = threading.Barrier(2)
    targets = [Database("a", "", []), Database("b", "", [])]
    assert at_once(targets, lambda target: [target.name, both.wait(timeout=60) < 2]) == {
        "a": ["a", True], "b": ["b", True],
    }  # fmt: skip


def test_post_files_wait_until_they_are_asked_for(empty_database: str) -> None:
    first, contract = _migration(1, "CREATE TABLE a (x int, y int)"), _post(3, "ALTER TABLE a DROP COLUMN x")
    expand = _migration(2, "ALTER TABLE a ADD COLUMN z int")
    apply(empty_database, [first], database="x")
    assert apply(empty_database, [first, expand, contract], database="x", until=Phase.PRE) == ["0002_test"]
    assert apply(empty_database, [first, expand, contract], database="x", until=Phase.PRE) == []
    later = _migration(4, "CREATE TABLE b (x int)")
    with pytest.raises(MigrationError, match=r"x: 0004_test comes after 0003_test\.post of an earlier release"):
        apply(empty_database, [first, expand, contract, later], database="x", until=Phase.PRE)
    assert apply(empty_database, [first, expand, contract, later], database="x") == ["0003_test.post", "0004_test"]


def test_an_empty_database_gets_every_file(empty_database: str) -> None:
    files = [_migration(1, "CREATE TABLE a (x int, y int)"), _post(2, "ALTER TABLE a DROP COLUMN x")]
    assert apply(empty_database, files, database="x", until=Phase.PRE) == ["0001_test", "0002_test.post"]


def test_a_file_without_its_lock_is_tried_again(empty_database: str) -> None:
    first, second = _migration(1, "CREATE TABLE a (x int)"), _migration(2, "ALTER TABLE a ADD COLUMN y int")
    apply(empty_database, [first], database="x")
    with psycopg.connect(empty_database) as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("LOCK TABLE a IN ACCESS SHARE MODE")
        with pytest.raises(MigrationError, match=r"x: 0002_test: got no table lock in 2 tries of 20 ms; end the long"):
            apply(empty_database, [first, second], database="x", waits=Waits(table_lock_ms=20, tries=2, pause_s=0))
        waits = Waits(table_lock_ms=20, tries=1000, pause_s=0)
        run = pool.submit(apply, empty_database, [first, second], database="x", waits=waits)
        holder.rollback()
        assert run.result() == ["0002_test"]


_CONCURRENT = "-- transaction: none\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a_x ON a (x);\n"


def test_an_index_that_failed_is_built_again(empty_database: str) -> None:
    table = _migration(1, "CREATE TABLE a (x int); INSERT INTO a VALUES (1), (1)")
    index = _migration(2, _CONCURRENT)
    with pytest.raises(MigrationError, match="x: 0002_test: could not create unique index"):
        apply(empty_database, [table, index], database="x")
    with psycopg.connect(empty_database, autocommit=True) as connection:
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'a_x'::regclass"
        assert connection.execute(valid).fetchone() == (False,)
        connection.execute("DELETE FROM a")
        assert apply(empty_database, [table, index], database="x") == ["0002_test"]
        assert connection.execute(valid).fetchone() == (True,)
        connection.execute("DELETE FROM schema_migrations WHERE number = 2")  # a crash before the record
    assert apply(empty_database, [table, index], database="x") == ["0002_test"]


def test_racing_runs_build_a_concurrent_index_once(empty_database: str) -> None:
    files = [_migration(1, "CREATE TABLE a (x int)"), _migration(2, _CONCURRENT)]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(apply, empty_database, files, database="x") for _ in range(4)]
        assert sorted(name for run in runs for name in run.result()) == ["0001_test", "0002_test"]


def test_a_file_outside_a_transaction_has_one_repeatable_statement(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("-- transaction: none\nCREATE INDEX CONCURRENTLY a_x ON a (x);\n")
    with pytest.raises(MigrationError, match="0001_a: a file outside a transaction is one CREATE INDEX CONCURRENTLY"):
        read_migrations(tmp_path)


def test_the_plan_lists_files_with_locks_and_changes_nothing(empty_database: str) -> None:
    files = [
        _migration(1, "CREATE TABLE a (x int); CREATE INDEX a_y ON a (x); ALTER TABLE b ADD COLUMN y int"),
        _migration(2, _CONCURRENT),
        _post(3, "ALTER TABLE public.a DROP COLUMN x; -- ALTER TABLE c\nDROP TRIGGER t ON d"),
    ]
    before = describe(empty_database)
    assert plan([Database("x", empty_database, files)]) == {
        "x": [
            Step("0001_test", Phase.PRE, in_transaction=True, locks=("b: ACCESS EXCLUSIVE",)),
            Step("0002_test", Phase.PRE, in_transaction=False, locks=("a: SHARE UPDATE EXCLUSIVE",)),
            Step("0003_test.post", Phase.POST, in_transaction=True,
                 locks=("public.a: ACCESS EXCLUSIVE", "d: ACCESS EXCLUSIVE")),
        ],
    }  # fmt: skip
    assert describe(empty_database) == before


def test_the_plan_of_a_changed_file_fails(empty_database: str) -> None:
    apply(empty_database, [_migration(1, "CREATE TABLE a (x int)")], database="x")
    with pytest.raises(MigrationError, match=r"0001_test was changed after it had been applied"):
        plan([Database("x", empty_database, [_migration(1, "SELECT 1")])])
