"""Order events: a stable id per version, and the whole order in each."""

from __future__ import annotations

import json

from hypothesis import given

from domain.events import HEADERS_MEMBER, ORDER_SCHEMA, order_event
from domain.orders import OrderEntry, OrderStatus, decode_entry, encode_entry
from tests.domain.strategies import entries
from tests.domain.test_orders import ENTRY


@given(entries)
def test_event_is_stable_over_redelivery(entry: OrderEntry) -> None:
    again = decode_entry(encode_entry(entry))
    assert order_event(again) == order_event(entry)
    assert order_event(entry)["id"] == f"{entry.order_id}:{entry.version}"


@given(entries)
def test_event_carries_the_whole_order(entry: OrderEntry) -> None:
    event = json.loads(json.dumps(order_event(entry)))
    assert event["type"] == f"order.{entry.status.label}"
    assert (event["key"], event["version"], event["schema"]) == (str(entry.order_id), entry.version, ORDER_SCHEMA)
    data = event["data"]
    assert data["total_minor"] == sum(item["quantity"] * item["unit_price_minor"] for item in data["items"])
    assert [(i["sku"], i["quantity"], i["unit_price_minor"]) for i in data["items"]] == [
        (line.sku, line.quantity, line.unit_price_minor) for line in entry.lines
    ]
    # The idempotency key is between the buyer and the edge.
    assert "idempotency_key" not in data


def test_versions_of_an_order_have_ids_of_their_own() -> None:
    paid = ENTRY.becoming(OrderStatus.PAID, at_ms=1)
    assert order_event(paid)["id"] != order_event(ENTRY)["id"]


def test_headers_are_a_member_only_when_there_are_some() -> None:
    plain = order_event(ENTRY)
    assert HEADERS_MEMBER not in plain and order_event(ENTRY, {}) == plain
    assert order_event(ENTRY, {"traceparent": "00-1"}) == plain | {HEADERS_MEMBER: {"traceparent": "00-1"}}
