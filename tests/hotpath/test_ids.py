"""Compiled ids and timestamps equal those of the domain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from domain import ids, topology
from domain.orders import KEY_LENGTH_MAX, pack_key
from hotpath import ids as compiled

UUIDS = st.uuids()


@given(value=UUIDS)
def test_hash_short_and_text(value: UUID) -> None:
    assert compiled.user_hash(value.bytes) == topology.user_hash(value)
    assert compiled.short_id(value.bytes) == ids.short(value)
    assert compiled.uuid_text(value.bytes) == str(value)
    assert compiled.parse_uuid(str(value)) == compiled.parse_uuid(str(value).upper()) == value.bytes


@given(
    text=st.text("0123456789abcdefABCDEF-{} gé", min_size=30, max_size=40) | st.uuids().map(lambda u: f"{{{u.hex}}}")
)
def test_parse_refuses_alike(text: str) -> None:
    parsed = ids.parse_uuid(text)
    assert compiled.parse_uuid(text) == (None if parsed is None else parsed.bytes)


@given(
    key=UUIDS.map(str)
    | UUIDS.map(lambda value: str(value).upper())
    | st.text("0123456789abcdef-", min_size=36, max_size=36)
    | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=KEY_LENGTH_MAX)
)
def test_keys_are_packed_alike(key: str) -> None:
    assert compiled.pack_key(key.encode()) == pack_key(key)


@given(unix_ms=st.integers(0, 2**48 - 1), lane=st.integers(0, 4095), bucket=st.integers(0, 1023))
def test_order_ids(unix_ms: int, lane: int, bucket: int) -> None:
    made = UUID(bytes=compiled.OrderIds().make(unix_ms=unix_ms, lane=lane, bucket=bucket))
    assert ids.is_order_id(made)
    assert (made.int >> 80, ids.lane_of(made), ids.bucket_of(made)) == (unix_ms, lane, bucket)
    assert made == ids.order_id(unix_ms=unix_ms, lane=lane, bucket=bucket, random=made.int)


def test_order_ids_differ_beyond_the_pool() -> None:
    source = compiled.OrderIds()
    assert len({source.make(unix_ms=1, lane=2, bucket=3) for _ in range(2000)}) == 2000


@given(unix_ms=st.integers(0, 253_402_300_799_999))  # to the end of the year 9999
def test_timestamps(unix_ms: int) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms)
    assert compiled.rfc3339_ms(unix_ms) == at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
