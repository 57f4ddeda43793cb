"""GET /v1/sales/{id}: the document for buyers, and its caching."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import httpx
import pytest

from domain import topology
from domain.sales import LaneSaleState, SaleDefinition, Stock
from edge.presenting import availability, timestamp
from tests.fixtures.fix_edge import Buyers, Publisher


def get(client: httpx.Client, sale: SaleDefinition, **headers: str) -> httpx.Response:
    return client.get(f"/v1/sales/{sale.sale_id}", headers={k.replace("_", "-"): v for k, v in headers.items()})


def test_a_sale(client: httpx.Client, publisher: Publisher) -> None:
    sale = publisher.publish(stock=(100, 0), price_minor=250)
    answer = get(client, sale)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=1"
    document = answer.json()
    assert set(document) == {"id", "name", "state", "starts_at", "ends_at", "server_time", "items"}
    assert (document["id"], document["name"], document["state"]) == (str(sale.sale_id), sale.name, "open")
    assert (document["starts_at"], document["ends_at"]) == (timestamp(sale.starts_at_ms), timestamp(sale.ends_at_ms))
    assert document["items"] == [
        {"sku": "SKU-1", "unit_price_minor": 250, "currency": "EUR", "per_user_limit": 0, "availability": "available"},
        {"sku": "SKU-2", "unit_price_minor": 250, "currency": "EUR", "per_user_limit": 0, "availability": "sold_out"},
    ]


def test_the_entity_tag_ignores_the_server_time(client: httpx.Client, publisher: Publisher) -> None:
    sale = publisher.publish()
    first = get(client, sale)
    time.sleep(0.002)
    second = get(client, sale)
    assert first.json()["server_time"] < second.json()["server_time"]
    tag = first.headers["etag"]
    assert tag == second.headers["etag"] and tag.startswith('W/"')
    for condition in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        answer = get(client, sale, if_none_match=condition)
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag and answer.headers["cache-control"] == "public, max-age=1"
    assert get(client, sale, if_none_match='W/"other"').status_code == 200


def test_states(client: httpx.Client, publisher: Publisher) -> None:
    published: dict[str, dict[str, Any]] = {
        "scheduled": {"starts_in_s": 60},
        "open": {},
        "paused": {"state": LaneSaleState.PAUSED},
        "ended": {"ends_in_s": -1},
    }
    for state, window in published.items():
        assert get(client, publisher.publish(**window)).json()["state"] == state


def test_a_change_shows_at_once_and_stock_within_a_second(
    client: httpx.Client, publisher: Publisher, buyers: Buyers
) -> None:
    sale = publisher.publish(stock=1)
    before = get(client, sale)
    answer = client.post(
        f"/v1/sales/{sale.sale_id}/orders",
        headers=buyers.headers(),
        json={"items": [{"sku": "SKU-1", "quantity": 1}]},
    )
    assert answer.status_code == 202
    deadline = time.monotonic() + 10
    while get(client, sale).json()["items"][0]["availability"] != "sold_out":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert get(client, sale).headers["etag"] != before.headers["etag"]
    publisher.change(sale, state=LaneSaleState.PAUSED)
    while get(client, sale).json()["state"] != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_unknown_sales(client: httpx.Client, publisher: Publisher) -> None:
    sale_id = uuid4()
    for path in (f"/v1/sales/{sale_id}", "/v1/sales/nonsense", f"/v1/sales/{sale_id}x"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "sale_not_found")
    # Cached as absent for a second, but the publication overrides this.
    sale = publisher.publish()
    assert get(client, sale).status_code == 200


def test_a_sale_whose_counters_are_gone_is_unavailable(client: httpx.Client, publisher: Publisher) -> None:
    sale = publisher.publish()
    publisher.redis.hdel(topology.lane_state_key(sale.lanes[0]), topology.stock_field(sale.sale_id, 0))
    answer = get(client, sale)
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")


@pytest.mark.parametrize(
    ("available", "allotted", "shown"),
    [(0, 100, "sold_out"), (9, 100, "low"), (10, 100, "available"), (3, 10, "low"), (4, 10, "available"),
     (2, 2, "available")],
)  # fmt: skip
def test_availability(available: int, allotted: int, shown: str) -> None:
    whole = Stock(available, allotted - available, 0, 0, allotted, 0, 0)
    assert availability([whole]) == shown
    # The same units in two lanes, some of them lent by one lane to the other.
    lender = Stock(0, allotted - available, 0, 0, allotted, 0, available)
    borrower = Stock(available, 0, 0, 0, 0, available, 0)
    assert lender.is_balanced and borrower.is_balanced
    assert availability([lender, borrower]) == shown
