"""A background task of a real edge that ends: an error line, /readyz names it, it runs again; orders are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from devstack.servers import RedisServer
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_edge import Buyers, EdgeProcess, Publisher
from tests.fixtures.planted import PlantedError

pytestmark = pytest.mark.doors("granian")  # not a matter of the door


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlantedError:
    error = PlantedError(tmp_path, "edge.refusals:Refusals.flush")
    monkeypatch.setenv("PYTHONPATH", error.install())
    return error


def test_a_task_that_ends_is_named_by_readyz_and_runs_again(
    own_edge: Callable[..., EdgeProcess],
    planted: PlantedError,
    edge_redis: RedisServer,
    publisher: Publisher,
    buyers: Buyers,
    migrated: Databases,
) -> None:
    edge = own_edge(redis_url=edge_redis.url, shard_dsns=",".join(migrated.shard_dsns))
    sale = publisher.publish()
    planted.begin()
    answer = edge.wait_ready(status=503)
    assert answer.json()["missing"] == ["task refusals"]
    assert "task refusals: ended by KeyError, restart 1 of 10 in a row" in answer.json()["detail"]
    order = httpx.post(
        f"{edge.url}/v1/sales/{sale.sale_id}/orders",
        headers=buyers.headers(),
        json={"items": [{"sku": "SKU-1", "quantity": 1}]},
    )
    assert order.status_code == 202, order.text
    lines = [json.loads(line) for line in edge.log_text.splitlines() if line.startswith("{")]
    [ended, *_] = [line for line in lines if line["event"] == "task ended"]
    assert (ended["level"], ended["task"], ended["by"]) == ("error", "refusals", "KeyError")
    assert "KeyError: 'planted'" in ended["exception"]
    assert 'flashsale_task_restarts_total{task="refusals",worker="0"}' in httpx.get(f"{edge.url}/metrics").text
    planted.end()
    edge.wait_ready()
