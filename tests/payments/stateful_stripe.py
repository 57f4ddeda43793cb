"""A small Stripe with a memory, for the contract suite: sessions, payments, refunds, idempotency keys."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

from tests.payments.stripe_shapes import EVENT, INTENT, OPEN_SESSION, REFUND, SESSION, a_list, an_error


@dataclass
class StatefulStripe:
    """`is_down`: every call answers 503."""

    is_down: bool = False
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)  # by order
    intents: list[dict[str, Any]] = field(default_factory=list)
    refunds: list[dict[str, Any]] = field(default_factory=list)
    remembered: dict[str, tuple[dict[str, str], dict[str, Any]]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/v1/checkout/sessions", self._made_once(self._open_session))
        application.router.add_post("/v1/refunds", self._made_once(self._refund))
        application.router.add_get("/v1/refunds", self._list_refunds)
        application.router.add_get("/v1/payment_intents", self._list_intents)
        return application

    def pay(self, order_id: str) -> bytes:
        """The buyer pays a session; the event of the payment."""
        session = self.sessions[order_id]
        intent = INTENT | {
            "id": f"pi_{next(self._numbers)}", "metadata": {"order_id": order_id}, "created": int(time.time()),
            "amount": session["amount_total"], "amount_received": session["amount_total"], "currency": session["currency"],
        }  # fmt: skip
        self.intents.append(intent)
        paid = SESSION | session | {"payment_status": "paid", "status": "complete", "payment_intent": intent["id"]}
        return orjson.dumps(EVENT | {"id": f"evt_{next(self._numbers)}", "data": {"object": paid}})

    def _made_once(self, make: Any) -> Any:
        async def handle(request: web.Request) -> web.Response:
            if self.is_down:
                return _answer(503, an_error("api_error", "down"))
            form = dict(parse_qsl((await request.read()).decode()))
            key = request.headers["Idempotency-Key"]
            if key in self.remembered:
                before, document = self.remembered[key]
                return (
                    _answer(200, document) if before == form else _answer(400, an_error("idempotency_error", "other"))
                )
            status, document = make(form)
            if status == 200:
                self.remembered[key] = form, document
            return _answer(status, document)

        return handle

    def _open_session(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        total = 0
        for number in itertools.count():
            if f"line_items[{number}][quantity]" not in form:
                break
            unit = int(form[f"line_items[{number}][price_data][unit_amount]"])
            total += unit * int(form[f"line_items[{number}][quantity]"])
        order_id = form["metadata[order_id]"]
        session = OPEN_SESSION | {
            "id": f"cs_{next(self._numbers)}", "amount_total": total, "metadata": {"order_id": order_id},
            "currency": form["line_items[0][price_data][currency]"], "client_reference_id": order_id,
            "url": f"https://checkout.stripe.com/c/pay/{next(self._numbers)}",
        }  # fmt: skip
        self.sessions[order_id] = session
        return 200, session

    def _refund(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        intent = next((one for one in self.intents if one["id"] == form["payment_intent"]), None)
        if intent is None:
            return 404, an_error("invalid_request_error", "No such payment_intent", "resource_missing")
        refunded = sum(one["amount"] for one in self.refunds if one["payment_intent"] == intent["id"])
        if refunded + int(form["amount"]) > intent["amount"]:
            return 400, an_error("invalid_request_error", "greater than unrefunded amount")
        refund = REFUND | {
            "id": f"re_{next(self._numbers)}", "amount": int(form["amount"]), "currency": intent["currency"],
            "payment_intent": intent["id"], "created": int(time.time()),
            "metadata": {"refund_id": form["metadata[refund_id]"], "order_id": form["metadata[order_id]"]},
        }  # fmt: skip
        self.refunds.append(refund)
        return 200, refund

    async def _list_refunds(self, request: web.Request) -> web.Response:
        if self.is_down:
            return _answer(503, an_error("api_error", "down"))
        wanted = request.query.get("payment_intent")
        return _answer(200, a_list(*(one for one in self.refunds if wanted in (None, one["payment_intent"]))))

    async def _list_intents(self, _: web.Request) -> web.Response:
        if self.is_down:
            return _answer(503, an_error("api_error", "down"))
        return _answer(200, a_list(*self.intents, url="/v1/payment_intents"))


def _answer(status: int, document: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")
