"""RESP2 against the naive reference, with replies cut at any place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpath.resp import ProtocolViolation, ReplyDecoder, ReplyError, encode_command
from tests.reference import resp as reference

ERRORS = st.text("ABC xyz", max_size=20).map(reference.Failure)
REPLIES = st.recursive(
    st.none() | st.integers(1 - 10**18, 10**18 - 1) | st.binary(max_size=40) | ERRORS,
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
).filter(lambda reply: depth(reply) <= 4)


def depth(reply: object) -> int:
    return 1 + max(map(depth, reply), default=0) if isinstance(reply, list) else 0


def plain(reply: object) -> object:
    if isinstance(reply, ReplyError):
        return reference.Failure(reply.text)
    return [plain(member) for member in reply] if isinstance(reply, list) else reply


@given(parts=st.lists(st.binary(max_size=50), max_size=10))
def test_commands(parts: list[bytes]) -> None:
    assert encode_command(parts) == reference.encode_command(parts)


@settings(max_examples=300, deadline=None)
@given(replies=st.lists(REPLIES, max_size=6), data=st.data())
def test_replies_in_any_chunks(replies: list[object], data: st.DataObject) -> None:
    wire = b"".join(map(reference.encode_reply, replies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    decoder, decoded = ReplyDecoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        decoded += decoder.feed(wire[start:end])
    assert [plain(reply) for reply in decoded] == replies == reference.decode(wire)[0]


@pytest.mark.parametrize(
    "wire",
    [
        b"?1\r\n", b":x\r\n", b":\r\n", b"$5x\r\n", b"$-2\r\n", b"$2\r\nabcd", b"+ok\rx", b"*-3\r\n", b"*9999999\r\n",
        b"$99999999\r\n", b":99999999999999999999999\r\n", b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
    ],
)  # fmt: skip
def test_violations(wire: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ReplyDecoder().feed(wire)


def test_incomplete_reply_is_bounded() -> None:
    decoder, chunk = ReplyDecoder(), b"x" * 65536
    assert decoder.feed(b"+") == []
    for _ in range(15):  # 1 MiB is the bound
        assert decoder.feed(chunk) == []
    with pytest.raises(ProtocolViolation):
        decoder.feed(chunk)
