"""`flashsale backup` on a running stack that sells: one point of Redis and databases, restored into an empty stack."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from devstack.state import StateFolder
from tests.fixtures.fix_databases import audited
from tests.fixtures.fix_stack import COMMAND_S_MAX, ROOT, RunningStack, eventually, flashsale

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # two stacks and two backups
BUYERS = 20_000
PAUSE_S = 0.01


def backup(command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `flashsale backup COMMAND`; with `check`, its exit status must be 0."""
    argv = [sys.executable, "-m", "ops.cli", "backup", command, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S_MAX, cwd=ROOT, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@dataclass
class Buyers:
    """Buyers of one sale, one after another, until they are stopped. `accepted`: order ids as they were answered."""

    orders_url: str
    sku: str
    tokens: list[str]
    accepted: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def buying(self) -> Iterator[None]:
        thread = threading.Thread(target=self._buy)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _buy(self) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._stop.wait(PAUSE_S):
                answer = client.post(
                    self.orders_url,
                    json={"items": [{"sku": self.sku, "quantity": 1}]},
                    headers={"authorization": f"Bearer {self.tokens.pop()}", "idempotency-key": str(uuid4())},
                )
                if answer.status_code == 202:
                    self.accepted.append(answer.json()["order_id"])
                else:
                    self.problems.append(answer.text)


def stored(dsns: list[str], sale_id: str) -> set[str]:
    """Ids of the sale's orders in the shards."""
    found: set[str] = set()
    for dsn in dsns:
        with psycopg.connect(dsn, connect_timeout=10) as connection:
            rows = connection.execute("SELECT id::text FROM orders WHERE sale_id = %s", (sale_id,)).fetchall()
            found |= {order_id for (order_id,) in rows}
    return found


@pytest.fixture(scope="module")
def sale(running_stack: RunningStack) -> dict[str, Any]:
    """An open sale."""
    answer: dict[str, Any] = json.loads(running_stack.flashsale("sample-sale", "--units", "100000", "--json").stdout)
    eventually(lambda: httpx.get(answer["sale_url"]).status_code == 200)
    return answer


def test_a_backup_while_a_sale_runs_is_one_point(
    running_stack: RunningStack, sale: dict[str, Any], tmp_path: Path
) -> None:
    """The second is a difference. The restored stack has the orders of before, proves A and B, and sells."""
    root, state = tmp_path / "backups", f"--state-dir={running_stack.folder.path}"
    printed = running_stack.flashsale("mint-tokens", "--users", str(BUYERS)).stdout.splitlines()
    crowd = Buyers(sale["orders_url"], sale["sku"], [line.split("\t")[1] for line in printed])
    with crowd.buying():
        eventually(lambda: len(crowd.accepted) >= 20)
        first = json.loads(backup("create", str(root), state, "--json").stdout)
        between = len(crowd.accepted)
        eventually(lambda: len(crowd.accepted) >= between + 20)
        before = len(crowd.accepted)
        second = json.loads(backup("create", str(root), state, "--json").stdout)
        behind = len(crowd.accepted)
        eventually(lambda: len(crowd.accepted) >= behind + 20)
    assert not crowd.problems
    assert (first["parent"], second["parent"]) == (None, first["id"])
    assert second["bytes"] < first["bytes"]
    dsn = running_stack.stack.catalogue_dsn
    assert audited(dsn, f"backup:{second['id']}") == [("backup.create", "begun"), ("backup.create", "done")]
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        slots = connection.execute("SELECT slot_name FROM pg_replication_slots").fetchall()
    assert slots == []
    eventually(running_stack.is_ready)

    assert backup("verify", str(root)).stdout.startswith(second["id"])
    restored = StateFolder(tmp_path / "restored")
    backup("restore", str(root), f"--into={restored.path}")
    assert backup("restore", str(root), f"--into={restored.path}", check=False).returncode == 1, "never over data"
    try:
        flashsale(restored, "up", "--detach", "--edge-port", "0", "--backoffice-port", "0")
        judged = json.loads(flashsale(restored, "reconcile", "--sale", sale["sale_id"], "--json").stdout)
        assert (judged["A"], judged["B"]) == (True, True), judged
        stack = restored.require_stack()
        there = stored(stack.shard_dsns, sale["sale_id"])
        assert set(crowd.accepted[:before]) <= there, "accepted before the backup began"
        assert not set(crowd.accepted[behind + 1 :]) & there, "accepted after the backup ended"
        again = Buyers(f"{stack.edge_url}/v1/sales/{sale['sale_id']}/orders", sale["sku"], crowd.tokens)
        with again.buying():
            eventually(lambda: bool(again.accepted))
        assert not again.problems
    finally:
        flashsale(restored, "down", "--destroy")

    damaged = next((root / second["id"] / "redis").iterdir())
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    verdict = json.loads(backup("verify", str(root), "--json", check=False).stdout)
    assert verdict["is_good"] is False and any(damaged.name in problem for problem in verdict["problems"])
    refused = backup("restore", str(root), f"--into={tmp_path / 'other'}", check=False)
    assert refused.returncode == 1 and "damaged" in refused.stderr and not (tmp_path / "other").exists()
    assert backup("verify", str(root), "--id", first["id"]).returncode == 0, "the first one rests on nothing"
