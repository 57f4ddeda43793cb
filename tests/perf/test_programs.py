"""Each program that makes a figure, at minimal size: it runs and its parts add up; results are not judged."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis

from devstack.servers import RedisServer
from perf import (
    broker,
    by_clock,
    cached_reads,
    deep_look,
    flatness,
    gate,
    growth,
    lanes,
    login,
    open_loop,
    pipeline,
    writer_bench,
)
from perf.by_clock import RequestsFailed
from perf.driver.loop import Loop
from perf.flatness import Buyers, Point
from perf.load import Aim, Load, LoadFailed, require_all_accepted, write_tokens
from perf.open_loop import Schedule
from perf.scene import Scene, empty_handler
from perf.stage import Stage, edge_on_redis
from perf.whole_stack import sale_on
from perf.wrk import LoadGenerator
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_stack import RunningStack


def _silent(_: str) -> None: ...


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """An edge on its own Redis, for the programs that need one."""
    with edge_on_redis({"FLASHSALE_USER_RATE": "1000"}) as stage:
        yield stage


@pytest.fixture
def aim(stage: Stage, tmp_path: Path) -> Aim:
    write_tokens(tmp_path / "tokens", stage.keys_file, users=50)
    return Aim(stage.url, [stage.publish({"A": 10_000}) for _ in range(2)], ["A"], tmp_path / "tokens")


def test_open_loop(aim: Aim) -> None:
    result = open_loop.run(aim, Schedule(rate=400, connections=8, processes=2), key_prefix="k", seconds=0.5)
    assert result["due"] == result["sent"] == result["accepted"] == 200
    assert result["latency_ms"].keys() == result["lateness_ms"].keys() == {"p50", "p95", "p99", "p99.9", "max"}
    assert open_loop.as_text(result)


def test_orders_that_are_refused_make_no_figure(stage: Stage, aim: Aim) -> None:
    poor = Aim(aim.url, [stage.publish({"A": 3})], ["A"], aim.tokens)
    with pytest.raises(LoadFailed, match="sold_out"):
        open_loop.run(poor, Schedule(rate=200, connections=2), key_prefix="k", seconds=0.1)


def test_closed_loop_stops_when_told(aim: Aim) -> None:
    with Load(aim, "closed", 60.0, 4) as load:
        final = load.finish()
    require_all_accepted(final | {"accepted": final["accepted"] or 1})
    assert "open_loop" not in final


async def test_deep_look(databases: Databases, redis_server: RedisServer, redis_client: redis.Redis) -> None:
    assert redis_client.dbsize() == 0
    result = await deep_look.measure(databases, redis_server.url, orders=2000)
    assert result["orders"] == 2000 and result["slices"] == 4 * 2 + 1
    assert deep_look.as_text(result)


def test_growth(stage: Stage) -> None:
    result = growth.measure(stage, requests=2000, every=200, say=_silent)
    assert result["requests"] == 2000 and len(result["samples"]) == 10
    assert result["answers"]["accepted"] == {"202": 800}
    assert result["answers"]["replays"] == {"202": 400} and result["replayed"] == 400
    assert result["answers"]["sold out"] == {"409 sold_out": 500}
    assert result["answers"]["bad tokens"] == {"401 token_invalid": 140}
    assert result["whole_way"] == 1700
    bad = result["answers"]["bad bodies"]
    assert {"400 malformed_request", "422 validation_failed", "404 sku_not_found"} == set(bad)
    assert sum(bad.values()) == 160
    assert all(sample["resident"] > 10 for sample in result["samples"])
    assert growth.as_text(result)


def test_flatness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatness, "FILL_ORDERS_MIN", 300)
    point, buyers = Point(sales=120, users=20), Buyers.mint(tmp_path, 50)
    pairs = flatness.measure(point, Point(1, 50), buyers, rounds=2, seconds=0.2, say=_silent)
    for sample in (sample for pair in pairs for sample in pair):
        assert sample.orders_per_s > 0 and sample.cost_us == sample.edge_us + sample.redis_us > 0
    assert len(pairs) == 2
    assert len(flatness.as_text([flatness.summarise(point, pairs)])) == 2


def test_orders_by_number_end_answered(stage: Stage, aim: Aim) -> None:
    with Path(os.devnull).open("wb") as sink:
        loop = Loop(
            host="127.0.0.1", port=stage.port, paths=[f"/v1/sales/{aim.sales[0]}/orders"], connections=4, prefix="n",
            tokens=[line.rpartition("\t")[2].encode() for line in aim.tokens.read_text().splitlines()],
            bodies=[b'{"items":[{"sku":"A","quantity":1}]}'], record_fd=sink.fileno(),
        )  # fmt: skip
        for total in (1, 10, 10):
            assert loop.run_orders(total - loop.accepted, 10.0) == 0
            assert loop.accepted == loop.next_order == total
        loop.run(0.05)
        assert loop.run_orders(0, 10.0) == 0 and loop.accepted == loop.next_order > 10
        assert loop.run_orders(5, 0.0) == 5  # no time left: none is sent


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_gate(running_stack: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        sale_on(running_stack.stack, running_stack.folder, _silent, users=10_000) as whole,
        empty_handler(whole.aim.tokens.parent, as_the_edge=True) as (empty, url),
    ):
        load_generator = LoadGenerator(whole.aim.tokens, users=10_000, connections=8)
        stage = Scene(whole, {"A": (empty, url)}, load_generator, _silent)
        with stage.halted():
            began = whole.depths()
            run = stage.run("B", "halted", 1)
            stage.recount([run])
            # No relay runs: all orders are in the stream, none in a shard.
            assert run.stored_meanwhile == run.found == 0 and run.missing == run.promised > 0
            assert whole.depths().unrelayed == began.unrelayed + run.promised
        stage.drain()
        stage.recount([run])
        assert run.found == run.promised and run.missing == 0
        gated = gate.measure(stage, rounds=1, seconds=1)
        whole_pipeline = gate.measure_whole_pipeline(stage, seconds=1)
    assert empty.poll() is not None
    assert [run.tag for run in gated.runs] == ["A1", "B1", "C1", "D1", "E1"]
    for measured in (gated, whole_pipeline):
        assert measured.total("unwanted") == measured.total("missing") == 0
        for run in measured.runs:
            if run.name in ("B", "D"):
                assert run.found == run.promised >= run.answers.requests > 0
            else:
                assert run.promised == 0
        assert len(gate.as_table(measured, "title")) == 7
    assert "B1 " in capsys.readouterr().err


def test_gate_needs_wrk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["perf.gate"])
    assert gate.main() == 2
    assert "Debian package `wrk`" in capsys.readouterr().err


def test_pipeline(running_stack: RunningStack) -> None:
    with sale_on(running_stack.stack, running_stack.folder, _silent, users=50) as whole:
        result = pipeline.measure(whole, seconds=3.0, rate=100.0, connections=4, say=_silent)
        assert result["accepted"] == result["stored"] == whole.depths().stored == 300
    assert all(size >= 1 for size in result["batches"].values()) and len(result["batches"]) == 3
    assert {"edge", "redis", "postgres"} < set(result["cpu_us_an_order"])
    assert len(result["samples"]) == 3 and pipeline.as_text(result)


def test_broker_backlog(running_stack: RunningStack) -> None:
    with sale_on(running_stack.stack, running_stack.folder, _silent, users=5_000) as whole:
        backlog = broker.measure_backlog(whole, orders=100, say=_silent)
        assert backlog["orders"] == whole.depths().stored >= 100
        assert backlog["drain_s"] > 0


class SlowEdge:
    """Answers 202 after a delay, and counts requests by path."""

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self.paths: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                assert length
                await reader.readexactly(int(length[1]))
                self.paths[head.split()[1]] += 1
                await asyncio.sleep(self.answer_s)
                body = b'{"order_id":"00000000-0000-8000-8000-000000000000"}'
                writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        except asyncio.IncompleteReadError:
            writer.close()


@pytest.mark.parametrize("ended", [True, False])
def test_a_writer_that_stands_still_makes_no_figure(
    ended: bool, running_stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_bench, "STILL_S_MAX", 60.0 if ended else 0.2)
    sleeps = [sys.executable, "-c", f"import time; time.sleep({0 if ended else 60})"]
    with subprocess.Popen(sleeps) as writer, ExitStack() as looks:
        looks.callback(writer.kill)
        shards = [looks.enter_context(psycopg.connect(dsn)) for dsn in running_stack.stack.shard_dsns]
        assert writer_bench.wait_stored(shards, writer, 0) >= 0
        with pytest.raises(RuntimeError, match="stands still at"):
            writer_bench.wait_stored(shards, writer, 1_000_000_000)


async def test_waiting_behind_a_slow_answer_counts(tmp_path: Path) -> None:
    """One connection, an order due every 10 ms, an answer after 20 ms: order i waits at least 10 ms times i."""
    edge = SlowEdge(0.02)
    server = await asyncio.start_server(edge.serve, "127.0.0.1", 0)
    (tmp_path / "tokens").write_text("user\ttoken\n", encoding="ascii")
    sales = [uuid4(), uuid4()]
    aim = Aim(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", sales, ["A"], tmp_path / "tokens")
    result = await asyncio.to_thread(open_loop.run, aim, Schedule(rate=100, connections=1), key_prefix="k", seconds=0.5)
    server.close()
    assert result["due"] == result["sent"] == result["accepted"] == 50 == sum(edge.paths.values())
    assert set(edge.paths) == {f"/v1/sales/{sale}/orders" for sale in sales}
    # Buckets start at most 1.6 % below their values.
    assert result["latency_ms"]["max"] >= 0.98 * (20 + 49 * 10)
    assert result["lateness_ms"]["max"] >= 0.98 * 49 * 10
    assert 0 < result["found_none_idle"] <= 49


def test_login(running_stack: RunningStack) -> None:
    url = running_stack.stack.backoffice_url
    logins = login.register(url, users=2)
    course = by_clock.run(url, logins, rate=20, seconds=0.5, clients=4)
    assert len(course.latency_ms) == len(course.lateness_ms) == 10 and course.failures == []
    assert by_clock.percentiles([4, 1, 3, 2]) == {"p50": 2, "p95": 4, "p99": 4, "max": 4}
    body = logins[0].body
    assert body is not None
    wrong = [replace(logins[0], body=body.replace(b'"password": "', b'"password": "x'))]
    with pytest.raises(RequestsFailed, match="2 of 2 failed: 401"):
        by_clock.run(url, wrong, rate=20, seconds=0.1, clients=4)


def test_cached_reads(running_stack: RunningStack) -> None:
    stack = running_stack.stack
    with psycopg.connect(stack.catalogue_dsn) as connection:
        before = {row[0] for row in connection.execute("SELECT id FROM products WHERE active")}
    products = cached_reads.products(stack, count=20, first=900_000)
    assert len(products) == len(before) + 19, "one of twenty is not on show"
    reads = cached_reads.draw(products, cached_reads.accounts(stack, running_stack.folder, count=3))
    assert len(reads) == cached_reads.DRAWN
    # The first rank is read most often, in proportion to all ranks.
    drawn = Counter(read.path for read in reads if read.path.startswith("/v1/products/"))
    share = drawn.most_common(1)[0][1] / drawn.total()
    assert share == pytest.approx(1 / sum(1 / rank for rank in range(1, len(products) + 1)), rel=0.1)
    course = by_clock.run(stack.backoffice_url, reads, rate=40, seconds=0.5, clients=4)
    assert len(course.latency_ms) == 20 and course.failures == []


def test_lanes() -> None:
    with edge_on_redis(lanes.RATES) as stage, lanes.rebalancer(stage):
        one, many = lanes.measure_costs(stage, seconds=0.2, say=_silent)
        assert one > 0 and many > 0
        last = lanes.sell_all(stage, units=3_000, say=_silent)
    assert last["sold"] == 3_000 and 0 <= last["last_s"] <= last["took_s"]
