"""The adapter of the simulated provider: events in every shape, calls against a transport that answers badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from payments.providers import open_provider, signatures
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
from payments.providers.simulated import AMOUNT_MAX, ANSWER_BYTES_MAX, SimulatedProvider, parse_event
from runtime.process.settings import Settings, SettingsError

SECRET = "a-secret-of-the-provider"
ORDER = UUID("0199aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee")
NOW = 1_764_288_000
EVENT = {
    "event_id": "evt_1",
    "type": "payment.succeeded",
    "order_id": str(ORDER),
    "amount_minor": 1999,
    "currency": "EUR",
}
CHECKOUT = Checkout(ORDER, [CheckoutLine("SHOE", 1, 1999)], 1999, "EUR", NOW * 1000, "http://shop.example/orders")
REFUND = RefundRequest(UUID(int=7), ORDER, "evt_1", "", 1999, "EUR")
Answer = Callable[[web.Request], web.StreamResponse | Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[SimulatedProvider]:
    """The adapter, and a real server that answers each call so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await request.read()
        answered = answer(request)
        return answered if isinstance(answered, web.StreamResponse) else await answered

    async with TestServer(_application(handle)) as server:
        provider = SimulatedProvider(
            url=str(server.make_url("/")), api_key="key-of-the-shop", webhook_secrets=[SECRET]
        )  # fmt: skip
        try:
            yield provider
        finally:
            await provider.close()


def _application(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    return application


def says(status: int, document: Any) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document))


def event_with(**members: Any) -> bytes:
    return orjson.dumps({name: value for name, value in (EVENT | members).items() if value is not ...})


async def test_event_is_read_after_its_signature() -> None:
    async with answering(lambda _: web.Response()) as provider:
        body = event_with(later={"member": [1]})
        header = signatures.sign(body, [SECRET.encode()], at_s=NOW)
        event = provider.event({"payment-signature": header}, body, now_s=NOW)
        assert event == Captured("evt_1", ORDER, 1999, "EUR", "")
        for headers in ({}, {"stripe-signature": header}, {"payment-signature": header[:-1] + "!"}):
            with pytest.raises(SignatureInvalid):
                provider.event(headers, b"not even JSON", now_s=NOW)


@pytest.mark.parametrize("kind", ["payment.failed", "payment.succeeded.later", "Payment.Succeeded", "x"])
def test_other_events_are_ignored(kind: str) -> None:
    assert parse_event(event_with(type=kind, amount_minor=None)) == Ignored("evt_1", kind)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event_id", ...),
        ("event_id", ""),
        ("event_id", "x" * 256),
        ("event_id", "evt 1"),
        ("event_id", "evt\u00e9"),
        ("event_id", "evt\n"),
        ("event_id", 1),
        ("event_id", None),
        ("type", ...),
        ("type", ""),
        ("type", ["payment.succeeded"]),
        ("type", "x" * 101),
        ("order_id", ...),
        ("order_id", "x"),
        ("order_id", ORDER.hex),
        ("order_id", f"{{{ORDER}}}"[:36]),
        ("order_id", 5),
        ("amount_minor", ...),
        ("amount_minor", True),
        ("amount_minor", 0),
        ("amount_minor", -1),
        ("amount_minor", 1999.0),
        ("amount_minor", "1999"),
        ("amount_minor", AMOUNT_MAX + 1),
        ("amount_minor", 2**63),
        ("currency", ...),
        ("currency", "eur"),
        ("currency", "EURO"),
        ("currency", "EU\u0158"),
        ("currency", "EUR\n"),
        ("currency", None),
    ],
)
def test_malformed_members_are_named(name: str, value: Any) -> None:
    with pytest.raises(EventMalformed, match=name):
        parse_event(event_with(**{name: value}))


@pytest.mark.parametrize("amount", [1, AMOUNT_MAX])
def test_amounts_at_the_bounds(amount: int) -> None:
    event = parse_event(event_with(amount_minor=amount, event_id="~" * 255))
    assert isinstance(event, Captured) and event.amount_minor == amount


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*EVENT, "x"]), inner),
    ).map(lambda value: orjson.dumps(value))
)
def test_any_body_is_an_event_or_malformed(body: bytes) -> None:
    try:
        event = parse_event(body)
    except EventMalformed:
        return
    assert event.event_id.isascii() and 1 <= len(event.event_id) <= 255


async def test_calls_carry_key_and_idempotency_key() -> None:
    seen: list[tuple[Any, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.headers, await request.read()))
        return says(200, {"url": "http://pay.example/1", "id": "re_1"})

    async with answering(answer) as provider:
        assert await provider.checkout(CHECKOUT) == "http://pay.example/1"
        assert await provider.refund(REFUND) == "re_1"
    assert [headers["authorization"] for headers, _ in seen] == ["Bearer key-of-the-shop"] * 2
    assert [headers["idempotency-key"] for headers, _ in seen] == [str(ORDER), str(REFUND.refund_id)]
    assert orjson.loads(seen[0][1])["amount_minor"] == 1999


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 302, 401, 403])
async def test_provider_is_away(status: int) -> None:
    def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=b'{"error": "no"}', headers={"Location": "/elsewhere"})

    async with answering(answer) as provider:
        for call in (provider.checkout(CHECKOUT), provider.refund(REFUND)):
            with pytest.raises(ProviderAway, match=str(status)) as failure:
                await call
            assert "key-of-the-shop" not in str(failure.value)


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_provider_refuses_for_good(status: int) -> None:
    async with answering(lambda _: says(status, {"error": "gone\n" + "x" * 5000})) as provider:
        with pytest.raises(ProviderRefused, match=r"gonex+$") as failure:
            await provider.refund(REFUND)
        assert len(str(failure.value)) < 300


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"url": "javascript:alert(1)", "id": "x\\n"}',
        b'{"url": 5, "id": 5}',
        b" " * (ANSWER_BYTES_MAX + 1),
    ],
)
async def test_senseless_answers_are_no_result(body: bytes) -> None:
    async with answering(lambda _: web.Response(body=body)) as provider:
        for call in (provider.checkout(CHECKOUT), provider.refund(REFUND)):
            with pytest.raises(ProviderAway):
                await call


async def test_broken_connections_mean_away() -> None:
    def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with answering(hang_up) as provider:
        with pytest.raises(ProviderAway, match="Disconnected"):
            await provider.checkout(CHECKOUT)
    nothing_listens = SimulatedProvider(url="http://127.0.0.1:9", api_key="k", webhook_secrets=[SECRET])
    with pytest.raises(ProviderAway, match="Connect"):
        await nothing_listens.checkout(CHECKOUT)
    await nothing_listens.close()


async def test_silent_provider_leaves_the_call_to_its_callers_deadline() -> None:
    ended = asyncio.Event()

    async def silent(_: web.Request) -> web.Response:
        await ended.wait()
        return web.Response()

    async with answering(silent) as provider:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await provider.checkout(CHECKOUT)
        ended.set()


def _pages(*pages: dict[str, Any]) -> Answer:
    left: Iterator[dict[str, Any]] = iter(pages)
    return lambda _: says(200, next(left))


def _line(name: str, kind: str = "payment", **members: Any) -> dict[str, Any]:
    line = {"id": name, "kind": kind, "order_id": str(ORDER), "amount_minor": 5, "currency": "EUR", "at_ms": 1000}
    return line | members


async def test_ledger_is_read_page_by_page() -> None:
    pages = _pages(
        {"entries": [_line("evt_1"), _line("evt_2", order_id=None)], "next": 2},
        {"entries": [_line("r", kind="refund")], "next": None},
    )
    async with answering(pages) as provider:
        entries = [entry async for entry in provider.entries(datetime(2026, 1, 1, tzinfo=UTC))]
    assert [(entry.id, entry.is_refund, entry.order_id) for entry in entries] == [
        ("evt_1", False, ORDER), ("evt_2", False, None), ("r", True, ORDER),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"entries": {}, "next": 1},
        {"entries": [], "next": 1},
        {"entries": [_line("x", kind="gift")], "next": None},
        {"entries": [_line("x", amount_minor="5")], "next": None},
        {"entries": [_line("x", order_id="5")], "next": None},
        {"entries": [_line("x", at_ms=10**30)], "next": None},
        {"entries": [5], "next": None},
    ],
)
async def test_senseless_pages_of_the_ledger(page: dict[str, Any]) -> None:
    async with answering(_pages(page)) as provider:
        with pytest.raises(ProviderAway):
            _ = [entry async for entry in provider.entries(datetime(2026, 1, 1, tzinfo=UTC))]


async def test_ledger_without_end() -> None:
    async with answering(lambda _: says(200, {"entries": [_line("x")], "next": 7})) as provider:
        with pytest.raises(ProviderAway, match="do not end"):
            _ = [entry async for entry in provider.entries(datetime(2026, 1, 1, tzinfo=UTC))]


def _settings(**values: Any) -> Settings:
    good = {
        "payment_provider": "simulated",
        "payment_url": "http://127.0.0.1:1",
        "payment_api_key": "key",
        "payment_webhook_secrets": f"{SECRET},{SECRET}-before",
    }
    return Settings.model_validate({name: value for name, value in (good | values).items() if value is not ...})


async def test_settings_open_the_provider() -> None:
    assert open_provider(Settings.model_validate({})) is None
    provider = open_provider(_settings())
    assert provider is not None and provider.name == "simulated"
    body = event_with()
    header = signatures.sign(body, [f"{SECRET}-before".encode()], at_s=NOW)
    assert isinstance(provider.event({"payment-signature": header}, body, now_s=NOW), Captured)
    await provider.close()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"payment_api_key": ...}, ["PAYMENT_API_KEY"]),
        ({"payment_api_key": ""}, ["PAYMENT_API_KEY"]),
        ({"payment_webhook_secrets": ...}, ["PAYMENT_WEBHOOK_SECRETS"]),
        ({"payment_webhook_secrets": f"{SECRET},short"}, ["PAYMENT_WEBHOOK_SECRETS"]),
        ({"payment_url": ...}, ["PAYMENT_URL"]),
        ({"payment_url": "http://user:word@127.0.0.1"}, ["PAYMENT_URL"]),
        ({"payment_url": "http://:80"}, ["PAYMENT_URL"]),
        ({"payment_url": "http://127.0.0.1:x"}, ["PAYMENT_URL"]),
        (
            {"payment_url": ..., "payment_api_key": ..., "payment_webhook_secrets": ...},
            ["PAYMENT_API_KEY", "PAYMENT_WEBHOOK_SECRETS", "PAYMENT_URL"],
        ),
    ],
)
def test_missing_settings_are_all_named(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(SettingsError) as failure:
        open_provider(_settings(**values))
    assert all(f"FLASHSALE_{name}" in str(failure.value) for name in named)
    assert "short" not in str(failure.value) and "user:word" not in str(failure.value)
