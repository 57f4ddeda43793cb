"""The simulator over HTTP: the shop's API, the buyer's page, the control of the behaviour."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

import orjson
import structlog
from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from devstack.payment_simulator import page, paying
from devstack.payment_simulator.behaviour import Behaviour, BehaviourInvalid
from devstack.payment_simulator.books import Books, Checkout, Entry
from devstack.payment_simulator.delivering import Deliverer
from devstack.payment_simulator.reading import Malformed, read_checkout, read_refund

BODY_BYTES_MAX: Final = 65_536
BODY_S_MAX: Final = 5.0
RUNNING_MAX: Final = 256  # requests; a slow provider holds many
LEDGER_PAGE_MAX: Final = 1000
RETRY_AFTER: Final = {"Retry-After": "1"}

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, error: str) -> None:
        """`error` is for the caller."""
        super().__init__(error)
        self.status = status


class Provider:
    """The handlers."""

    def __init__(self, books: Books, *, url: str, api_key: str, secret: str, now_ms: Callable[[], int]) -> None:
        """`url` is the public address of the pages; `secret` signs webhooks and opens the control."""
        self._books = books
        self._url = url
        self._api_key = f"Bearer {api_key}".encode()
        self._control_key = f"Bearer {secret}".encode()
        self._now_ms = now_ms
        self._behaviour = books.behaviour()
        self._calls = 0
        self._running = 0
        self.deliverer: Deliverer | None = None

    def behaviour(self) -> Behaviour:
        """The behaviour now."""
        return self._behaviour

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[self._bounded], client_max_size=BODY_BYTES_MAX)
        application.add_routes(
            [
                web.post("/v1/checkouts", self._called(self._checkout)),
                web.post("/v1/refunds", self._called(self._refund)),
                web.get("/v1/ledger", self._called(self._ledger)),
                web.get("/v1/control", self._controlled(self._show_control)),
                web.post("/v1/control", self._controlled(self._set_control)),
                web.delete("/v1/control", self._controlled(self._reset_control)),
                web.get("/pay/{token}", self._show_page),
                web.post("/pay/{token}", self._pay),
                web.get("/page.css", self._style),
                web.get("/livez", self._probe),
                web.get("/readyz", self._probe),
                web.get("/metrics", self._metrics),
            ]
        )
        return application

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """At most `RUNNING_MAX` requests at once; every failure becomes an answer."""
        if self._running >= RUNNING_MAX:
            return _json(503, {"error": "too many requests at once"}, RETRY_AFTER)
        self._running += 1
        try:
            return await handler(request)
        except Refusal as refusal:
            extra = RETRY_AFTER if refusal.status == 503 else {}
            if request.path.startswith("/pay/"):
                return _page(page.message_page("Not possible now", str(refusal)), refusal.status, extra=extra)
            return _json(refusal.status, {"error": str(refusal)}, extra)
        except Malformed as error:
            return _json(422, {"error": str(error)})
        except sqlite3.Error as error:
            log.error("books not available", error=str(error))
            return _json(503, {"error": "the books are not available"}, RETRY_AFTER)
        finally:
            self._running -= 1

    def _called(self, handler: Handler) -> Handler:
        """A call of the shop: with its key, and as well or badly as the behaviour says."""

        async def call(request: web.Request) -> web.StreamResponse:
            _authorize(request, self._api_key)
            self._refuse_while_down()
            self._calls += 1
            if self._behaviour.slow_ms:
                await asyncio.sleep(self._behaviour.slow_ms / 1000)
            if self._behaviour.happens("failure", str(self._calls)):
                raise Refusal(503, "a failure on request")
            return await handler(request)

        return call

    def _controlled(self, handler: Handler) -> Handler:
        async def call(request: web.Request) -> web.StreamResponse:
            _authorize(request, self._control_key)
            return await handler(request)

        return call

    def _refuse_while_down(self) -> None:
        if self._behaviour.is_down(self._now_ms()):
            raise Refusal(503, "The payment provider is down. Try again later.")

    async def _checkout(self, request: web.Request) -> web.Response:
        asked = read_checkout(await _document(request), token=secrets.token_urlsafe(18))
        if request.headers.get("Idempotency-Key") != asked.order_id:
            raise Refusal(400, "Idempotency-Key: not the order id")
        stored = self._books.open_checkout(asked)
        if (stored.amount_minor, stored.currency) != (asked.amount_minor, asked.currency):
            raise Refusal(409, "the order has a checkout of another amount or currency")
        return _json(200, {"url": f"{self._url}/pay/{stored.token}"})

    async def _refund(self, request: web.Request) -> web.Response:
        asked = read_refund(await _document(request), at_ms=self._now_ms())
        if request.headers.get("Idempotency-Key") != asked.id:
            raise Refusal(400, "Idempotency-Key: not the refund id")
        attempts = self._refund_once(asked)
        if self._behaviour.happens("refund_error", f"{asked.id}:{attempts}"):
            raise Refusal(500, "an error on request, after the refund")
        return _json(200, {"id": f"re_{asked.id}"})

    def _refund_once(self, asked: Entry) -> int:
        """Store a refund that is not stored yet; the number of calls for it. No await: nothing else runs between."""
        stored = self._books.entry(asked.id)
        if stored is not None:
            same = (stored.kind, stored.event_id, stored.amount_minor) == ("refund", asked.event_id, asked.amount_minor)
            if not same:
                raise Refusal(409, "the refund id was used before for another refund")
            self._books.count_attempt(asked.id)
            return stored.attempts + 1
        payment = self._books.entry(asked.event_id)
        if payment is None or payment.kind != "payment":
            raise Refusal(404, "no such payment")
        if (payment.order_id, payment.currency) != (asked.order_id, asked.currency):
            raise Refusal(422, "another order or currency than the payment's")
        if self._behaviour.happens("refund_refusal", asked.id):
            raise Refusal(422, "refused on request")
        if self._books.refunded_minor(asked.event_id) + asked.amount_minor > payment.amount_minor:
            raise Refusal(422, "more than was paid")
        self._books.refund(asked)
        return 1

    async def _ledger(self, request: web.Request) -> web.Response:
        try:
            since_ms = int(request.query.get("since_ms", "0"))
            at_ms, _, seq = request.query.get("after", f"{since_ms - 1}-{2**62}").rpartition("-")
            limit = max(1, min(int(request.query.get("limit", LEDGER_PAGE_MAX)), LEDGER_PAGE_MAX))
            rows = self._books.page(at_ms=int(at_ms), seq=int(seq), limit=limit)
        except (ValueError, OverflowError) as error:
            raise Refusal(400, "since_ms, after or limit: malformed") from error
        entries = [
            {"id": id_, "kind": kind, "order_id": order, "amount_minor": amount, "currency": currency, "at_ms": at}
            for id_, kind, order, amount, currency, at, _ in rows
        ]
        # Only a full page has a next one: while buyers pay, there would always be one entry more.
        following = f"{rows[-1][5]}-{rows[-1][6]}" if len(rows) == limit else None
        return _json(200, {"entries": entries, "next": following})

    async def _show_control(self, _: web.Request) -> web.Response:
        sent = dict(self.deliverer.sent) if self.deliverer is not None else {}
        return _json(
            200,
            {
                "behaviour": self._behaviour.document(),
                "counts": self._books.counts(),
                "webhooks_sent": {str(status): count for status, count in sorted(sent.items())},
            },
        )

    async def _set_control(self, request: web.Request) -> web.Response:
        try:
            self._behaviour = self._behaviour.changed(await _document(request), now_ms=self._now_ms())
        except BehaviourInvalid as error:
            raise Refusal(422, str(error)) from error
        self._books.store_behaviour(self._behaviour)
        return await self._show_control(request)

    async def _reset_control(self, request: web.Request) -> web.Response:
        self._behaviour = Behaviour()
        self._books.store_behaviour(self._behaviour)
        return await self._show_control(request)

    async def _show_page(self, request: web.Request) -> web.Response:
        checkout = self._page_of(request)
        return _page(page.payment_page(checkout, now_ms=self._now_ms()), 200, checkout)

    async def _pay(self, request: web.Request) -> web.Response:
        self._refuse_while_down()
        try:
            form = parse_qs((await _body(request)).decode("ascii"), max_num_fields=8, strict_parsing=True)
            action = paying.Action(form["action"][0])
        except (ValueError, KeyError) as error:
            raise Refusal(422, "This form is not complete: open the page again.") from error
        # No await from here to the end: two clicks are decided one after the other.
        checkout, now_ms = self._page_of(request), self._now_ms()
        try:
            outcome = paying.decide(checkout, action, self._behaviour, now_ms=now_ms)
        except paying.TooLate:
            return _page(page.payment_page(checkout, now_ms=now_ms), 409, checkout)
        if outcome.entries or outcome.declined:
            self._books.settle(checkout, outcome.entries, outcome.webhooks, declined=outcome.declined)
            if self.deliverer is not None:
                self.deliverer.look()
        target = str(request.rel_url) if outcome.declined else checkout.return_url
        return web.Response(status=303, headers={**page.headers(checkout.return_url), "Location": target})

    def _page_of(self, request: web.Request) -> Checkout:
        checkout = self._books.checkout(request.match_info["token"])
        if checkout is None:
            raise Refusal(404, "There is no such payment. Go back to the shop and try again from there.")
        return checkout

    async def _style(self, _: web.Request) -> web.Response:
        return web.Response(text=page.STYLE, content_type="text/css", headers=page.STYLE_HEADERS)

    async def _probe(self, _: web.Request) -> web.Response:
        return _json(200, {"ready": True, "checks": {}})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


def now_ms() -> int:
    """The time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _authorize(request: web.Request, key: bytes) -> None:
    given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(given, key):
        raise Refusal(401, "the key is missing or wrong")


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await request.read()
    except TimeoutError as error:
        raise Refusal(408, "the body did not arrive in time") from error
    except web.HTTPRequestEntityTooLarge as error:
        raise Refusal(413, f"the body has more than {BODY_BYTES_MAX} bytes") from error


async def _document(request: web.Request) -> Mapping[str, Any]:
    try:
        document = orjson.loads(await _body(request))
    except orjson.JSONDecodeError as error:
        raise Refusal(400, "not JSON") from error
    if not isinstance(document, dict):
        raise Refusal(400, "not an object")
    return document


def _json(status: int, document: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> web.Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **(extra or {})}
    return web.Response(status=status, body=orjson.dumps(document), headers=headers)


def _page(
    text: str, status: int, checkout: Checkout | None = None, *, extra: Mapping[str, str] | None = None
) -> web.Response:
    headers = {**page.headers(checkout.return_url if checkout else ""), **(extra or {})}
    return web.Response(status=status, text=text, content_type="text/html", headers=headers)
