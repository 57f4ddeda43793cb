"""The queue message: round trips in both versions, and only a whole message is one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.messages import (
    ENTRIES_MAX,
    MalformedMessage,
    SequencedEntry,
    UnknownVersion,
    decode_orders,
    encode_orders,
    encode_sequenced,
)
from tests.domain.strategies import u16, u64

pairs = st.lists(st.tuples(u64, st.binary(max_size=60)), min_size=1, max_size=8)


@given(u16, pairs)
def test_round_trip(lane: int, entries: list[tuple[int, bytes]]) -> None:
    assert decode_orders(encode_orders(lane, entries)) == [SequencedEntry(lane, seq, entry) for seq, entry in entries]


def test_layout_is_as_documented() -> None:
    assert encode_orders(7, [(9, b"ab")]) == b"\x01" + struct.pack(">HHQH", 7, 1, 9, 2) + b"ab"


triples = st.lists(st.tuples(u64, st.binary(max_size=60), st.binary(max_size=20)), min_size=1, max_size=8)


@given(u16, triples)
def test_round_trip_with_headers(lane: int, entries: list[tuple[int, bytes, bytes]]) -> None:
    sequenced = [SequencedEntry(lane, *entry) for entry in entries]
    body = encode_sequenced(sequenced)
    assert decode_orders(body) == sequenced
    assert body[0] == (2 if any(headers for _, _, headers in entries) else 1)


def test_headers_cost_no_byte_when_there_are_none() -> None:
    assert encode_orders(7, [(9, b"ab")], [b""]) == encode_orders(7, [(9, b"ab")])


def test_layout_with_headers_is_as_documented() -> None:
    body = encode_orders(7, [(9, b"ab"), (10, b"c")], [b"{}", b""])
    assert body == b"\x02" + struct.pack(">HHQHH", 7, 2, 9, 2, 2) + b"ab{}" + struct.pack(">QHH", 10, 1, 0) + b"c"


@given(u16, triples, st.binary(min_size=1, max_size=8))
def test_no_truncation_and_no_extension_of_version_2_is_a_message(
    lane: int, entries: list[tuple[int, bytes, bytes]], extra: bytes
) -> None:
    body = encode_orders(lane, [(seq, entry) for seq, entry, _ in entries], [b"h"] * len(entries))
    for length in range(len(body)):
        with pytest.raises(MalformedMessage):
            decode_orders(body[:length])
    with pytest.raises(MalformedMessage, match="bytes too many"):
        decode_orders(body + extra)


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
    if body[0] == 1 or any(entry.headers for entry in entries):
        assert encode_sequenced(entries) == body


@pytest.mark.parametrize("version", [0, 3, 9, 255])
def test_unknown_versions_are_refused_by_their_number(version: int) -> None:
    with pytest.raises(UnknownVersion, match=f"version {version}") as caught:
        decode_orders(bytes([version]) + encode_orders(0, [(1, b"x")])[1:])
    assert caught.value.version == version


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
