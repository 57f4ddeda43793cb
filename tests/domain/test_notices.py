"""Notices and mailed tokens: round trips, and bytes that are neither."""

from __future__ import annotations

import json
import secrets
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import ids
from domain.mailed_tokens import SECRET_BYTES, TOKEN_LENGTH, decode_mailed_token, encode_mailed_token, secret_hash
from domain.notices import (
    MalformedNotice,
    NoticeKind,
    notice_event,
    notice_of_left_address,
    notice_to_address,
    notice_to_user,
    parse_notice,
)

USER = UUID("01890000-0000-7000-8000-000000000001")


@pytest.mark.parametrize("kind", NoticeKind)
def test_a_notice_survives_its_journey(kind: NoticeKind) -> None:
    notices = [notice_to_user(kind, USER), notice_to_address(kind, "a@b.example")]
    if kind is NoticeKind.EMAIL_CHANGED:
        notices = [notice_of_left_address(USER, "a@b.example")]
    for notice in notices:
        event = notice_event(notice)
        assert event["type"] == f"notice.{kind.value}"
        assert event["key"] == notice.key
        assert parse_notice(json.dumps(event).encode()) == notice


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"type": "notice.other"},
        {"type": None},
        {"id": "x"},
        {"id": 1},
        {"data": {}},
        {"data": None},
        {"data": {"user_id": "x"}},
        {"data": {"user_id": 1}},
        {"data": {"email": 1}},
        {"data": {"email": "\u00e9@b.example"}},
        {"data": {"email": "a\x00@b.example"}},
        {"data": {"email": "a@b.example", "user_id": str(USER)}},
        {"type": "notice.email_changed"},
        {"type": "notice.email_changed", "data": {"email": "a@b.example"}},
    ],
)
def test_what_is_no_notice(change: dict[str, object]) -> None:
    event = {**notice_event(notice_to_user(NoticeKind.VERIFY_EMAIL, USER)), **change}
    with pytest.raises(MalformedNotice):
        parse_notice(json.dumps(event).encode())


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_bytes_are_a_notice_or_malformed(body: bytes | str) -> None:
    with pytest.raises(MalformedNotice):
        parse_notice(body if isinstance(body, bytes) else body.encode())


def test_of_two_notices_the_greater_is_the_newer() -> None:
    older = notice_to_user(NoticeKind.VERIFY_EMAIL, USER)
    while (newer := notice_to_user(NoticeKind.VERIFY_EMAIL, USER)).id.int >> 80 == older.id.int >> 80:
        pass
    assert newer.id > older.id


def test_a_mailed_token_tells_the_user_and_hides_the_secret() -> None:
    secret = secrets.token_bytes(SECRET_BYTES)
    token = encode_mailed_token(USER, secret)
    assert len(token) == TOKEN_LENGTH
    assert decode_mailed_token(token) == (USER, secret_hash(secret))
    assert secret_hash(secret) != secret


@given(st.text(max_size=80) | st.text("AZaz09-_", min_size=TOKEN_LENGTH, max_size=TOKEN_LENGTH))
def test_what_is_decoded_is_spelled_so(token: str) -> None:
    decoded = decode_mailed_token(token)
    if decoded is None:
        assert len(token) != TOKEN_LENGTH or not set(token) <= set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        )
    else:
        assert len(token) == TOKEN_LENGTH
        assert ids.parse_uuid(str(decoded[0])) == decoded[0]
