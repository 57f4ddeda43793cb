"""Payments at the edge: the provider's page for an order, and the provider's events.

Events arrive here and not at the backoffice, because money must get through while the backoffice is down.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

import orjson
import structlog
from redis.exceptions import RedisError

from domain.orders import OrderEntry, OrderStatus
from domain.outcomes import Transition
from domain.problems import Problem
from edge.bodies import BodyRefused, read_within
from edge.clock import RedisClock
from edge.orders import FoundOrder, Orders
from edge.problems import Answer, invalid, refuse
from edge.read_limits import Places, PlacesTaken
from edge.routing import Headers, Request
from edge.settlements import Settlements, SettlementsFull, SettlementUnavailable
from payments.providers.port import (
    Checkout,
    CheckoutLine,
    EventMalformed,
    Ignored,
    PaymentProvider,
    ProviderAway,
    ProviderRefused,
    SignatureInvalid,
)
from payments.settling import Settled
from reservation.lane import Lanes

WEBHOOK_BYTES_MAX: Final = 65_536
WEBHOOK_S_MAX: Final = 5.0
# Calls to the provider at once in a worker: a provider that answers slowly must not take all of it.
CHECKOUTS_RUNNING_MAX: Final = 32
CHECKOUTS_WAITING_MAX: Final = 256
CHECKOUT_WAIT_S_MAX: Final = 2.0
CHECKOUT_S_MAX: Final = 5.0
LOG_EVERY_S: Final = 10.0
_HEADERS: Final = [("content-type", "application/json"), ("cache-control", "no-store")]
_SIGNATURES: Final = ("payment-signature", "stripe-signature")

_log = structlog.get_logger("edge.payments")


class Payments:
    """Handlers of payments. Without a provider every request is refused as unavailable."""

    def __init__(
        self,
        *,
        provider: PaymentProvider | None,
        orders: Orders,
        settlements: Settlements,
        lanes: Lanes,
        clock: RedisClock,
        body_deadline_ms: int,
        shop_url: str,
    ) -> None:
        """`shop_url` is the public address of the pages, to which a buyer comes back from the provider."""
        self._provider = provider
        self._orders = orders
        self._settlements = settlements
        self._lanes = lanes
        self._clock = clock
        self._body_deadline_ms = body_deadline_ms
        self._shop_url = shop_url
        self._places = Places(
            running_max=CHECKOUTS_RUNNING_MAX, waiting_max=CHECKOUTS_WAITING_MAX, wait_s_max=CHECKOUT_WAIT_S_MAX
        )
        self.events: Counter[str] = Counter()  # by result, of which there are few
        self._unsigned_logged_at = -LOG_EVERY_S

    def snapshot(self) -> dict[str, int]:
        """Events of payments by result."""
        return dict(self.events)

    async def start(self, request: Request) -> Answer:
        """The address of the provider's page on which the buyer pays a reserved order."""
        return await self._orders.with_order(request, self._checkout)

    async def _checkout(self, found: FoundOrder) -> Answer:
        entry = found.entry
        status = entry.status_at(self._clock.now_ms())
        if status is not OrderStatus.RESERVED:
            return refuse(Problem.ORDER_STATE_CONFLICT, f"The order is {status.label}")
        if self._provider is None:
            return refuse(Problem.DEPENDENCY_UNAVAILABLE, "This shop takes no payments at present")
        if not found.in_redis:
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)  # lost by Redis: a rebuild restores it
        return_url = f"{self._shop_url}/shop/orders/{entry.order_id}"
        if entry.total_minor == 0:
            return await self._settle_free(entry, return_url)
        checkout = Checkout(
            order_id=entry.order_id,
            lines=[CheckoutLine(line.sku, line.quantity, line.unit_price_minor) for line in entry.lines],
            amount_minor=entry.total_minor,
            currency=entry.currency,
            expires_at_ms=entry.expires_at_ms,
            return_url=return_url,
        )
        try:
            async with self._places.place(), asyncio.timeout(CHECKOUT_S_MAX):
                url = await self._provider.checkout(checkout)
        except PlacesTaken:
            return refuse(Problem.OVERLOADED)
        except (ProviderAway, TimeoutError) as error:
            _log.warning("provider_away", order_id=str(entry.order_id), error=str(error) or type(error).__name__)
            return refuse(
                Problem.DEPENDENCY_UNAVAILABLE, "The payment provider does not answer; your order stays reserved"
            )
        except ProviderRefused as error:
            _log.error("checkout_refused", order_id=str(entry.order_id), error=str(error))
            return refuse(Problem.DEPENDENCY_UNAVAILABLE, "The payment provider refuses to take this payment")
        return 200, _HEADERS, orjson.dumps({"payment_url": url})

    async def _settle_free(self, entry: OrderEntry, return_url: str) -> Answer:
        """An order that costs nothing is paid at once: no provider takes an amount of zero."""
        try:
            async with asyncio.timeout(CHECKOUT_S_MAX):
                (answer,) = await self._lanes.settle([entry])
        except (RedisError, OSError, TimeoutError):
            return refuse(Problem.OUTCOME_UNKNOWN, "The outcome is unknown: repeat the request to learn it")
        if answer in (Transition.DONE, Transition.REPEATED):
            return 200, _HEADERS, orjson.dumps({"payment_url": return_url})
        if answer is Transition.CONFLICT:
            return refuse(Problem.ORDER_STATE_CONFLICT, "The order cannot be paid any more")
        _log.error("free_order_not_settled", order_id=str(entry.order_id), error=str(answer))
        return refuse(Problem.DEPENDENCY_UNAVAILABLE)

    async def webhook(self, request: Request) -> Answer:
        """An event of the provider. 200: it has taken its effect, now or before."""
        if self._provider is None:
            return refuse(Problem.DEPENDENCY_UNAVAILABLE, "This shop takes no payments at present")
        length = request.headers.get("content-length") or ""
        if length.isdecimal() and (len(length) > 10 or int(length) > WEBHOOK_BYTES_MAX):
            self.events["too_large"] += 1
            return _closing(refuse(Problem.BODY_TOO_LARGE))
        if "content-encoding" in request.headers:
            return _closing(refuse(Problem.UNSUPPORTED_MEDIA_TYPE))
        try:
            body = await read_within(request.body, bytes_max=WEBHOOK_BYTES_MAX, deadline_ms=self._body_deadline_ms)
        except BodyRefused as error:
            return _closing(refuse(error.problem, error.detail))
        headers = _signatures(request.headers)
        if headers is None:
            self.events["bad_signature"] += 1
            return refuse(Problem.FORBIDDEN, "The signature's header is given more than once")
        try:
            event = self._provider.event(headers, body, now_s=time.time())
        except SignatureInvalid as error:
            self.events["bad_signature"] += 1
            self._log_unsigned(str(error))
            return refuse(Problem.FORBIDDEN, "The signature is missing, stale or wrong")
        except EventMalformed as error:
            self.events["malformed"] += 1
            _log.error("event_malformed", reason=str(error))
            return invalid("", str(error))
        if isinstance(event, Ignored):
            self.events["ignored"] += 1
            return _answer("ignored")
        if not self._orders.can_exist(event.order_id):
            return self._unknown(event.event_id)
        try:
            async with asyncio.timeout(WEBHOOK_S_MAX):
                settled = await self._settlements.settle(event)
        except SettlementsFull:
            self.events["overloaded"] += 1
            return refuse(Problem.OVERLOADED)
        except (SettlementUnavailable, TimeoutError):
            self.events["unavailable"] += 1
            return refuse(Problem.DEPENDENCY_UNAVAILABLE)
        self.events[settled.name.lower()] += 1
        match settled:
            case Settled.CAPTURED | Settled.REFUND_DUE:
                return _answer(settled.name.lower())
            case Settled.MISMATCH:
                _log.error("payment_mismatch", event_id=event.event_id, order_id=str(event.order_id))
                return invalid("/amount_minor", "not the amount and currency of the order: the money goes back")
            case Settled.REUSED:
                _log.error("event_reused", event_id=event.event_id, order_id=str(event.order_id))
                return invalid("/event_id", "used before for another payment")
            case Settled.UNDECIDED:
                return refuse(Problem.DEPENDENCY_UNAVAILABLE)
            case Settled.UNKNOWN:
                return self._unknown(event.event_id)

    def _log_unsigned(self, reason: str) -> None:
        """Anyone can send such events: they must not fill the log."""
        now_s = time.monotonic()
        if now_s - self._unsigned_logged_at >= LOG_EVERY_S:
            self._unsigned_logged_at = now_s
            _log.warning("event_not_signed", reason=reason, so_far=self.events["bad_signature"])

    def _unknown(self, event_id: str) -> Answer:
        """The order may not be known yet, after a loss of data for example: the provider shall repeat the event."""
        self.events["unknown_order"] += 1
        _log.error("payment_of_unknown_order", event_id=event_id)
        return refuse(Problem.DEPENDENCY_UNAVAILABLE, "The order is not known at present: repeat the event")


def _signatures(headers: Headers) -> Mapping[str, str] | None:
    """The headers that sign an event; None when one is given twice."""
    found: dict[str, str] = {}
    for name in _SIGNATURES:
        values = headers.get_all(name)
        if len(values) > 1:
            return None
        if values:
            found[name] = values[0]
    return found


def _answer(result: str) -> Answer:
    return 200, _HEADERS, orjson.dumps({"result": result})


def _closing(answer: Answer) -> Answer:
    status, headers, body = answer
    return status, [*headers, ("connection", "close")], body
