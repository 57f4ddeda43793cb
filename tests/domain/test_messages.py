"""The queue message: round trip, and nothing but a whole message is one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.messages import ENTRIES_MAX, MalformedMessage, SequencedEntry, decode_orders, encode_orders
from tests.domain.strategies import u16, u64

pairs = st.lists(st.tuples(u64, st.binary(max_size=60)), min_size=1, max_size=8)


@given(u16, pairs)
def test_round_trip(lane: int, entries: list[tuple[int, bytes]]) -> None:
    assert decode_orders(encode_orders(lane, entries)) == [SequencedEntry(lane, seq, entry) for seq, entry in entries]


def test_layout_is_as_documented() -> None:
    assert encode_orders(7, [(9, b"ab")]) == b"\x01" + struct.pack(">HHQH", 7, 1, 9, 2) + b"ab"


@given(u16, pairs)
def test_every_truncation_is_malformed(lane: int, entries: list[tuple[int, bytes]]) -> None:
    body = encode_orders(lane, entries)
    for length in range(len(body)):
        with pytest.raises(MalformedMessage):
            decode_orders(body[:length])


@given(u16, pairs, st.binary(min_size=1, max_size=8))
def test_trailing_bytes_are_malformed(lane: int, entries: list[tuple[int, bytes]], extra: bytes) -> None:
    with pytest.raises(MalformedMessage, match="bytes too many"):
        decode_orders(encode_orders(lane, entries) + extra)


@given(st.binary(max_size=100))
def test_random_bytes_are_malformed_or_a_message(body: bytes) -> None:
    try:
        entries = decode_orders(body)
    except MalformedMessage:
        return
    assert encode_orders(entries[0].lane, [(e.lane_seq, e.entry) for e in entries]) == body


def test_unknown_format_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="format 2"):
        decode_orders(b"\x02" + encode_orders(0, [(1, b"x")])[1:])


def test_an_empty_message_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="no entries"):
        decode_orders(struct.pack(">BHH", 1, 0, 0))


@pytest.mark.parametrize("count", [0, ENTRIES_MAX + 1])
def test_a_message_out_of_bounds_is_a_programmer_error(count: int) -> None:
    with pytest.raises(AssertionError):
        encode_orders(0, [(1, b"")] * count)


def test_the_largest_message_passes() -> None:
    entries = [(seq, bytes(750)) for seq in range(ENTRIES_MAX)]
    assert len(decode_orders(encode_orders(99, entries))) == ENTRIES_MAX
