"""A whole full stack: started as a user would, an order through it, kills, and the same data after another start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from devstack import pgbouncer, rabbitmq
from devstack.state import StateFolder
from tests.fixtures.fix_stack import RunningStack, eventually, flashsale

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
UP = ("up", "--detach", "--stack", "full", "--event-log", "redis", "--edge-port", "0", "--backoffice-port", "0")
KILLED = ("postgres-shard-0-replica", "pgbouncer-0", "postgres-shard-0", "redis-replica", "redis-cache", "redis")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    for missing, hint in (
        (pgbouncer.program() is None, pgbouncer.HOW_TO_INSTALL),
        (rabbitmq.programs_folder() is None, rabbitmq.HOW_TO_INSTALL),
    ):
        if missing:
            pytest.skip(hint)
    folder = StateFolder(tmp_path / "full")
    try:
        flashsale(folder, *UP)
        yield RunningStack(folder)
    finally:
        flashsale(folder, "down", "--destroy")


def stored(dsns: list[str]) -> int:
    """Orders in these databases."""
    count = 0
    for dsn in dsns:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute("SELECT count(*) FROM orders").fetchone()
            assert row is not None
            count += row[0]
    return count


def shard_of(stack: RunningStack) -> int:
    """A shard with orders."""
    return next(shard for shard, dsn in enumerate(stack.stack.shard_dsns) if stored([dsn]))


def order(stack: RunningStack) -> None:
    """One accepted order in a sale of its own."""
    sample = json.loads(stack.flashsale("sample-sale", "--json").stdout)
    answer = subprocess.run(shlex.split(sample["curl"]), capture_output=True, text=True, timeout=30, check=True)
    assert " 202 " in answer.stdout.partition("\n")[0] + " "


def test_orders_reach_both_servers_of_a_pair_through_kills_and_a_restart(stack: RunningStack) -> None:
    order(stack)
    eventually(lambda: stored(stack.stack.shard_dsns) == 1)
    eventually(lambda: stored(stack.stack.shard_replica_dsns) == 1)
    for name in KILLED:
        killed = stack.stack.processes[name]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda name=name, killed=killed: stack.stack.processes[name] != killed)
        eventually(lambda: stack.flashsale("status", check=False).returncode == 0, patience_s=120)
    order(stack)
    eventually(lambda: stored(stack.stack.shard_replica_dsns) == 2, patience_s=60)
    shown = json.loads(stack.flashsale("status", "--json").stdout)["processes"]
    assert shown["postgres-shard-0"]["data"]["sync_state"] == "sync"
    assert shown["postgres-shard-0-replica"]["data"]["role"] == "standby"
    assert shown["pgbouncer-0"]["data"]["clients"] > 0
    shard = shard_of(stack)
    primary = stack.stack.shard_direct_dsns[shard]
    done = json.loads(stack.flashsale("failover", "--shard", str(shard), "--json").stdout)
    assert done["rejoined"] == "rewind"
    eventually(lambda: bool(stack.stack.shard_direct_dsns[shard] != primary))
    eventually(lambda: stack.flashsale("status", check=False).returncode == 0, patience_s=120)
    assert stored(stack.stack.shard_dsns) == 2
    order(stack)
    eventually(lambda: stored(stack.stack.shard_replica_dsns) == 3, patience_s=60)
    stack.flashsale("down")
    flashsale(stack.folder, *UP)
    assert stored(stack.stack.shard_dsns) == stored(stack.stack.shard_replica_dsns) == 3
