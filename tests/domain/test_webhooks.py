"""Webhooks without I/O: types, signatures by Standard Webhooks' own example, message ids, the ladder."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from uuid import UUID

import pytest

from domain.events import Event
from domain.webhooks import (
    RETRY_DELAYS_S,
    encode_secret,
    matches,
    message_body,
    message_id,
    retry_delay_s,
    secret_of,
    signature,
)

EVENT = Event("order-1:2", "order.paid", "urn:flashsale:order", "order-1", 1, 2, 1_700_000_000_123, {"a": 1})


def test_the_example_of_the_specification() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signed = signature("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body, [secret])
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_sign_during_the_overlap() -> None:
    both = signature("m", 1, b"x", [b"a" * 32, b"b" * 32])
    assert both.split(" ") == [signature("m", 1, b"x", [b"a" * 32]), signature("m", 1, b"x", [b"b" * 32])]


def test_secrets_follow_from_key_webhook_and_salt() -> None:
    first = secret_of(b"key", UUID(int=1), b"s" * 16)
    others = [
        secret_of(b"other", UUID(int=1), b"s" * 16),
        secret_of(b"key", UUID(int=2), b"s" * 16),
        secret_of(b"key", UUID(int=1), b"t" * 16),
    ]
    assert first == secret_of(b"key", UUID(int=1), b"s" * 16)
    assert first not in others
    assert base64.b64decode(encode_secret(first).removeprefix("whsec_")) == first
    assert len(first) == 32


@pytest.mark.parametrize(
    ("event_types", "type_", "wanted"),
    [
        (["order.*"], "order.paid", True), (["order.paid"], "order.paid", True), (["order.paid"], "order.expired", False),
        (["order.*"], "orders.paid", False), (["user.*", "sale.ended"], "sale.ended", True), ([], "order.paid", False),
    ],
)  # fmt: skip
def test_event_types(event_types: list[str], type_: str, wanted: bool) -> None:
    assert matches(event_types, type_) is wanted


def test_message_ids() -> None:
    assert message_id(EVENT) == "order-1:2"
    for odd in ("evt.1", "evt 1", "caf\u00e9", "a\nb", "x" * 300):
        event = replace(EVENT, id=odd)
        assert UUID(message_id(event)).version == 8  # a full stop would part the signed text
        assert message_id(event) == message_id(event)
        assert message_id(replace(event, source="urn:flashsale:payment")) != message_id(event)


def test_the_body() -> None:
    body = message_body("order.paid", 1_700_000_000_123, {"name": "caf\u00e9"})
    assert json.loads(body) == {
        "type": "order.paid", "timestamp": "2023-11-14T22:13:20.123Z", "data": {"name": "caf\u00e9"},
    }  # fmt: skip


def test_the_ladder_lasts_longer_than_a_day() -> None:
    delays = [retry_delay_s(attempts, RETRY_DELAYS_S, retry_after_s=0, random=0.5) for attempts in range(1, 9)]
    assert delays[:-1] == list(RETRY_DELAYS_S)
    assert delays[-1] is None
    assert sum(RETRY_DELAYS_S) > 24 * 3600
    assert retry_delay_s(1, (100,), retry_after_s=0, random=0) == 90
    assert retry_delay_s(1, (100,), retry_after_s=0, random=1) == pytest.approx(110)
    assert retry_delay_s(1, (100,), retry_after_s=500, random=0) == 500
