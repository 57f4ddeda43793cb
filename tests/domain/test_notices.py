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
    ORDER_KINDS,
    Channel,
    MalformedNotice,
    NoticeKind,
    NoticeLine,
    OrderNews,
    notice_event,
    notice_of_left_address,
    notice_of_order,
    notice_to_address,
    notice_to_user,
    parse_notice,
)
from domain.payments import RefundReason

USER = UUID("01890000-0000-7000-8000-000000000001")
ORDER = OrderNews(USER, 1_790_000_000_123, "EUR", 3998, (NoticeLine("SKU-1", 2, 1999),), 1_790_000_600_123)
REFUND = OrderNews(USER, 1_790_000_000_123, "JPY", 5, reason=RefundReason.LATE)


@pytest.mark.parametrize("kind", NoticeKind)
def test_a_notice_survives_its_journey(kind: NoticeKind) -> None:
    notices = [notice_to_user(kind, USER), notice_to_address(kind, "a@b.example")]
    if kind is NoticeKind.EMAIL_CHANGED:
        notices = [notice_of_left_address(USER, "a@b.example")]
    if kind in ORDER_KINDS:
        news = REFUND if kind is NoticeKind.ORDER_REFUNDED else ORDER
        notices = [notice_of_order(kind, USER, news, event_id="e", channel=channel) for channel in Channel]
        assert [notice.at_ms for notice in notices] == [news.at_ms] * 2
    for notice in notices:
        event = notice_event(notice)
        assert event["type"] == f"notice.{kind.value}"
        assert event["key"] == notice.key
        assert parse_notice(json.dumps(event).encode()) == notice


def test_the_id_of_an_orders_notice_follows_from_event_and_channel() -> None:
    def id_(event_id: str, channel: Channel) -> UUID:
        return notice_of_order(NoticeKind.ORDER_PAID, USER, ORDER, event_id=event_id, channel=channel).id

    assert id_("order:2", Channel.EMAIL) == id_("order:2", Channel.EMAIL)
    assert len({id_(event, channel) for event in ("order:2", "order:3") for channel in Channel}) == 4
    assert id_("order:2", Channel.PUSH).version == 8 and ids.parse_uuid(str(id_("order:2", Channel.PUSH))) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"order_id": "x"},
        {"order_id": None},
        {"time_ms": "1"},
        {"time_ms": 1 << 63},
        {"currency": "EURO"},
        {"currency": "\u00e9UR"},
        {"amount_minor": -1},
        {"amount_minor": 1 << 63},
        {"amount_minor": True},
        {"items": []},
        {"items": [{"sku": "A\n", "quantity": 1, "unit_price_minor": 1}]},
        {"items": [{"sku": "A", "quantity": 0, "unit_price_minor": 1}]},
        {"items": [{"sku": "A", "quantity": 1}]},
        {"items": [{"sku": "A", "quantity": 1, "unit_price_minor": 1}] * 9},
        {"expires_at_ms": -1},
        {"reason": "because"},
    ],
)
def test_malformed_orders_in_notices(change: dict[str, object]) -> None:
    event = notice_event(notice_of_order(NoticeKind.ORDER_PAID, USER, ORDER, event_id="e", channel=Channel.EMAIL))
    event["data"]["order"] |= change
    with pytest.raises(MalformedNotice):
        parse_notice(json.dumps(event).encode())
    del event["data"]["order"]
    with pytest.raises(MalformedNotice):
        parse_notice(json.dumps(event).encode())


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
