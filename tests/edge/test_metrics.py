"""/metrics of an edge with two workers: contains every worker, and the numbers add up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from devstack.servers import RedisServer
from domain import topology
from edge.metrics import FRESH_S
from tests.edge.concurrent import ask_all, orders_of_many
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher

pytestmark = pytest.mark.doors("granian")  # not a matter of the door


def samples(edge: EdgeProcess) -> list[Sample]:
    answer = httpx.get(f"{edge.url}/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]


def fresh_samples(edge: EdgeProcess) -> list[Sample]:
    """Samples that include all requests answered before the call: the text is up to `FRESH_S` old."""
    time.sleep(FRESH_S)
    return samples(edge)


def total(found: Iterable[Sample], name: str, **labels: str) -> float:
    return sum(s.value for s in found if s.name == name and labels.items() <= s.labels.items())


async def test_two_workers(
    own_edge: Callable[..., EdgeProcess], edge_redis: RedisServer, buyers: Buyers, publisher: Publisher
) -> None:
    edge = own_edge(redis_url=edge_redis.url, edge_workers="2")
    deadline = time.monotonic() + 10
    while total(samples(edge), "flashsale_edge_ready") < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    sale = publisher.publish(stock=30)
    answers = await ask_all(edge.port, orders_of_many(sale, buyers, 80))
    assert sorted(answer.status for answer in answers) == [202] * 30 + [409] * 50
    await asyncio.to_thread(httpx.get, f"{edge.url}/none")
    deadline = time.monotonic() + 10
    # The numbers of the other worker are at most a second old.
    while total(found := samples(edge), "flashsale_edge_orders_total") < 80:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert {sample.labels["worker"] for sample in found} == {"0", "1"}
    assert total(found, "flashsale_edge_orders_total", outcome="accepted") == 30
    assert total(found, "flashsale_edge_orders_total", outcome="sold_out") == 50
    assert total(found, "flashsale_edge_order_duration_seconds_count") == 80
    assert total(found, "flashsale_edge_order_duration_seconds_bucket", le="+Inf") == 80
    assert total(found, "flashsale_edge_order_duration_seconds_sum") > 0
    assert total(found, "flashsale_edge_batches_total") >= 2
    # Includes orders by the read-only lookup, after their worker saw the sale sold out.
    assert total(found, "flashsale_edge_batch_orders_total") >= 80
    assert total(found, "flashsale_edge_redis_reconnects_total") == 0
    assert total(found, "flashsale_edge_durability_info", level="fsync") == 2
    assert total(found, "flashsale_edge_ready") == 2
    names = {sample.name for sample in found}
    for name in ("queue_length", "batches_in_flight", "requests_in_flight", "redis_memory_percent", "known_sales"):
        assert f"flashsale_edge_{name}" in names
    while total(samples(edge), "flashsale_edge_requests_total", route="other", status="404") != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    # The buckets of each worker are cumulative.
    for worker in ("0", "1"):
        counts = [
            sample.value
            for sample in found
            if sample.name == "flashsale_edge_order_duration_seconds_bucket" and sample.labels["worker"] == worker
        ]
        assert counts == sorted(counts)


async def test_accepted_and_refused_orders_are_added_up_for_staff(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher
) -> None:
    sale = publisher.publish(stock=5)
    answers = await ask_all(edge.port, orders_of_many(sale, buyers, 20))
    assert sum(answer.status == 409 for answer in answers) == 15
    refused_key = topology.REFUSED_KEY_PREFIX + str(sale.sale_id)
    deadline = time.monotonic() + 10
    while True:
        accepted = publisher.redis.hget(topology.ACCEPTED_KEY, str(sale.sale_id))
        refused = publisher.redis.hgetall(refused_key)
        if (accepted, refused) == (b"5", {b"sold_out": b"15"}):
            break
        assert time.monotonic() < deadline, (accepted, refused)
        await asyncio.sleep(0.05)


async def test_orders_of_a_batch_are_counted_by_either_script(
    edge: EdgeProcess, buyers: Buyers, publisher: Publisher
) -> None:
    names = ("flashsale_edge_batch_orders_total", "flashsale_edge_batches_total")
    found = await asyncio.to_thread(fresh_samples, edge)
    before = [total(found, name) for name in names]
    sale = publisher.publish(stock=1)
    for order in orders_of_many(sale, buyers, 4):  # accepted, sold out, then by the read-only lookup
        await ask_all(edge.port, [order])
    found = await asyncio.to_thread(fresh_samples, edge)
    assert [total(found, name) - count for name, count in zip(names, before, strict=True)] == [4, 4]
