"""A sale that its lanes dropped a day after its end answers `sale_ended`, not `dependency_unavailable`."""

from __future__ import annotations

import time

import httpx
import pytest

from domain import ids, topology
from domain.sales import SaleDefinition
from reservation import scripts
from tests.fixtures.fix_edge import Buyers, Publisher

DAY_S = 86_400


def forget(publisher: Publisher, sale: SaleDefinition) -> None:
    script = publisher.redis.register_script(scripts.FORGET.source)
    assert script(keys=[topology.lane_state_key(sale.lanes[0])], args=[ids.short(sale.sale_id)]) == 2


@pytest.mark.parametrize(
    ("ended_s_ago", "order_status", "order_code", "read_status"),
    [(DAY_S + 60, 410, "sale_ended", 200), (DAY_S - 60, 503, "dependency_unavailable", 503)],
    ids=["after its time", "before: Redis lost it"],
)
def test_a_forgotten_sale(
    client: httpx.Client,
    buyers: Buyers,
    publisher: Publisher,
    ended_s_ago: int,
    order_status: int,
    order_code: str,
    read_status: int,
) -> None:
    sale = publisher.publish(starts_in_s=-2 * DAY_S, ends_in_s=-ended_s_ago)
    forget(publisher, sale)
    answer = client.post(
        f"/v1/sales/{sale.sale_id}/orders", headers=buyers.headers(), json={"items": [{"sku": "SKU-1", "quantity": 1}]}
    )
    assert (answer.status_code, answer.json()["code"]) == (order_status, order_code)
    read = client.get(f"/v1/sales/{sale.sale_id}")
    assert read.status_code == read_status
    if read_status == 200:
        assert read.json()["state"] == "ended"
        assert [item["availability"] for item in read.json()["items"]] == ["sold_out"]


def test_a_sale_whose_document_the_janitor_removed_is_unknown(
    client: httpx.Client, buyers: Buyers, publisher: Publisher
) -> None:
    sale = publisher.publish(starts_in_s=-2 * DAY_S, ends_in_s=-DAY_S - 600)
    forget(publisher, sale)
    order = f"/v1/sales/{sale.sale_id}/orders"
    one = {"items": [{"sku": "SKU-1", "quantity": 1}]}
    assert client.post(order, headers=buyers.headers(), json=one).status_code == 410
    publisher.redis.unlink(topology.sale_key(sale.sale_id))
    publisher.redis.publish(topology.SALES_CHANNEL, f"{topology.SALE_GONE}{sale.sale_id}")
    deadline = time.monotonic() + 20
    while client.get(f"/v1/sales/{sale.sale_id}").status_code != 404:
        assert time.monotonic() < deadline, "the edge got the announcement and still shows the sale"
        time.sleep(0.02)
    answer = client.post(order, headers=buyers.headers(), json=one)
    assert (answer.status_code, answer.json()["code"]) == (404, "sale_not_found")
