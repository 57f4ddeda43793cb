"""The payment simulator as a process: each payment once, also when it is killed; every bad behaviour on request."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest

from devstack.payment_simulator import books
from devstack.payment_simulator.behaviour import Behaviour, BehaviourInvalid
from devstack.payment_simulator.books import Checkout, Entry, Webhook
from devstack.payment_simulator.delivering import RETRY_S_MAX, retry_delay_s
from devstack.payment_simulator.page import price
from payments.providers.port import ProviderAway, ProviderRefused, RefundRequest
from payments.providers.simulated import SimulatedProvider
from tests.fixtures.fix_payments import API_KEY, SECRET, Shop, Simulator, a_checkout, until


def a_refund(event: dict[str, Any], *, amount_minor: int | None = None, refund_id: UUID | None = None) -> RefundRequest:
    amount = event["amount_minor"] if amount_minor is None else amount_minor
    return RefundRequest(
        refund_id or uuid4(), UUID(event["order_id"]), event["event_id"], "", amount, event["currency"]
    )  # fmt: skip


async def pending(simulator: Simulator, count: int) -> dict[str, Any]:
    """The sizes of the books when `count` webhooks are left; results are stored a moment after the answer."""
    for _ in range(500):
        counts = (await simulator.control())["counts"]
        if counts["webhooks_pending"] == count:
            break
        await asyncio.sleep(0.02)
    assert counts["webhooks_pending"] == count
    return {name: size for name, size in counts.items() if name != "webhooks_pending"}


async def paid(simulator: Simulator, action: str = "pay") -> dict[str, Any]:
    """The event of a new payment: the first one of its order, whatever else arrives meanwhile."""
    order_id = uuid4()

    def of_order() -> list[dict[str, Any]]:
        return [event for event in simulator.shop.events if event["order_id"] == str(order_id)]

    await simulator.click(await simulator.page(order_id), action)
    await until(lambda: bool(of_order()))
    return of_order()[0]


async def test_payment_reaches_shop_and_ledger_once(simulator: Simulator) -> None:
    checkout = a_checkout()
    page = await simulator.provider.checkout(checkout)
    assert await simulator.provider.checkout(checkout) == page
    clicks = await asyncio.gather(*(simulator.click(page) for _ in range(20)))
    assert set(clicks) == {(303, "http://shop.example/shop/orders/1")}
    (event,) = await simulator.shop.has(1)
    assert event == {
        "event_id": event["event_id"], "type": "payment.succeeded", "order_id": str(checkout.order_id),
        "amount_minor": 1999, "currency": "EUR",
    }  # fmt: skip
    (entry,) = await simulator.ledger()
    assert (entry.id, entry.order_id, entry.amount_minor, entry.is_refund) == (
        event["event_id"], checkout.order_id, 1999, False,
    )  # fmt: skip
    await until(lambda: len(simulator.shop.events) == 1)
    with pytest.raises(ProviderRefused, match="another amount"):
        await simulator.provider.checkout(replace(checkout, amount_minor=5))
    assert stat.S_IMODE((simulator.folder / "books.sqlite").stat().st_mode) == 0o600


async def test_ledger_since_ever(simulator: Simulator) -> None:
    event = await paid(simulator)
    entries = [entry.id async for entry in simulator.provider.entries(datetime(1970, 1, 1, tzinfo=UTC))]
    assert entries == [event["event_id"]]


async def test_page_shows_each_state_safely(simulator: Simulator) -> None:
    async def read(page: str) -> tuple[str, dict[str, str]]:
        async with simulator.browser.get(page) as answer:
            return await answer.text(), dict(answer.headers)

    checkout = a_checkout()
    line = replace(checkout.lines[0], sku="<b>&'\"")
    hostile = replace(checkout, lines=[line], return_url="https://shop.example/shop?a=1&b=2")
    page = await simulator.provider.checkout(hostile)
    text, headers = await read(page)
    assert (
        "&lt;b&gt;&amp;&#x27;&quot;" in text
        and "<b>" not in text
        and 'href="https://shop.example/shop?a=1&amp;b=2"' in text
    )
    assert "Pay 19.99 EUR" in text and "<script" not in text and "viewport" in text
    assert headers["Content-Security-Policy"] == (
        "default-src 'none'; style-src 'self'; form-action 'self' https://shop.example; base-uri 'none'; frame-ancestors 'none'"
    )
    assert not [
        link
        for link in re.findall(r'(?:src|href)="([^"]*)"', text)
        if link not in ("/page.css", "https://shop.example/shop?a=1&amp;b=2")
    ]
    assert await simulator.click(page, "decline") == (303, page.removeprefix(simulator.url))
    assert "was declined" in (await read(page))[0]
    await simulator.click(page)
    assert "This order is paid" in (await read(page))[0]
    late = await simulator.page(hold_ms=0)
    text, _ = await read(late)
    assert "Too late" in text and 'value="pay"' not in text
    assert (await simulator.click(late))[0] == 409
    kinds = sorted(event["type"] for event in await simulator.shop.has(2))
    assert kinds == ["payment.failed", "payment.succeeded"]
    for page, form in ((f"{simulator.url}/pay/none", "pay"), (late, "steal"), (late, "")):
        status, _ = await simulator.click(page, form)
        assert status in (404, 422)


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [(199950, "EUR", "1,999.50 EUR"), (1999, "JPY", "1,999 JPY"), (1999, "KWD", "1.999 KWD"), (5, "XXX", "0.05 XXX")],
)
def test_price_in_the_form_of_its_currency(amount: int, currency: str, shown: str) -> None:
    assert price(amount, currency) == shown


async def test_kill_at_any_point_loses_and_repeats_nothing(simulator: Simulator) -> None:
    """Buyers click while the process is killed; in the end every page is paid once, and the shop knows each."""
    pages = [await simulator.page() for _ in range(60)]

    async def insist(page: str) -> None:
        while True:
            try:
                assert (await simulator.click(page))[0] == 303
                return
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)

    clicks = [asyncio.create_task(insist(page)) for page in pages]
    for pause_s in (0.01, 0.03):
        await asyncio.sleep(pause_s)
        simulator.kill()
        await asyncio.to_thread(simulator.start)
    await asyncio.gather(*clicks)
    entries = await simulator.ledger()
    assert len(entries) == len({entry.order_id for entry in entries}) == 60
    await until(lambda: {event["event_id"] for event in simulator.shop.events} == {entry.id for entry in entries})


async def test_webhooks_are_repeated_until_the_shop_takes_them(simulator: Simulator, shop: Shop) -> None:
    shop.statuses = [503, 500, 403, 422]
    event = await paid(simulator)
    assert shop.refused == 4 and len(shop.events) == 1
    shop.statuses = [503] * 1000
    await simulator.click(await simulator.page())
    await until(lambda: shop.refused > 5)
    simulator.kill()
    shop.statuses = []
    await asyncio.to_thread(simulator.start)
    assert (await shop.has(2))[1]["event_id"] != event["event_id"]
    assert await pending(simulator, 0) == {"payments": 2, "refunds": 0}


def test_pauses_between_deliveries_are_bounded() -> None:
    delays = [retry_delay_s(attempts, jitter=0) for attempts in range(2000)]
    assert delays[:4] == [0.2, 0.4, 0.8, 1.6] and max(delays[:60]) == RETRY_S_MAX and set(delays[60:]) == {60.0}
    assert retry_delay_s(0, jitter=1) == 0.1


async def test_ledger_ends_while_buyers_pay(simulator: Simulator) -> None:
    """The reader asked for the next page for ever, because there was always one entry more."""
    key = {"Authorization": f"Bearer {API_KEY}"}
    for count in range(1, 4):
        await simulator.click(await simulator.page())
        async with simulator.browser.get(f"{simulator.url}/v1/ledger?limit=3", headers=key) as answer:
            page = await answer.json()
        assert len(page["entries"]) == count and (page["next"] is None) == (count < 3)
    assert len(await simulator.ledger()) == 3


def test_full_books_keep_what_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "BYTES_MAX", 40 * books.PAGE_BYTES)
    kept = books.Books(tmp_path / "books.sqlite")

    def pay(number: int) -> None:
        page = Checkout(f"t{number}", str(number), 5, "EUR", 5, "http://shop.example", [])
        entry = Entry(f"evt_{number}", "payment", f"evt_{number}", str(number), 5, "EUR", number)
        kept.settle(kept.open_checkout(page), [entry], [Webhook(b"{}", 0)], declined=False)

    stored = 0
    with contextlib.suppress(sqlite3.Error):
        for stored in range(5000):
            pay(stored)
    assert 0 < stored < 4999
    with pytest.raises(sqlite3.Error, match="full"):
        pay(stored)
    assert kept.counts() == {"payments": stored, "refunds": 0, "webhooks_pending": stored}
    kept.conclude([delivery.id for delivery in kept.due(now_ms=1, limit=10_000)], [])
    kept.close()
    again = books.Books(tmp_path / "books.sqlite")
    assert again.counts() == {"payments": stored, "refunds": 0, "webhooks_pending": 0}
    again.close()


async def test_refund_happens_once_and_within_the_payment(simulator: Simulator) -> None:
    event = await paid(simulator)
    part = a_refund(event, amount_minor=1000)
    assert len({await simulator.provider.refund(part) for _ in range(3)}) == 1
    refused = [
        (a_refund(event, amount_minor=1000), "more than was paid"),
        (replace(part, amount_minor=999), "used before"),
        (replace(a_refund(event), event_id="evt_none"), "no such payment"),
        (replace(a_refund(event), currency="USD"), "another order or currency"),
        (replace(a_refund(event), order_id=uuid4()), "another order or currency"),
    ]
    for refund, words in refused:
        with pytest.raises(ProviderRefused, match=words):
            await simulator.provider.refund(refund)
    await simulator.provider.refund(a_refund(event, amount_minor=999))
    ledger = await simulator.ledger()
    assert [entry.amount_minor for entry in ledger if entry.is_refund] == [1000, 999]
    assert ledger[1].id == str(part.refund_id)


async def test_refund_that_answers_500_was_made(simulator: Simulator) -> None:
    refund = a_refund(await paid(simulator))
    await simulator.control(refund_error_share=1)
    with pytest.raises(ProviderAway, match="500"):
        await simulator.provider.refund(refund)
    simulator.kill()
    await asyncio.to_thread(simulator.start)  # the behaviour survives
    with pytest.raises(ProviderAway, match="500"):
        await simulator.provider.refund(refund)
    await simulator.control(refund_error_share=0)
    assert await simulator.provider.refund(refund) == f"re_{refund.refund_id}"
    assert [entry.is_refund for entry in await simulator.ledger()] == [False, True]


async def test_refund_that_is_refused_for_good(simulator: Simulator) -> None:
    refund = a_refund(await paid(simulator))
    await simulator.control(refund_refusal_share=1)
    for _ in range(2):
        with pytest.raises(ProviderRefused, match="refused on request"):
            await simulator.provider.refund(refund)
    await simulator.control(refund_refusal_share=0)  # what a replay of the dead letter meets
    await simulator.provider.refund(refund)


async def test_second_late_lost_and_wrong_payments_on_request(simulator: Simulator, shop: Shop) -> None:
    await simulator.click(await simulator.page(), "pay_twice")
    first, second = (await shop.has(2))[:2]
    assert first["order_id"] == second["order_id"] and first["event_id"] != second["event_id"]
    await simulator.control(mismatch_share=1)
    assert (await paid(simulator))["amount_minor"] == 2000
    await simulator.control(mismatch_share=0, duplicate_share=1)
    event = await paid(simulator)
    assert await shop.has(5) and shop.events[3] == shop.events[4] == event
    await simulator.control(duplicate_share=0, decline_share=1)
    assert (await paid(simulator))["type"] == "payment.failed"
    await simulator.control(decline_share=0, lost_share=1)
    await simulator.click(await simulator.page())
    await simulator.control(lost_share=0)
    await simulator.click(await simulator.page(), "pay_late")  # its event leaves after the test, however slow this is
    await paid(simulator)
    assert len(shop.events) == 7
    assert await pending(simulator, 1) == {"payments": 7, "refunds": 0}


async def test_events_arrive_out_of_order_on_request(simulator: Simulator, shop: Shop) -> None:
    await simulator.control(reorder_share=1, reorder_ms=500, seed=3)
    pages = [await simulator.page() for _ in range(12)]
    for page in pages:
        await simulator.click(page)
    events = [event["event_id"] for event in await shop.has(12)]
    assert events != [entry.id for entry in await simulator.ledger()]
    assert sorted(events) == sorted(entry.id for entry in await simulator.ledger())


async def test_provider_is_down_for_a_while(simulator: Simulator, shop: Shop) -> None:
    page = await simulator.page()
    await simulator.control(webhook_delay_ms=1)
    await simulator.click(page)
    await shop.has(1)
    await simulator.control(down_s=1.5)
    with pytest.raises(ProviderAway, match="503"):
        await simulator.page()
    assert (await simulator.click(page))[0] == 503
    state = await simulator.control(down_s=0)
    assert state["behaviour"]["down_until_ms"] > 0
    await paid(simulator)


async def test_failures_and_slow_answers(simulator: Simulator) -> None:
    await simulator.control(failure_share=1)
    with pytest.raises(ProviderAway, match="503"):
        await simulator.page()
    await simulator.control(failure_share=0, slow_ms=60_000)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await simulator.page()
    await simulator.control(slow_ms=0)
    await simulator.page()


async def test_control_and_api_need_their_keys(simulator: Simulator) -> None:
    stranger = SimulatedProvider(url=simulator.url, api_key="wrong", webhook_secrets=[SECRET])
    with pytest.raises(ProviderAway, match="FLASHSALE_PAYMENT_API_KEY"):
        await stranger.checkout(a_checkout())
    await stranger.close()
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"bearer {SECRET}"}):
        async with simulator.browser.post(f"{simulator.url}/v1/control", json={}, headers=headers) as answer:
            assert answer.status == 401


async def test_bad_requests_are_answered(simulator: Simulator) -> None:
    key = {"Authorization": f"Bearer {API_KEY}"}
    good = {
        "order_id": str(uuid4()), "lines": [{"sku": "A", "quantity": 1, "unit_price_minor": 5}], "amount_minor": 5,
        "currency": "EUR", "expires_at_ms": 5, "return_url": "http://shop.example/",
    }  # fmt: skip
    bad: list[tuple[dict[str, Any], int]] = [
        ({"json": good | {"amount_minor": True}}, 422),
        ({"json": good | {"amount_minor": 2**60}}, 422),
        ({"json": good | {"currency": "eur"}}, 422),
        ({"json": good | {"lines": []}}, 422),
        ({"json": good | {"lines": [5]}}, 422),
        ({"json": good | {"order_id": "x"}}, 422),
        ({"json": good | {"return_url": "javascript:alert(1)"}}, 422),
        ({"json": good | {"return_url": "http://shop.example/; script-src *"}}, 422),
        ({"json": good}, 400),  # no idempotency key
        ({"json": []}, 400),
        ({"data": b"{"}, 400),
        ({"data": b" " * 70_000}, 413),
    ]
    for request, status in bad:
        async with simulator.browser.post(f"{simulator.url}/v1/checkouts", headers=key, **request) as answer:
            assert answer.status == status, (request, await answer.text())
    for query in ("since_ms=x", "after=5", "after=5-x", f"since_ms={10**30}", "limit=x"):
        async with simulator.browser.get(f"{simulator.url}/v1/ledger?{query}", headers=key) as answer:
            assert answer.status == 400, query


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"late_share": 1.1}, "late_share"),
        ({"late_share": True}, "late_share"),
        ({"late_share": "1"}, "late_share"),
        ({"slow_ms": 1.5}, "slow_ms"),
        ({"slow_ms": -1}, "slow_ms"),
        ({"down_s": 10**9}, "down_s"),
        ({"down_until_ms": 5}, "down_until_ms"),
        ({"seed": 2**63}, "seed"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_malformed_behaviour_is_refused(document: dict[str, Any], named: str) -> None:
    with pytest.raises(BehaviourInvalid, match=named):
        Behaviour().changed(document, now_ms=0)


def test_a_seed_decides_the_same_again_and_shares_are_kept() -> None:
    behaviour = Behaviour(seed=7, late_share=0.25)
    decisions = [behaviour.happens("late", str(number)) for number in range(4000)]
    assert decisions == [Behaviour(seed=7, late_share=0.25).happens("late", str(number)) for number in range(4000)]
    assert 800 < sum(decisions) < 1200
    assert decisions != [replace(behaviour, seed=8).happens("late", str(number)) for number in range(4000)]
    assert not any(Behaviour().happens("late", str(number)) for number in range(100))
    assert Behaviour.stored(behaviour.document() | {"of an earlier version": 1}) == behaviour
