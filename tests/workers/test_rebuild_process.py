"""A rebuild as a process: killed anywhere and run again, and while buyers keep ordering."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis

from devstack.servers import RedisServer
from domain.outcomes import Outcome
from domain.sales import Stock
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher
from tests.fixtures.fix_stack import eventually
from tests.reservation.lane import make_request
from tests.workers.making import stock
from tests.workers.rebuilding import (
    all_stored,
    believe,
    content,
    held,
    open_sale,
    pipeline,
    quiet_watch,
    settings_of,
    write_catalogue,
)
from tests.workers.test_rebuild import verdict_of
from tests.workers.worker_process import ROOT, worker_process
from tests.workers.writing import Bench, rows

KILLS = 4
STEPS = 15  # lines of progress of a rebuild
UNITS = 400


def spawn_rebuild(settings: Mapping[str, str], sale_id: UUID, *more: str) -> subprocess.Popen[bytes]:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environ |= {f"FLASHSALE_{name}": value for name, value in settings.items()}
    argv = [sys.executable, "-m", "workers.recovery.rebuild", "--sale", str(sale_id), "--json", *more]
    return subprocess.Popen(argv, env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill_after(process: subprocess.Popen[bytes], steps: int, pause_s: float) -> None:
    """SIGKILL after so many lines of progress and a moment more."""
    assert process.stderr is not None
    seen = 0
    while seen < steps and (line := process.stderr.readline()):
        seen += b"step" in line
    time.sleep(pause_s)
    process.kill()
    process.communicate()


async def test_killed_anywhere_and_run_again_it_ends_the_same(
    bench: Bench, seed: int, redis_client: redis.Redis
) -> None:
    rng = random.Random(seed)
    settings = settings_of(bench, redis_client)
    environ = {
        "REDIS_URL": settings.redis_url, "QUEUE_URL": settings.queue_url,
        "CATALOGUE_DSN": bench.databases.catalogue_dsn, "SHARD_DSNS": ",".join(bench.databases.shard_dsns),
    }  # fmt: skip
    market = open_sale(bench, redis_client, rng, units=60)
    async with pipeline(bench, settings):
        orders = market.buy(40)
        for order in orders[:5]:
            market.cancel(order)
        for order in orders[5:10]:
            market.lane.change("settle-5", order)
        await all_stored(bench)
    users = [order.user_id for order in market.orders]
    before, watch = content(market, users), await quiet_watch(bench)
    redis_client.flushall()
    await watch.look()
    async with pipeline(bench, settings):
        for _ in range(KILLS):
            process = spawn_rebuild(environ, market.sale.sale_id, "--force")
            await asyncio.to_thread(kill_after, process, rng.randrange(STEPS), rng.random() * 0.02)
        process = spawn_rebuild(environ, market.sale.sale_id, "--force")
        out, err = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, err.decode()
        report = json.loads(out)
        believe(market)
        assert market.sale.epoch == report["epoch"] <= 2 + KILLS
        assert content(market, users) == before
        market.buy(25)
        await all_stored(bench)
    assert held(bench, market.sale.sale_id) == 60
    assert (await verdict_of(bench, market)).is_proved
    assert market.lane.outcome(make_request(market.sale, users[0], "one more")) is Outcome.SOLD_OUT
    healthy = spawn_rebuild(environ, market.sale.sale_id)
    out, _ = healthy.communicate()
    assert healthy.returncode == 1 and "nothing to rebuild" in json.loads(out)["error"]


@dataclass
class RepeatingBuyers:
    """Buyers of one unit each; they repeat the same request until the answer is final."""

    edge: EdgeProcess
    buyers: Buyers
    sale_id: UUID
    units_wanted: int
    accepted: dict[UUID, tuple[str, str]] = field(default_factory=dict)  # user -> (key, order id)
    codes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Buy until the sale is sold out or every buyer has an order."""
        with httpx.Client(base_url=self.edge.url, timeout=10) as client:
            for _ in range(self.units_wanted):
                user_id, key = uuid4(), uuid4().hex
                headers = self.buyers.headers(user_id, key=key)
                if self.order(client, user_id, key, headers) == "sold_out":
                    return

    def order(self, client: httpx.Client, user_id: UUID, key: str, headers: dict[str, str]) -> str:
        """One request to its final answer: the code."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            answer = client.post(
                f"/v1/sales/{self.sale_id}/orders", headers=headers, json={"items": [{"sku": "SKU-1", "quantity": 1}]}
            )
            if answer.status_code == 202:
                self.accepted[user_id] = (key, answer.json()["order_id"])
                return "accepted"
            code = answer.json()["code"]
            self.codes.append(code)
            if code == "sold_out":
                return str(code)
            assert code in ("dependency_unavailable", "overloaded", "outcome_unknown", "sale_not_found"), answer.text
            time.sleep(0.05)
        raise AssertionError("no final answer")


@pytest.fixture
def publish(databases: Databases) -> Callable[[redis.Redis], Any]:
    """Publishes a sale of `UNITS` in Redis and in the catalogue."""

    def publish(client: redis.Redis) -> Any:
        sale = Publisher(client).publish(stock=UNITS)
        write_catalogue(databases.catalogue_dsn, sale, UNITS)
        stock(databases, sale.sale_id, {"SKU-1": UNITS})
        return sale

    return publish


def test_wiped_under_load_it_is_refused_rebuilt_and_sells_out_exactly(
    own_redis: RedisServer,
    databases: Databases,
    buyers: Buyers,
    own_edge: Callable[..., EdgeProcess],
    publish: Callable[[redis.Redis], Any],
) -> None:
    client = redis.Redis(port=own_redis.port)
    environ = {
        "REDIS_URL": own_redis.url, "QUEUE_URL": own_redis.url, "EVENT_LOG_URL": own_redis.url, "LEASE_MS": "500",
        "CATALOGUE_DSN": databases.catalogue_dsn, "SHARD_DSNS": ",".join(databases.shard_dsns),
    }  # fmt: skip
    with ExitStack() as stack:
        for module in ("workers.relay", "workers.shard_writer", "workers.recovery"):
            stack.enter_context(worker_process(module, environ))
        edge = own_edge(redis_url=own_redis.url, shard_dsns=environ["SHARD_DSNS"])
        sale = publish(client)
        groups = [RepeatingBuyers(edge, buyers, sale.sale_id, UNITS) for _ in range(4)]
        with ThreadPoolExecutor(len(groups)) as pool:
            runs = [pool.submit(group.run) for group in groups]
            eventually(lambda: sum(len(group.accepted) for group in groups) > UNITS // 8)
            client.flushall()
            eventually(lambda: any("dependency_unavailable" in group.codes for group in groups))
            at_wipe = {user: order for group in groups for user, order in group.accepted.items()}
            process = spawn_rebuild(environ, sale.sale_id)
            out, err = process.communicate()
            assert process.returncode == 0, err.decode()
            report = json.loads(out)
            for run in runs:
                run.result(timeout=60)
        accepted = {user: order for group in groups for user, order in group.accepted.items()}
        assert Publisher(client).stock(sale) == Stock(0, UNITS, 0, 0, UNITS, 0, 0)
        query = "SELECT order_id::text FROM audit_orders WHERE sale_id = %s AND status = 'reserved'"

        def stored() -> set[str]:
            return {row[0] for dsn in databases.shard_dsns for row in rows(dsn, query, sale.sale_id)}

        eventually(lambda: len(stored()) == UNITS)
        missing = {user for user, (_, order_id) in accepted.items() if order_id not in stored()}
        # Only orders under way when Redis was wiped are lost; requests that were refused and repeated are not.
        assert missing <= at_wipe.keys()
        assert len(missing) >= sum(lane["entries"] for lane in report["lost"])
        with httpx.Client(base_url=edge.url, timeout=10) as browser:
            for user_id, (key, order_id) in list(at_wipe.items())[:20]:
                if user_id not in missing:
                    headers = buyers.headers(user_id, key=key)
                    body = {"items": [{"sku": "SKU-1", "quantity": 1}]}
                    answer = browser.post(f"/v1/sales/{sale.sale_id}/orders", headers=headers, json=body)
                    assert (answer.status_code, answer.json()["order_id"]) == (202, order_id)
        judged = judge(environ, sale.sale_id)
        assert judged["A"] is True, judged
        # The lane was taking orders: entries after the last look are unknown, so B is never proved again.
        assert judged["B"] is (False if report["lost"] else None), judged
    client.close()


def judge(environ: Mapping[str, str], sale_id: UUID) -> dict[str, Any]:
    """`workers.reconciler --once`."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | {f"FLASHSALE_{k}": v for k, v in environ.items()}
    argv = [sys.executable, "-m", "workers.reconciler", "--once", "--sale", str(sale_id), "--wait-s", "10", "--json"]
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, timeout=60, check=False)
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict
