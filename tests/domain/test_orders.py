"""The versioned whole-order entry and the life of an order."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import product
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.orders import (
    ENTRY_HEAD,
    MalformedEntry,
    OrderEntry,
    OrderLine,
    OrderStatus,
    decode_entry,
    encode_body,
    encode_entry,
)
from tests.domain.strategies import entries

ENTRY = OrderEntry(
    order_id=UUID(int=1),
    user_id=UUID(int=2),
    sale_id=UUID(int=3),
    idempotency_key="key-1",
    currency="EUR",
    lines=(OrderLine(7, "SKU-1", 2, 1999), OrderLine(0, "B", 1, 500)),
    status=OrderStatus.RESERVED,
    version=1,
    epoch=4,
    reserved_at_ms=1000,
    expires_at_ms=2000,
    changed_at_ms=1000,
)


@given(entries)
def test_entry_round_trip(entry: OrderEntry) -> None:
    assert decode_entry(encode_entry(entry)) == entry
    assert encode_entry(entry)[ENTRY_HEAD.size :] == encode_body(entry)


def test_entry_is_laid_out_as_documented() -> None:
    """Written by hand from the module's table: what the Lua scripts and the edge rely on."""
    head = b"\x01\x00" + struct.pack(">HIQQQ", 1, 4, 1000, 2000, 1000)
    ids = b"".join(UUID(int=value).bytes for value in (1, 2, 3))
    lines = (
        b"\x02" + b"\x07\x02" + struct.pack(">Q", 1999) + b"\x05SKU-1" + b"\x00\x01" + struct.pack(">Q", 500) + b"\x01B"
    )
    assert len(head) == 32
    assert encode_entry(ENTRY) == head + ids + b"EUR" + b"\x05key-1" + lines


@given(entries)
def test_every_truncation_is_malformed(entry: OrderEntry) -> None:
    data = encode_entry(entry)
    for length in range(len(data)):
        with pytest.raises(MalformedEntry):
            decode_entry(data[:length])


@given(entries, st.binary(min_size=1, max_size=8))
def test_trailing_bytes_are_malformed(entry: OrderEntry, extra: bytes) -> None:
    with pytest.raises(MalformedEntry, match="bytes too many"):
        decode_entry(encode_entry(entry) + extra)


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed_or_an_entry_that_encodes_alike(data: bytes) -> None:
    try:
        entry = decode_entry(data)
    except MalformedEntry:
        return
    assert encode_entry(entry) == data


@given(entries, st.data())
def test_damaged_entries_never_raise_anything_else(entry: OrderEntry, data: st.DataObject) -> None:
    damaged = bytearray(encode_entry(entry))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_entry(bytes(damaged))
    except MalformedEntry:
        return
    assert encode_entry(decoded) == damaged


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (0, 2), (1, len(OrderStatus)), (80, 0xC3)])
def test_unknown_format_status_or_currency_is_malformed(offset: int, value: int) -> None:
    data = bytearray(encode_entry(ENTRY))
    data[offset] = value
    with pytest.raises(MalformedEntry):
        decode_entry(bytes(data))


def test_status_numbers_are_fixed() -> None:
    """They are stored in Redis and in the shards: a change is a migration."""
    assert {status.label: int(status) for status in OrderStatus} == {
        "reserved": 0,
        "paid": 1,
        "cancelled": 2,
        "expired": 3,
        "rejected": 4,
    }


def test_only_a_reserved_order_changes() -> None:
    legal = {(a, b) for a, b in product(OrderStatus, repeat=2) if a.may_become(b)}
    assert legal == {(OrderStatus.RESERVED, b) for b in OrderStatus if b is not OrderStatus.RESERVED}
    assert {status for status in OrderStatus if not status.is_final} == {OrderStatus.RESERVED}


def test_becoming_raises_version_and_keeps_the_rest() -> None:
    paid = ENTRY.becoming(OrderStatus.PAID, at_ms=1500)
    assert paid == replace(ENTRY, status=OrderStatus.PAID, version=2, changed_at_ms=1500)
    with pytest.raises(AssertionError, match="paid -> cancelled"):
        paid.becoming(OrderStatus.CANCELLED, at_ms=1600)


def test_a_hold_past_its_time_reads_as_expired() -> None:
    assert ENTRY.status_at(1999) is OrderStatus.RESERVED
    assert ENTRY.status_at(2000) is OrderStatus.EXPIRED
    for status in OrderStatus:
        if status.is_final:
            assert replace(ENTRY, status=status).status_at(9999) is status


def test_total_is_over_all_lines() -> None:
    assert ENTRY.total_minor == 2 * 1999 + 500
