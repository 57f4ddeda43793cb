"""Ids: the parts of an order id, and forms that cannot be ids."""

from __future__ import annotations

import base64
import time
from uuid import UUID, uuid1, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import ids
from tests.domain.strategies import uuids


@given(
    unix_ms=st.integers(0, 2**48 - 1),
    lane=st.integers(0, 2**ids.LANE_BITS - 1),
    bucket=st.integers(0, 2**ids.BUCKET_BITS - 1),
    random=st.integers(0, 2**64 - 1),
)
def test_order_id_tells_time_lane_and_bucket(unix_ms: int, lane: int, bucket: int, random: int) -> None:
    order = ids.order_id(unix_ms=unix_ms, lane=lane, bucket=bucket, random=random)
    assert (order.int >> 80, ids.lane_of(order), ids.bucket_of(order)) == (unix_ms, lane, bucket)
    assert ids.is_order_id(order)
    assert order.variant == "specified in RFC 4122"
    assert order.int & (2**52 - 1) == random & (2**52 - 1)


@given(first=st.integers(0, 2**48 - 2), lane=st.integers(0, 4095), bucket=st.integers(0, 1023))
def test_order_ids_sort_by_time(first: int, lane: int, bucket: int) -> None:
    earlier = ids.order_id(unix_ms=first, lane=lane, bucket=bucket, random=2**52 - 1)
    later = ids.order_id(unix_ms=first + 1, lane=0, bucket=0, random=0)
    assert earlier < later
    assert earlier.bytes < later.bytes  # PostgreSQL compares bytes


@pytest.mark.parametrize(("lane", "bucket"), [(-1, 0), (4096, 0), (0, -1), (0, 1024)])
def test_order_id_out_of_range_is_a_programmer_error(lane: int, bucket: int) -> None:
    with pytest.raises(AssertionError):
        ids.order_id(unix_ms=0, lane=lane, bucket=bucket, random=0)


def test_other_ids_are_no_order_ids() -> None:
    for other in (ids.new_uuid7(), uuid1(), uuid4(), UUID(int=0), UUID(int=2**128 - 1)):
        assert not ids.is_order_id(other)
    # Version 8 in the Microsoft variant is no RFC 9562 id.
    assert not ids.is_order_id(UUID(int=(8 << 76) | (0b110 << 61)))


def test_uuid7_carries_the_time_and_differs() -> None:
    before = time.time_ns() // 1_000_000
    made = [ids.new_uuid7() for _ in range(1000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 1000
    assert all(value.version == 7 for value in made)
    assert all(before <= value.int >> 80 <= after for value in made)


@given(uuids)
def test_canonical_text_is_parsed(value: UUID) -> None:
    assert ids.parse_uuid(str(value)) == value
    assert ids.parse_uuid(str(value).upper()) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 32,
        "{" + "0" * 34 + "}",
        "urn:uuid:" + "0" * 27,
        "0190163d_8694_739b_aea5_966c26f8ad91",
        "0190163d-8694-739b-aea5-966c26f8ad9",
        "0190163d-8694-739b-aea5-966c26f8ad91 ",
        "0190163d8694-739b-aea5-966c26f8ad91--",
        "0190163d-8694-739b-aea5-966c26f8ad9g",
        "٠190163d-8694-739b-aea5-966c26f8ad91",
        "+190163d-8694-739b-aea5-966c26f8ad91",
    ],
)
def test_what_cannot_be_an_id_is_none(text: str) -> None:
    assert ids.parse_uuid(text) is None


@given(st.text(max_size=40))
def test_any_text_is_an_id_or_none(text: str) -> None:
    value = ids.parse_uuid(text)
    assert value is None or str(value) == text.lower()


@given(uuids)
def test_short_is_base64url(value: UUID) -> None:
    text = ids.short(value)
    assert len(text) == 22
    assert UUID(bytes=base64.urlsafe_b64decode(text + "==")) == value


@given(st.integers(0, (1 << 48) - 1), st.integers(0, 4095), st.integers(0, 1023), st.integers(0, (1 << 52) - 1))
def test_first_order_id_bounds_the_ids_of_a_millisecond(unix_ms: int, lane: int, bucket: int, random: int) -> None:
    order = ids.order_id(unix_ms=unix_ms, lane=lane, bucket=bucket, random=random)
    assert ids.first_order_id(unix_ms) <= order
    assert unix_ms == (1 << 48) - 1 or order < ids.first_order_id(unix_ms + 1)
    assert ids.first_order_id(-5) == UUID(int=0) and ids.first_order_id(1 << 50) == ids.first_order_id((1 << 48) - 1)
