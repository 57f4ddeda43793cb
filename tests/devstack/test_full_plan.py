"""The plan of a full stack: its servers, their order, and the addresses that processes get. Starts no server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import packages, pgbouncer
from devstack.full import STACK_VARIABLE, FullPlan, StackKind, plan_of
from devstack.packages import Package, install_missing, needed
from devstack.plan import Plan
from devstack.postgres_pair import PostgresNode
from devstack.servers import PostgresServer
from devstack.state import StateFolder
from ops.stack_file import StackError

PAIRS = ("catalogue", "shard-0", "shard-1", "shard-2", "shard-3")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullPlan]:
    """Of a folder whose PostgreSQL servers are not made: `initdb` takes a second for each."""
    if pgbouncer.program() is None:
        pytest.skip(pgbouncer.HOW_TO_INSTALL)
    monkeypatch.setattr(PostgresNode, "initialise", lambda node: node.folder.mkdir(exist_ok=True))
    monkeypatch.setattr(PostgresNode, "write_role", lambda *_, **__: None)
    monkeypatch.setattr(PostgresServer, "password", "of-postgres")
    folder = StateFolder(tmp_path / "state")
    folder.make()
    made = plan_of(folder, 0, 0, {STACK_VARIABLE: StackKind.FULL})
    assert isinstance(made, FullPlan)
    made.initialise()
    yield made
    folder.destroy()


def test_primaries_start_before_their_standbys(plan: FullPlan) -> None:
    first, second = ([program.name for program in group] for group in plan.server_groups())
    assert set(first) >= {"redis", "redis-cache", *(f"postgres-{name}" for name in PAIRS)}
    assert set(second) == {
        "redis-replica",
        *(f"postgres-{name}-replica" for name in PAIRS),
        *("pgbouncer-catalogue", "pgbouncer-0", "pgbouncer-1", "pgbouncer-2", "pgbouncer-3"),
    }


def test_processes_get_pooled_direct_and_replica_addresses(plan: FullPlan) -> None:
    nodes = [pair.primary.port for pair in plan.pairs.values()]
    standbys = [pair.standby.port for pair in plan.pairs.values()]
    poolers = [pooler.port for pooler in plan.poolers.values()]
    for program in plan.processes():
        env = program.env
        for kind, ports in (("", poolers), ("DIRECT_", nodes), ("REPLICA_", standbys)):
            dsns = [env[f"FLASHSALE_CATALOGUE_{kind}DSN"], *env[f"FLASHSALE_SHARD_{kind}DSNS"].split(",")]
            names = ["catalogue", "shard_0", "shard_1", "shard_2", "shard_3"]
            expected = [f"127.0.0.1:{port}/{name}" for port, name in zip(ports, names, strict=True)]
            assert [dsn.partition("@")[2] for dsn in dsns] == expected
        assert env["FLASHSALE_ANALYTICS_DSN"].endswith(f":{nodes[0]}/analytics")
        assert env["FLASHSALE_CACHE_URL"] == plan.redis_cache.url != env["FLASHSALE_REDIS_URL"]


def test_servers_take_little_and_their_secrets_are_in_files(plan: FullPlan) -> None:
    programs = [program for group in plan.server_groups() for program in group]
    for program in programs:
        assert "of-postgres" not in " ".join(program.argv)
        assert plan.folder.secret("redis_password") not in " ".join(program.argv)
    assert all("shared_buffers=64MB" in pair.standby.argv for pair in plan.pairs.values())
    assert str(plan.redis.port) in plan.redis_replica.argv


def test_a_folder_has_stacks_of_one_kind(plan: FullPlan, tmp_path: Path) -> None:
    with pytest.raises(StackError, match="kind full: start it with `--stack full`"):
        plan_of(plan.folder, 0, 0, {})
    other = StateFolder(tmp_path / "other")
    other.make()
    assert type(plan_of(other, 0, 0, {})) is Plan
    (other.data / "postgres").mkdir()
    with pytest.raises(StackError, match="kind embedded"):
        plan_of(other, 0, 0, {STACK_VARIABLE: StackKind.FULL})


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {package.name for package in needed(queue_is_rabbitmq=True, event_log_is_kafka=True)}
    assert names == {"pgbouncer", "rabbitmq-server", "openjdk-17-jre-headless", "maven"}
    assert [package.name for package in needed(queue_is_rabbitmq=False, event_log_is_kafka=False)] == ["pgbouncer"]
    missing = Package("pgbouncer", "pools of connections", lambda: False)
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    with pytest.raises(StackError, match=r"run as root: apt-get install --yes .* pgbouncer"):
        install_missing([missing], print)


def test_root_installs_missing_packages_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = tmp_path / "installed"
    program = tmp_path / "apt-get"
    program.write_text(f'#!/bin/sh\necho "$@" > {installed}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(packages.os, "geteuid", lambda: 0)
    install_missing([Package("pgbouncer", "pools of connections", installed.exists)], print)
    assert capsys.readouterr().out.startswith("Installing pgbouncer (pools of connections): apt-get install")
    assert installed.read_text().split() == ["install", "--yes", "--no-install-recommends", "pgbouncer"]
