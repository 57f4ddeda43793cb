"""`flashsale rebuild` on a running stack: refuses a healthy sale, and reopens a sale that Redis lost."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any
from uuid import UUID

import httpx
import redis

from domain import ids, topology
from domain.topology import Topology
from tests.fixtures.fix_databases import audited
from tests.fixtures.fix_stack import RunningStack, eventually


def buy(sample: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to the printed curl command: the same request each time."""
    done = subprocess.run(shlex.split(sample["curl"]), capture_output=True, text=True, timeout=30, check=True)
    head, _, body = done.stdout.partition("\n\n")
    return int(head.split()[1]), json.loads(body)


def test_a_sale_that_redis_lost_is_rebuilt(running_stack: RunningStack) -> None:
    sample = json.loads(running_stack.flashsale("sample-sale", "--units", "5", "--json").stdout)
    eventually(lambda: httpx.get(sample["sale_url"]).status_code == 200)
    bought = buy(sample)
    assert bought[0] == 202
    sale_id = sample["sale_id"]
    refused = running_stack.flashsale("rebuild", "--sale", sale_id, check=False)
    assert refused.returncode == 1 and "nothing to rebuild" in refused.stderr

    with redis.Redis.from_url(running_stack.stack.redis_url) as client:
        tag = ids.short(UUID(sale_id)).encode()
        for key in client.scan_iter("{?}:state"):
            for name in client.hkeys(key):
                if tag in name:
                    client.hdel(key, name)
        for lane in range(Topology().lanes):
            for key in client.scan_iter(topology.user_key_pattern(lane, UUID(sale_id))):
                client.delete(key)
    status, problem = buy(sample)
    assert (status, problem["code"]) == (503, "dependency_unavailable")

    report = json.loads(running_stack.flashsale("rebuild", "--sale", sale_id, "--json").stdout)
    assert (report["epoch"], report["orders"], report["lost"]) == (2, {"reserved": 1}, [])
    eventually(lambda: buy(sample)[0] == 202)
    assert buy(sample)[1]["order_id"] == bought[1]["order_id"]
    judged = json.loads(running_stack.flashsale("reconcile", "--sale", sale_id, "--json").stdout)
    assert (judged["A"], judged["B"]) == (True, True), judged
    assert audited(running_stack.stack.catalogue_dsn, f"sale:{sale_id}") == [("sale.rebuild", "done")]


def test_what_is_no_sale_id_is_wrong_usage(running_stack: RunningStack) -> None:
    done = running_stack.flashsale("rebuild", "--sale", "x", check=False)
    assert done.returncode == 2
    assert "--sale" in done.stderr and "workers" not in done.stderr
