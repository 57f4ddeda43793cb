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
    ENTRY_HEAD_SIZE,
    RECORD_SINCE_MS,
    MalformedEntry,
    OrderEntry,
    OrderLine,
    OrderStatus,
    UnknownFormat,
    decode_entry,
    decode_head,
    decode_value,
    encode_body,
    encode_entry,
    encode_record,
    encode_value,
    pack_key,
    unpack_key,
)
from tests.domain.strategies import entries, idempotency_keys

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
    assert encode_entry(entry)[ENTRY_HEAD_SIZE:] == entry.order_id.bytes + encode_body(entry)


@given(entries)
def test_value_is_the_entry_without_the_ids_that_are_kept_elsewhere(entry: OrderEntry) -> None:
    data, value = encode_entry(entry), encode_value(entry)
    key, lines_at = pack_key(entry.idempotency_key), ENTRY_HEAD_SIZE + 35
    assert data == b"".join(
        (value[:ENTRY_HEAD_SIZE], entry.order_id.bytes, value[ENTRY_HEAD_SIZE:lines_at], bytes([len(key)]), key,
         value[lines_at:])
    )  # fmt: skip
    read = decode_value(entry.order_id, value)
    assert read == replace(entry, idempotency_key="")
    with pytest.raises(AssertionError, match="read from its value"):
        encode_entry(read)  # it would lose its key in the shard
    head = decode_head(value)
    assert head == decode_head(data)
    assert (head.status, head.version, head.epoch) == (entry.status, entry.version, entry.epoch)
    assert (head.reserved_at_ms, head.expires_at_ms) == (entry.reserved_at_ms, entry.expires_at_ms)
    assert head.changed_at_ms == entry.changed_at_ms
    for length in range(len(value)):
        with pytest.raises(MalformedEntry):
            decode_value(entry.order_id, value[:length])
    for length in range(ENTRY_HEAD_SIZE):
        with pytest.raises(MalformedEntry):
            decode_head(value[:length])


def test_entry_is_laid_out_as_documented() -> None:
    """Written by hand from the module's table: the Lua scripts and the edge rely on it."""
    times = b"".join(time.to_bytes(6, "big") for time in (1000, 2000, 1000))
    head = b"\x02\x00" + struct.pack(">HI", 1, 4) + times
    ids = b"".join(UUID(int=value).bytes for value in (1, 2, 3))
    prices = [price.to_bytes(5, "big") for price in (1999, 500)]
    lines = b"\x02" + b"\x07\x02" + prices[0] + b"\x05SKU-1" + b"\x00\x01" + prices[1] + b"\x01B"
    assert len(head) == 26
    assert encode_entry(ENTRY) == head + ids + b"EUR" + b"\x05key-1" + lines


def test_record_is_laid_out_as_documented() -> None:
    reserved = replace(ENTRY, reserved_at_ms=RECORD_SINCE_MS + 2**33 + 5)
    assert encode_record(reserved) == UUID(int=1).bytes + (2**33 + 5).to_bytes(5, "big") + b"\x07\x02\x00\x01"
    for since_ms in (-1, 2**40):
        with pytest.raises(struct.error):
            encode_record(replace(ENTRY, reserved_at_ms=RECORD_SINCE_MS + since_ms))


def test_what_does_not_fit_is_not_cut() -> None:
    for wrong in (
        replace(ENTRY, reserved_at_ms=2**48),
        replace(ENTRY, expires_at_ms=-1),
        replace(ENTRY, lines=(OrderLine(0, "B", 1, 2**40),)),
    ):
        with pytest.raises(struct.error):
            encode_entry(wrong)


@given(idempotency_keys)
def test_keys_survive_packing(key: str) -> None:
    assert unpack_key(pack_key(key)) == key
    assert len(pack_key(key)) <= len(key)


@given(idempotency_keys, idempotency_keys)
def test_different_keys_are_packed_differently(one: str, other: str) -> None:
    assert (pack_key(one) == pack_key(other)) == (one == other)


def test_only_uuids_in_their_usual_spelling_shrink() -> None:
    key = "0f9ac6a4-7d1b-4c6e-a3b0-5d2f1e8c7b6a"
    assert pack_key(key) == UUID(key).bytes
    assert pack_key(key.upper()) == key.upper().encode(), "another key than the lower one"
    assert pack_key(key.replace("-", "")) == key.replace("-", "").encode()
    # Of a variant whose ninth byte may be a character: 16 such bytes could be a key of 16 characters.
    for variant in "07cf":
        other = key[:19] + variant + key[20:]
        assert pack_key(other) == other.encode()


@pytest.mark.parametrize(
    "packed", [b"\xff" * 16, b"key\x80", UUID(int=2**64 - 1).bytes, str(UUID(int=2 << 62)).encode()]
)
def test_what_packing_does_not_make_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"packed|ascii"):
        unpack_key(packed)
    data = encode_entry(replace(ENTRY, idempotency_key="k" * len(packed)))
    with pytest.raises(MalformedEntry):
        decode_entry(data.replace(b"k" * len(packed), packed))


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


@pytest.mark.parametrize(("offset", "value"), [(0, 1), (0, 3), (1, len(OrderStatus)), (74, 0xC3)])
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


@pytest.mark.parametrize("number", [0, 1, 3, 255])
def test_formats_of_other_releases_are_refused_by_their_number(number: int) -> None:
    with pytest.raises(UnknownFormat, match=f"format {number}") as caught:
        decode_entry(bytes([number]) + encode_entry(ENTRY)[1:])
    assert caught.value.number == number
