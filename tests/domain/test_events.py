"""Events: a stable id per version, the whole order in each, and records as CloudEvents in binary mode."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.events import (
    HEADERS_MEMBER,
    ORDER_SCHEMA,
    EventMalformed,
    event_headers,
    event_type,
    order_event,
    read_event,
)
from domain.orders import OrderEntry, OrderStatus, decode_entry, encode_entry
from tests.domain.strategies import entries
from tests.domain.test_orders import ENTRY


def record(document: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    return event_headers(document), json.dumps(document["data"]).encode()


@given(entries)
def test_event_is_stable_over_redelivery(entry: OrderEntry) -> None:
    again = decode_entry(encode_entry(entry))
    assert order_event(again) == order_event(entry)
    assert order_event(entry)["id"] == f"{entry.order_id}:{entry.version}"


@given(entries)
def test_event_carries_the_whole_order(entry: OrderEntry) -> None:
    event = json.loads(json.dumps(order_event(entry)))
    assert event["type"] == f"order.{entry.status.label}"
    assert (event["key"], event["subject"]) == (str(entry.user_id), str(entry.order_id))
    assert (event["version"], event["schema"]) == (entry.version, ORDER_SCHEMA)
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


@given(entries, st.integers(min_value=0, max_value=253_402_300_799_999))
def test_what_is_written_is_read(entry: OrderEntry, time_ms: int) -> None:
    document = order_event(entry) | {"time_ms": time_ms}
    headers, value = record(document)
    event = read_event({"traceparent": "00-1", **headers}, value)
    assert event_type(headers) == event.type == document["type"] and event.family == "order"
    assert (event.id, event.subject, event.schema) == (document["id"], str(entry.order_id), ORDER_SCHEMA)
    assert (event.source, event.version, event.time_ms) == ("urn:flashsale:order", entry.version, time_ms)
    assert event.data == document["data"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ce_specversion", None), ("ce_specversion", "0.3"), ("ce_id", None), ("ce_id", ""), ("ce_type", ""),
        ("ce_type", "user.changed"), ("ce_source", None), ("ce_dataschema", "urn:flashsale:schema:order:x"),
        ("ce_dataschema", "https://example.org/order:1"), ("ce_version", "-1"), ("ce_version", "9" * 20),
        ("ce_version", "\u0661"), ("ce_time", "yesterday"), ("ce_time", "2026-01-01T00:00:00"), ("ce_time", None),
        ("ce_time", "0001-01-01T00:00:00+14:00"), ("ce_time", "9999-12-31T23:59:59-14:00"),
    ],
)  # fmt: skip
def test_records_with_other_attributes_are_malformed(header: str, value: str | None) -> None:
    headers, body = record(order_event(ENTRY))
    changed = {name: text for name, text in {**headers, header: value}.items() if text is not None}
    with pytest.raises(EventMalformed):
        read_event(changed, body)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"[]", b"\xff", b"{", b'{"a": NaN}', b"[" * 100_000, b'{"a": 1e999}', b'{"a": -1e999}',
        b'{"a": "\\ud800"}', b'{"a": [{"\\uDFFF": 1}]}',
    ],
)  # fmt: skip
def test_records_with_other_values_are_malformed(value: bytes) -> None:
    with pytest.raises(EventMalformed):
        read_event(event_headers(order_event(ENTRY)), value)


@pytest.mark.parametrize("value", [b'{"a": "\\ud83d\\ude00 \\u00e9"}', b'{"a": 1.5e300}'])
def test_escaped_characters_and_large_numbers_are_read(value: bytes) -> None:
    assert read_event(event_headers(order_event(ENTRY)), value).data == json.loads(value)


def test_a_record_without_a_type_has_none() -> None:
    assert event_type({}) == ""
