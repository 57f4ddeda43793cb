"""Transport headers: round trip, bounds, and no text that PostgreSQL or JSON could not carry on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.headers import HEADERS_LENGTH_MAX, MalformedHeaders, check_headers, decode_headers, encode_headers

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


@given(st.dictionaries(texts, texts, max_size=5))
def test_round_trip(headers: dict[str, str]) -> None:
    assert decode_headers(encode_headers(headers)) == headers


def test_no_headers_are_no_bytes() -> None:
    assert encode_headers({}) == b""
    assert decode_headers(b"") == {}


@given(st.binary(max_size=100))
def test_any_bytes_are_headers_or_malformed(encoded: bytes) -> None:
    try:
        headers = decode_headers(encoded)
    except MalformedHeaders:
        return
    json.dumps(headers, ensure_ascii=False).encode()
    assert "\0" not in "".join((*headers, *headers.values()))


@pytest.mark.parametrize(
    "encoded",
    [b"[]", b"null", b"1", b'{"a": 1}', b'{"a": null}', b'{"a": "\\u0000"}', b'{"\\ud800": ""}', b"{", b"\xff"],
)
def test_other_json_is_malformed(encoded: bytes) -> None:
    with pytest.raises(MalformedHeaders):
        decode_headers(encoded)


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(MalformedHeaders):
        decode_headers(b"[" * HEADERS_LENGTH_MAX)


@pytest.mark.parametrize("value", [[], "x", {"a": 1}, {1: "a"}, {"a": "\0"}, {"a": "\ud800"}])
def test_values_that_are_no_headers(value: object) -> None:
    with pytest.raises(MalformedHeaders):
        check_headers(value)


def test_the_length_is_bounded() -> None:
    fits = {"a": "x" * (HEADERS_LENGTH_MAX - len('{"a":""}'))}
    assert len(encode_headers(fits)) == HEADERS_LENGTH_MAX
    assert decode_headers(encode_headers(fits)) == fits
    with pytest.raises(MalformedHeaders):
        encode_headers({"a": fits["a"] + "x"})
    with pytest.raises(MalformedHeaders):
        decode_headers(encode_headers(fits) + b" ")
