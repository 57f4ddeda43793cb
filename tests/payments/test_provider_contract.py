"""The contract of the payment port: every adapter passes it. A new adapter adds a counterpart below."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import aiohttp
import orjson
import pytest
import stripe
from aiohttp.test_utils import TestServer

from devstack.children import free_port
from payments.providers import signatures
from payments.providers.port import (
    Captured,
    Checkout,
    PaymentProvider,
    ProviderAway,
    ProviderEntry,
    ProviderRefused,
    RefundRequest,
    SignatureInvalid,
)
from payments.providers.simulated import SimulatedProvider
from payments.providers.stripe_provider import StripeProvider
from tests.fixtures.fix_payments import API_KEY, SECRET, Shop, Simulator, a_checkout
from tests.payments.stateful_stripe import StatefulStripe

Webhook = tuple[dict[str, str], bytes]


class Counterpart(Protocol):
    """An adapter with its provider."""

    provider: PaymentProvider

    async def pay(self, checkout: Checkout) -> Webhook:
        """The buyer pays; headers and body of the webhook."""

    async def go_down(self) -> None:
        """The provider answers nothing but errors from now on."""


class WithSimulator:
    def __init__(self, simulator: Simulator) -> None:
        self.provider: PaymentProvider = simulator.provider
        self._simulator = simulator

    async def pay(self, checkout: Checkout) -> Webhook:
        have = len(self._simulator.shop.events)
        await self._simulator.click(await self.provider.checkout(checkout), "pay_twice" if have else "pay")
        body = orjson.dumps((await self._simulator.shop.has(have + 1))[have])
        return {signatures.HEADER: signatures.sign(body, [SECRET.encode()], at_s=int(time.time()))}, body

    async def go_down(self) -> None:
        await self._simulator.control(down_s=600)


class WithStripe:
    def __init__(self, server: StatefulStripe, url: str) -> None:
        self.provider: PaymentProvider = StripeProvider(api_key="sk_test_1", webhook_secrets=[SECRET], url=url)
        self._server = server

    async def pay(self, checkout: Checkout) -> Webhook:
        await self.provider.checkout(checkout)
        body = self._server.pay(str(checkout.order_id))
        header: Any = stripe.WebhookSignature.generate_signature_header(body.decode(), SECRET)
        return {"stripe-signature": header}, body

    async def go_down(self) -> None:
        self._server.is_down = True


@pytest.fixture(params=["simulated", "stripe"])
async def other(request: pytest.FixtureRequest, tmp_path: Path, shop: Shop) -> AsyncIterator[Counterpart]:
    if request.param == "stripe":
        server = StatefulStripe()
        async with TestServer(server.application()) as listening:
            counterpart = WithStripe(server, str(listening.make_url("/")))
            yield counterpart
            await counterpart.provider.close()
        return
    port = free_port()
    provider = SimulatedProvider(url=f"http://127.0.0.1:{port}", api_key=API_KEY, webhook_secrets=[SECRET])
    async with aiohttp.ClientSession() as browser:
        simulator = Simulator(tmp_path, shop, port, provider, browser)
        await asyncio.to_thread(simulator.start)
        yield WithSimulator(simulator)
        simulator.kill()
        await provider.close()


async def paid(other: Counterpart, checkout: Checkout) -> Captured:
    headers, body = await other.pay(checkout)
    event = other.provider.event(headers, body, now_s=time.time())
    assert isinstance(event, Captured)
    return event


def back(event: Captured, amount_minor: int | None = None) -> RefundRequest:
    amount = event.amount_minor if amount_minor is None else amount_minor
    return RefundRequest(uuid4(), event.order_id, event.event_id, event.reference, amount, event.currency)


async def ledger(other: Counterpart) -> list[ProviderEntry]:
    return [entry async for entry in other.provider.entries(datetime(2020, 1, 1, tzinfo=UTC))]


async def test_repeated_checkout_leads_to_the_same_page(other: Counterpart) -> None:
    checkout = a_checkout()
    pages = await asyncio.gather(*(other.provider.checkout(checkout) for _ in range(5)))
    assert len(set(pages)) == 1
    assert await other.provider.checkout(a_checkout()) not in pages


@pytest.mark.parametrize(("amount", "currency"), [(1999, "EUR"), (1999, "JPY"), (1999, "ISK"), (1990, "KWD")])
async def test_payment_is_told_and_listed_in_our_minor_units(other: Counterpart, amount: int, currency: str) -> None:
    checkout = a_checkout(amount_minor=amount, currency=currency)
    event = await paid(other, checkout)
    assert (event.order_id, event.amount_minor, event.currency) == (checkout.order_id, amount, currency)
    await other.provider.refund(back(event, 10))
    payment, refund = await ledger(other)
    assert (payment.id, payment.is_refund, payment.order_id) == (event.event_id, False, checkout.order_id)
    assert (payment.amount_minor, payment.currency) == (amount, currency)
    assert (refund.is_refund, refund.amount_minor, refund.currency) == (True, 10, currency)
    assert abs((payment.at - datetime.now(UTC)).total_seconds()) < 600


async def test_payments_of_one_order_are_two(other: Counterpart) -> None:
    checkout = a_checkout()
    first, second = await paid(other, checkout), await paid(other, checkout)
    assert first.event_id != second.event_id and first.order_id == second.order_id


async def test_webhook_is_believed_only_as_it_was_signed(other: Counterpart) -> None:
    headers, body = await other.pay(a_checkout())
    now = time.time()
    event = other.provider.event(headers, body, now_s=now)
    assert other.provider.event(headers, body, now_s=now) == event  # the same at each delivery
    ((name, value),) = headers.items()
    for bad_headers, bad_body, bad_now in (
        ({}, body, now),
        ({name: ""}, body, now),
        ({name: value}, body + b" ", now),
        ({name: value}, body[:-2] + b"0}", now),
        ({name: value}, b"", now),
        ({name: value}, body, now + 400),
        ({name: value}, body, now - 400),
        ({name: value[:-1] + ("0" if value[-1] != "0" else "1")}, body, now),
        ({name: value.replace("v1=", "v2=")}, body, now),
        ({"x-" + name: value}, body, now),
    ):
        with pytest.raises(SignatureInvalid):
            other.provider.event(bad_headers, bad_body, now_s=bad_now)


async def test_refund_is_made_once_per_id(other: Counterpart) -> None:
    event = await paid(other, a_checkout())
    refund = back(event)
    made = {await other.provider.refund(refund) for _ in range(3)}
    made |= set(await asyncio.gather(*(other.provider.refund(refund) for _ in range(4))))
    assert len(made) == 1
    (entry,) = [entry for entry in await ledger(other) if entry.is_refund]
    assert (entry.id, entry.order_id, entry.amount_minor) == (str(refund.refund_id), event.order_id, event.amount_minor)


async def test_no_more_goes_back_than_came(other: Counterpart) -> None:
    event = await paid(other, a_checkout())
    await other.provider.refund(back(event, 1000))
    with pytest.raises(ProviderRefused):
        await other.provider.refund(back(event, 1000))
    await other.provider.refund(back(event, 999))
    assert [entry.amount_minor for entry in await ledger(other) if entry.is_refund] == [1000, 999]


async def test_refund_of_an_unknown_payment_is_refused(other: Counterpart) -> None:
    event = await paid(other, a_checkout())
    with pytest.raises(ProviderRefused):
        await other.provider.refund(replace(back(event), event_id="none", reference="none"))


async def test_provider_that_is_down_is_away(other: Counterpart) -> None:
    event = await paid(other, a_checkout())
    await other.go_down()
    for call in (other.provider.checkout(a_checkout()), other.provider.refund(back(event)), ledger(other)):
        with pytest.raises(ProviderAway):
            await call
