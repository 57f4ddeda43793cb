"""The compiled parsers against the naive reference, on valid, nearly valid and arbitrary bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotpath.validation import Invalid, Malformed, parse_idempotency_key, parse_order
from tests.reference import validation as reference

SKUS = st.text("abcXYZ019._-", min_size=1, max_size=70) | st.text(max_size=5)
QUANTITIES = st.integers(-2, 200) | st.sampled_from([1.0, 1e2, True, None, "1", 10**30]) | st.floats(allow_nan=False)
LINES = st.fixed_dictionaries({"sku": SKUS, "quantity": QUANTITIES}, optional={"x/~": st.none()}) | st.dictionaries(
    st.sampled_from(["sku", "quantity", "SKU"]), SKUS | QUANTITIES
)
ORDERS = st.fixed_dictionaries({"items": st.lists(LINES, max_size=10)}, optional={"note": st.text(max_size=3)})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def spelled(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> bytes:
    """A document in one of many spellings."""
    text = json.dumps(
        draw(documents),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | st.sampled_from(["", " ", "\t", "\r\n"])),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", " : ")])),
    )
    return text.encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A document with a few bytes changed, dropped or repeated."""
    body = bytearray(draw(spelled(ORDERS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        piece = draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b",", b"{", b"]", b"\\", b"0", b"-", b"\xff", b":"])
        )
        body[at : at + draw(st.integers(0, 2))] = piece
    return bytes(body)


def plain(parsed: list[tuple[str, int]] | Malformed | Invalid) -> tuple[str, Any]:
    if isinstance(parsed, Malformed):
        assert parsed.detail
        return "malformed", None
    return ("invalid", parsed.errors) if isinstance(parsed, Invalid) else ("order", parsed)


@settings(max_examples=1500, deadline=None)
@given(body=spelled(ORDERS) | spelled(JSON) | damaged() | st.binary(max_size=60))
@example(b'{"items":[{"sku":"A","quantity":1}],"items":[]}')
@example(b'{"items":[{"sku":"A","sku":"B","quantity":1,"quantity":2}]}')
@example(b'{"\\u0069tems":[{"s\\u006bu":"\\u0041","quantity":1}]}')
@example(b'{"items":[{"sku":"\\ud800","quantity":1}]}')
@example(b'{"items":[{"sku":"\\ud83d\\ude00","quantity":1}]}')
@example(b'{"items":[{"sku":"A","quantity":01}]}')
@example(b'{"items":[{"sku":"A","quantity":1e0}]}')
@example(b'{"items":[{"sku":"A","quantity":-1}]}')
@example(b'{"items":[{"sku":"A","quantity":NaN}]}')
@example(b'\xef\xbb\xbf{"items":[]}')
@example(b'{"items":[{"sku":"A","quantity":1}]} x')
@example(b'{"items":[{"sku":"A","quantity":1}],}')
@example(b'{"items":[{"sku":"A\x00","quantity":1}]}')
@example(b"[" * 16 + b"]" * 16)
@example(b"[" * 17 + b"]" * 17)
@example(b"[" * 4096)
@example(b"")
def test_agrees_with_reference(body: bytes) -> None:
    assert plain(parse_order(body)) == reference.parse_order(body)


@pytest.mark.parametrize("quantity", [b"1", b"9", b"10", b"99", b"100"])
def test_every_length_of_quantity(quantity: bytes) -> None:
    assert parse_order(b'{"items":[{"quantity":%b,"sku":"A.b_c-9"}]}' % quantity) == [("A.b_c-9", int(quantity))]


@pytest.mark.parametrize(
    "quantity", [b"0", b"00", b"01", b"101", b"1000", b"1.0", b"1e1", b"+1", b"-1", b'"1"', b"true"]
)
def test_no_other_quantity(quantity: bytes) -> None:
    assert not isinstance(parse_order(b'{"items":[{"sku":"A","quantity":%b}]}' % quantity), list)


def test_eight_lines_and_no_more() -> None:
    lines = [{"sku": "S" * 64 if i == 0 else f"S{i}", "quantity": i + 1} for i in range(9)]
    assert parse_order(json.dumps({"items": lines[:8]}).encode()) == [(li["sku"], li["quantity"]) for li in lines[:8]]
    refused = parse_order(json.dumps({"items": lines}).encode())
    assert isinstance(refused, Invalid)
    assert refused.errors == [("/items", "must be an array of 1 to 8 lines")]


def test_errors_are_bounded() -> None:
    refused = parse_order(json.dumps({str(i): 0 for i in range(200)}).encode())
    assert isinstance(refused, Invalid)
    assert len(refused.errors) == reference.ERRORS_MAX


@settings(max_examples=500, deadline=None)
@given(
    header=st.none()
    | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7F), max_size=70)
    | st.text(max_size=5)
    | st.builds('"{}"'.format, st.text('a"\\ ', max_size=6))
)
@example('""')
@example('"')
@example('"a')
@example('a"')
@example('"' + "k" * 64 + '"')
@example("k" * 65)
def test_key_agrees_with_reference(header: str | None) -> None:
    parsed = parse_idempotency_key(header)
    kind = "none" if parsed is None else "malformed" if isinstance(parsed, Malformed) else "key"
    assert (kind, parsed if kind == "key" else None) == reference.parse_key(header)
