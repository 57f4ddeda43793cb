"""The adapter of Stripe against documents as Stripe has them, by a real server; signatures by an own computation."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from payments.providers import open_provider
from payments.providers.port import (
    Captured,
    Checkout,
    CheckoutLine,
    EventMalformed,
    Ignored,
    ProviderAway,
    ProviderRefused,
    RefundRequest,
    SignatureInvalid,
)
from payments.providers.stripe_provider import StripeProvider, parse_event
from runtime.process.settings import Settings
from tests.payments.stripe_shapes import EVENT, INTENT, OPEN_SESSION, ORDER, REFUND, a_list, an_error

KEY = "sk_test_51AbCdEfGhIjKlMnOp"
SECRET = "whsec_4eC39HqLyjWDarjtT1zdp7dc"
OLD = "whsec_before_26PHem9AhJZvU623DfE1"
NOW = 1_764_288_000
PAID = Captured("pi_3QhvXNB7WZ01zgkW0vvkaG12", UUID(ORDER), 1999, "EUR", "pi_3QhvXNB7WZ01zgkW0vvkaG12")
REFUNDED = RefundRequest(UUID(int=7), UUID(ORDER), PAID.event_id, PAID.reference, 1999, "EUR")
RESERVED_S = (UUID(ORDER).int >> 80) // 1000


def a_checkout(*, hold_end_s: float = NOW + 600, currency: str = "EUR", price: int = 1999) -> Checkout:
    return Checkout(
        UUID(ORDER), [CheckoutLine("SHOE-42", 2, price)], 2 * price, currency, int(hold_end_s * 1000),
        "https://shop.example/shop/orders/1",
    )  # fmt: skip


class FakeStripe:
    """Answers calls with documents by method and path, and keeps the calls."""

    def __init__(self, answers: dict[tuple[str, str], Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, str, dict[str, str], Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode()))
        self.calls.append((request.method, request.path, form | dict(request.query), request.headers))
        answer = self.answers[request.method, request.path]
        status, document = answer.pop(0) if isinstance(answer, list) else (200, answer)
        body = document if isinstance(document, bytes) else orjson.dumps(document)
        return web.Response(status=status, body=body, content_type="application/json")


@asynccontextmanager
async def stripe_with(
    answers: dict[tuple[str, str], Any], now_s: Callable[[], float] = lambda: NOW
) -> AsyncIterator[tuple[StripeProvider, FakeStripe]]:
    fake = FakeStripe(answers)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.handle)
    async with TestServer(application) as server:
        provider = StripeProvider(
            api_key=KEY, webhook_secrets=[SECRET, OLD], url=str(server.make_url("/")), now_s=now_s
        )  # fmt: skip
        try:
            yield provider, fake
        finally:
            await provider.close()


def signature(body: bytes, *secrets: str, at: int = NOW) -> dict[str, str]:
    digests = [hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest() for secret in secrets]
    return {"stripe-signature": ",".join([f"t={at}", *(f"v1={digest}" for digest in digests), "v0=6ffbb59b2300aae6"])}


def event_with(session: dict[str, Any] | None = None, **members: Any) -> bytes:
    event = deepcopy(EVENT) | members
    event["data"]["object"] |= session or {}
    return orjson.dumps(event)


@pytest.fixture
def stripe() -> StripeProvider:
    return StripeProvider(api_key=KEY, webhook_secrets=[SECRET, OLD])


@pytest.mark.parametrize("kind", ["checkout.session.completed", "checkout.session.async_payment_succeeded"])
@pytest.mark.parametrize("secrets", [(SECRET,), (OLD,), ("whsec_unknown", SECRET)])
def test_paid_session_is_a_payment(stripe: StripeProvider, kind: str, secrets: tuple[str, ...]) -> None:
    body = event_with(type=kind)
    assert stripe.event(signature(body, *secrets), body, now_s=NOW) == PAID


def test_bad_signatures(stripe: StripeProvider) -> None:
    body = event_with()
    good = signature(body, SECRET)["stripe-signature"]
    bad: list[tuple[str | None, bytes, float]] = [
        (None, body, NOW),
        ("", body, NOW),
        (good, body[:-1] + b" ", NOW),
        (good, body + b" ", NOW),
        (good, b"\xff" + body, NOW),
        (good, body, NOW + 301),
        (good, body, NOW - 301),
        (good.replace(f"t={NOW}", f"t={NOW + 1}"), body, NOW),
        (signature(body, "whsec_unknown")["stripe-signature"], body, NOW),
        (good.replace("v1=", "v0="), body, NOW),
        (good.replace(f"t={NOW},", ""), body, NOW),
        (good + "é", body, NOW),
        (good + "," + "x" * 5000, body, NOW),
        ("t=x,v1=5", body, NOW),
    ]
    for header, given_body, now_s in bad:
        headers = {} if header is None else {"stripe-signature": header}
        with pytest.raises(SignatureInvalid):
            stripe.event(headers, given_body, now_s=now_s)
    with pytest.raises(SignatureInvalid):
        stripe.event({"payment-signature": good}, body, now_s=NOW)
    stripe.event({"stripe-signature": good}, body, now_s=NOW + 300)
    stripe.event({"stripe-signature": good}, body, now_s=NOW - 300)


@given(st.text(max_size=80) | st.lists(st.sampled_from(["t=1", "t=", "t", "v1=", "v1=0", "=", ","])).map(",".join))
def test_any_other_header_is_refused(header: str) -> None:
    with pytest.raises(SignatureInvalid):
        StripeProvider(api_key=KEY, webhook_secrets=[SECRET]).event(
            {"stripe-signature": header}, event_with(), now_s=NOW
        )


@pytest.mark.parametrize(
    ("members", "session"),
    [
        ({"type": "checkout.session.expired"}, {}),
        ({"type": "checkout.session.async_payment_failed"}, {}),
        ({"type": "payment_intent.succeeded"}, {}),
        ({}, {"payment_status": "unpaid"}),  # a bank transfer: another event follows
        ({}, {"payment_status": "no_payment_required"}),
        ({}, {"mode": "subscription"}),
        ({}, {"metadata": {}}),  # something else that the account sells
        ({}, {"metadata": None}),
    ],
)
def test_other_events_are_ignored(members: dict[str, Any], session: dict[str, Any]) -> None:
    event = parse_event(event_with(session, **members))
    assert isinstance(event, Ignored) and event.event_id == "evt_1NG8Du2eZvKYlo2CUI79vXWy"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"id": "evt_1"}',
        b'{"id": "evt_1", "type": "x", "data": []}',
        event_with(id=5),
        event_with(id="evt\n1"),
        event_with(type=None),
        event_with({"metadata": {"order_id": "x"}}),
        event_with({"metadata": {"order_id": 5}}),
        event_with({"payment_intent": None}),
        event_with({"payment_intent": "x" * 256}),
        event_with({"amount_total": True}),
        event_with({"amount_total": 0}),
        event_with({"amount_total": 19.5}),
        event_with({"amount_total": None}),
        event_with({"currency": "e1r"}),
        event_with({"currency": None}),
        event_with({"currency": "isk", "amount_total": 501}),
    ],
)
def test_malformed_events(body: bytes) -> None:
    with pytest.raises(EventMalformed):
        parse_event(body)


def test_currency_of_another_counting() -> None:
    event = parse_event(event_with({"currency": "isk", "amount_total": 199_900}))
    assert isinstance(event, Captured) and (event.amount_minor, event.currency) == (1999, "ISK")


async def test_checkout_is_made_once_for_an_order() -> None:
    async with stripe_with({("POST", "/v1/checkout/sessions"): OPEN_SESSION}) as (stripe, fake):
        for _ in range(2):
            assert await stripe.checkout(a_checkout()) == "https://checkout.stripe.com/c/pay/cs_1"
    (_, _, form, headers), (_, _, form_again, headers_again) = fake.calls
    assert form == form_again
    assert headers["Idempotency-Key"] == headers_again["Idempotency-Key"] == f"checkout-{ORDER}-end"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert form == {
        "mode": "payment",
        "line_items[0][quantity]": "2",
        "line_items[0][price_data][currency]": "eur",
        "line_items[0][price_data][unit_amount]": "1999",
        "line_items[0][price_data][product_data][name]": "SHOE-42",
        "client_reference_id": ORDER,
        "metadata[order_id]": ORDER,
        "payment_intent_data[metadata][order_id]": ORDER,
        "success_url": "https://shop.example/shop/orders/1",
        "cancel_url": "https://shop.example/shop/orders/1",
        "expires_at": str(NOW + 600 + 1860),
        "adaptive_pricing[enabled]": "false",
    }


@pytest.mark.parametrize("hold_s", [60, 1700, 1860, 3600, 80_000, 86_400])
async def test_session_is_open_as_long_as_stripe_wants_and_no_longer_than_needed(hold_s: int) -> None:
    """At every moment of a hold: at least half an hour, at most a day, and one end for one idempotency key."""
    now = float(RESERVED_S)
    end_s = RESERVED_S + hold_s
    ends: dict[str, set[int]] = {}
    async with stripe_with({("POST", "/v1/checkout/sessions"): OPEN_SESSION}, lambda: now) as (stripe, fake):
        for moment in range(0, hold_s, max(1, hold_s // 40)):
            now = RESERVED_S + moment
            await stripe.checkout(a_checkout(hold_end_s=end_s))
            _, _, form, headers = fake.calls[-1]
            closes_s = int(form["expires_at"])
            assert 30 * 60 <= closes_s - now <= 24 * 3600
            assert closes_s <= end_s + 31 * 60
            ends.setdefault(headers["Idempotency-Key"], set()).add(closes_s)
    assert all(len(found) == 1 for found in ends.values()) and len(ends) <= 2


async def test_prices_in_other_countings() -> None:
    async with stripe_with({("POST", "/v1/checkout/sessions"): OPEN_SESSION}) as (stripe, fake):
        await stripe.checkout(a_checkout(currency="ISK", price=1999))
        await stripe.checkout(a_checkout(currency="JPY", price=1999))
        with pytest.raises(ProviderRefused, match="KWD"):
            await stripe.checkout(a_checkout(currency="KWD", price=1999))
    assert [call[2]["line_items[0][price_data][unit_amount]"] for call in fake.calls] == ["199900", "1999"]


async def test_refund_is_made_with_its_id() -> None:
    answers: dict[tuple[str, str], Any] = {("GET", "/v1/refunds"): a_list(), ("POST", "/v1/refunds"): REFUND}
    async with stripe_with(answers) as (stripe, fake):
        assert await stripe.refund(REFUNDED) == REFUND["id"]
    _, _, form, headers = fake.calls[1]
    assert headers["Idempotency-Key"] == f"refund-{REFUNDED.refund_id}"
    assert form == {
        "payment_intent": PAID.reference,
        "amount": "1999",
        "metadata[refund_id]": str(REFUNDED.refund_id),
        "metadata[order_id]": ORDER,
    }


async def test_refund_that_was_made_long_ago_is_found_and_not_repeated() -> None:
    """Stripe forgets idempotency keys after a day; a dead letter may be replayed later."""
    other = REFUND | {"id": "re_other", "metadata": {}}
    pages = [(200, a_list(other, has_more=True)), (200, a_list(REFUND))]
    async with stripe_with({("GET", "/v1/refunds"): pages}) as (stripe, fake):
        assert await stripe.refund(REFUNDED) == REFUND["id"]
    assert [call[0] for call in fake.calls] == ["GET", "GET"]
    assert fake.calls[1][2]["starting_after"] == "re_other"


@pytest.mark.parametrize("status", ["failed", "canceled"])
async def test_refund_that_moved_no_money_is_refused(status: str) -> None:
    failed = REFUND | {"status": status, "failure_reason": "lost_or_stolen_card"}
    answers: dict[tuple[str, str], Any] = {("GET", "/v1/refunds"): a_list(), ("POST", "/v1/refunds"): failed}
    async with stripe_with(answers) as (stripe, _):
        with pytest.raises(ProviderRefused, match="lost_or_stolen_card"):
            await stripe.refund(REFUNDED)


@pytest.mark.parametrize(
    ("status", "document", "raised"),
    [
        (429, an_error("invalid_request_error", "slow down", "lock_timeout"), ProviderAway),
        (500, an_error("api_error", "sorry"), ProviderAway),
        (503, b"<html>", ProviderAway),
        (200, b"<html>", ProviderAway),
        (409, an_error("idempotency_error", "in use", "idempotency_key_in_use"), ProviderAway),
        (400, an_error("invalid_request_error", "no funds", "balance_insufficient"), ProviderAway),
        (401, an_error("invalid_request_error", f"Invalid API Key provided: {KEY}"), ProviderAway),
        (403, an_error("invalid_request_error", f"The key {KEY} may not"), ProviderAway),
        (400, an_error("invalid_request_error", "already refunded", "charge_already_refunded"), ProviderRefused),
        (404, an_error("invalid_request_error", "No such payment_intent", "resource_missing"), ProviderRefused),
        (400, an_error("idempotency_error", "Keys can only be used with the same parameters"), ProviderRefused),
        (402, an_error("card_error", "declined", "card_declined"), ProviderRefused),
    ],
)
async def test_errors_of_stripe(
    status: int, document: Any, raised: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers: dict[tuple[str, str], Any] = {
        ("POST", "/v1/checkout/sessions"): [(status, document)],
        ("GET", "/v1/refunds"): a_list(),
        ("POST", "/v1/refunds"): [(status, document)],
    }
    async with stripe_with(answers) as (stripe, fake):
        for call in (stripe.checkout(a_checkout()), stripe.refund(REFUNDED)):
            with pytest.raises(raised) as failure:
                await call
            assert KEY not in str(failure.value)
    assert len(fake.calls) == 3  # no call is repeated here: callers repeat
    assert KEY not in caplog.text


async def test_stripe_does_not_answer() -> None:
    stripe = StripeProvider(api_key=KEY, webhook_secrets=[SECRET], url="http://127.0.0.1:9")
    with pytest.raises(ProviderAway):
        await stripe.checkout(a_checkout())
    await stripe.close()


async def test_ledger_has_payments_and_refunds_that_moved_money() -> None:
    unpaid = INTENT | {"id": "pi_unpaid", "status": "requires_payment_method", "amount_received": 0}
    foreign = INTENT | {"id": "pi_foreign", "metadata": {}, "currency": "isk", "amount_received": 500}
    failed = REFUND | {"id": "re_failed", "status": "failed"}
    by_hand = REFUND | {"id": "re_hand", "metadata": {}, "amount": 5}
    intents = [
        (200, a_list(INTENT, unpaid, has_more=True, url="/v1/payment_intents")),
        (200, a_list(foreign, url="/v1/payment_intents")),
    ]
    answers: dict[tuple[str, str], Any] = {
        ("GET", "/v1/payment_intents"): intents, ("GET", "/v1/refunds"): a_list(REFUND, failed, by_hand),
    }  # fmt: skip
    since = datetime.fromtimestamp(NOW, UTC)
    async with stripe_with(answers) as (stripe, fake):
        entries = [entry async for entry in stripe.entries(since)]
    assert [(e.id, e.is_refund, e.order_id, e.amount_minor, e.currency, e.reference) for e in entries] == [
        (INTENT["id"], False, UUID(ORDER), 1999, "EUR", INTENT["id"]),
        ("pi_foreign", False, None, 5, "ISK", "pi_foreign"),
        ("00000000-0000-0000-0000-000000000007", True, UUID(ORDER), 1999, "EUR", INTENT["id"]),
        ("", True, None, 5, "EUR", INTENT["id"]),
    ]
    assert fake.calls[1][2]["starting_after"] == "pi_unpaid"
    assert int(fake.calls[0][2]["created[gte]"]) < int(fake.calls[2][2]["created[gte]"]) == NOW


async def test_settings_open_the_provider() -> None:
    values = {"payment_provider": "stripe", "payment_api_key": KEY, "payment_webhook_secrets": f"{SECRET},{OLD}"}
    provider = open_provider(Settings.model_validate(values))
    assert provider is not None and provider.name == "stripe"
    body = event_with()
    assert provider.event(signature(body, OLD), body, now_s=NOW) == PAID
    await provider.close()
