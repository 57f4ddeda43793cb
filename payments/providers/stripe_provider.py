"""Adapter of Stripe: Checkout sessions, refunds, webhooks and the ledger, through Stripe's own library.

A payment is a PaymentIntent that was paid. Its id is the payment's event id: both events that may tell of it carry it,
and Stripe's lists have it, so that the ledgers can be compared. Metadata name the order and the refund.

Stripe remembers an idempotency key for 24 hours at least. So a refund first looks for itself among the payment's
refunds, and a repeated call refunds once however late it comes.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
import orjson
import stripe

from domain.ids import parse_uuid
from domain.payments import EVENT_ID_LENGTH_MAX, REFERENCE_LENGTH_MAX
from payments.providers.port import (
    Captured,
    Checkout,
    Event,
    EventMalformed,
    Ignored,
    ProviderAway,
    ProviderEntry,
    ProviderRefused,
    RefundRequest,
    SignatureInvalid,
)
from payments.providers.stripe_amounts import AmountUnfit, from_stripe, to_stripe

NAME: Final = "stripe"
CONNECTIONS_MAX: Final = 32
CONNECT_S_MAX: Final = 2.0
CALL_S_MAX: Final = 10.0  # callers bound it further
TOLERANCE_S: Final = 300
SIGNATURE_LENGTH_MAX: Final = 2048
PAGE_MAX: Final = 100  # entries, the most that Stripe allows
# Stripe lists payments by the time at which the buyer's attempt began: a session is open for a day at most.
OLDER: Final = timedelta(hours=25)
SESSION_S_MIN: Final = 30 * 60  # the shortest time that Stripe lets a session be open
SESSION_S_MAX: Final = 24 * 3600
MARGIN_S: Final = 60  # for clocks that differ
_PAID: Final = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
_GONE: Final = ("failed", "canceled")  # refunds that moved no money
_LATER: Final = ("balance_insufficient", "idempotency_key_in_use", "lock_timeout")  # codes of errors that pass
_WORDS_LENGTH_MAX: Final = 200


class StripeProvider:
    """Stripe."""

    name = NAME

    def __init__(
        self,
        *,
        api_key: str,
        webhook_secrets: Sequence[str],
        url: str = "",
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """`url` is the address of the API where it is not Stripe's own."""
        self._api_key = api_key
        self._webhook_secrets = tuple(webhook_secrets)
        self._url = url.rstrip("/")
        self._now_s = now_s
        self._opened: tuple[stripe.StripeClient, aiohttp.ClientSession] | None = None
        logging.getLogger("stripe").setLevel(logging.WARNING)  # at INFO, the library logs every call

    async def checkout(self, checkout: Checkout) -> str:
        """Address of the page on which the buyer pays; a repeated call gets the same one, see `_session_end`."""
        try:
            lines = [
                {
                    "quantity": line.quantity,
                    "price_data": {
                        "currency": checkout.currency.lower(),
                        "unit_amount": to_stripe(line.unit_price_minor, checkout.currency),
                        "product_data": {"name": line.sku},
                    },
                }
                for line in checkout.lines
            ]
        except AmountUnfit as error:
            raise ProviderRefused(str(error)) from error
        ends_at, phase = _session_end(checkout, now_s=self._now_s())
        order_id = str(checkout.order_id)
        params: Any = {
            "mode": "payment",
            "line_items": lines,
            "client_reference_id": order_id,
            "metadata": {"order_id": order_id},
            "payment_intent_data": {"metadata": {"order_id": order_id}},
            "success_url": checkout.return_url,
            "cancel_url": checkout.return_url,
            "expires_at": ends_at,
            # Otherwise an account that converts for its buyers would report another amount than the order's.
            "adaptive_pricing": {"enabled": False},
        }
        with _errors():
            session = await self._client.v1.checkout.sessions.create_async(
                params, {"idempotency_key": f"checkout-{order_id}-{phase}"}
            )
        if not isinstance(session.url, str) or not session.url.startswith(("https://", "http://")):
            raise ProviderAway("the answer has no address of a page")
        return session.url

    def event(self, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Event:
        """Read a webhook's request."""
        self._verify(headers.get("stripe-signature"), body, now_s=now_s)
        return parse_event(body)

    async def refund(self, refund: RefundRequest) -> str:
        """Give money back, once per refund id."""
        refund_id = str(refund.refund_id)
        try:
            amount = to_stripe(refund.amount_minor, refund.currency)
        except AmountUnfit as error:
            raise ProviderRefused(str(error)) from error
        refunds = self._client.v1.refunds
        with _errors():
            made = await refunds.list_async({"payment_intent": refund.reference, "limit": PAGE_MAX})
            async for found in made.auto_paging_iter():
                if _metadata(found).get("refund_id") == refund_id:
                    return _accepted(found)
            params: Any = {
                "payment_intent": refund.reference,
                "amount": amount,
                "metadata": {"refund_id": refund_id, "order_id": str(refund.order_id)},
            }
            return _accepted(await refunds.create_async(params, {"idempotency_key": f"refund-{refund_id}"}))

    async def entries(self, since: datetime) -> AsyncIterator[ProviderEntry]:
        """The provider's ledger: payments, newest first, then refunds. Payments begin up to `OLDER` before `since`."""
        with _errors():
            created: Any = {"gte": int((since - OLDER).timestamp())}
            intents = await self._client.v1.payment_intents.list_async({"created": created, "limit": PAGE_MAX})
            async for intent in intents.auto_paging_iter():
                if intent.status == "succeeded":
                    yield _entry(intent, intent.amount_received, str(intent.id), str(intent.id), is_refund=False)
            created = {"gte": int(since.timestamp())}
            refunds = await self._client.v1.refunds.list_async({"created": created, "limit": PAGE_MAX})
            async for refund in refunds.auto_paging_iter():
                if refund.status not in _GONE:
                    name = _metadata(refund).get("refund_id", "")
                    yield _entry(refund, refund.amount, name, str(refund.payment_intent or refund.id), is_refund=True)

    async def close(self) -> None:
        """Close connections."""
        if self._opened is not None:
            await self._opened[1].close()
            self._opened = None

    @property
    def _client(self) -> stripe.StripeClient:
        """Opened by the first call: a session belongs to an event loop."""
        if self._opened is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=CONNECTIONS_MAX, ssl=ssl.create_default_context(cafile=stripe.ca_bundle_path)
                ),
                timeout=aiohttp.ClientTimeout(total=CALL_S_MAX, connect=CONNECT_S_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
            client = stripe.StripeClient(
                self._api_key,
                base_addresses={"api": self._url} if self._url else None,
                max_network_retries=0,
                http_client=stripe.AIOHTTPClient(timeout=None, session=session),
            )
            self._opened = client, session
        return self._opened[0]

    def _verify(self, header: str | None, body: bytes, *, now_s: float) -> None:
        """The library compares signatures; it knows no future time and no other clock, so times are compared here."""
        if not header:
            raise SignatureInvalid("the signature is missing")
        if len(header) > SIGNATURE_LENGTH_MAX or not header.isascii():
            raise SignatureInvalid("the signature is malformed")
        if not any(_is_signed(header, body, secret) for secret in self._webhook_secrets):
            raise SignatureInvalid("the signature is wrong")
        # The one that the library has read: `t=` and an integer.
        signed_at = next(int(member[2:]) for member in header.split(",") if member.startswith("t="))
        if abs(now_s - signed_at) > TOLERANCE_S:
            raise SignatureInvalid("the signature is stale")


def parse_event(body: bytes) -> Event:
    """The content of a signed event. Raises EventMalformed."""
    try:
        document = orjson.loads(body)
        event_id, kind = _id(document["id"]), _id(document["type"])
        session = document["data"]["object"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise EventMalformed("not an event of Stripe") from error
    if event_id is None or kind is None or not isinstance(session, dict):
        raise EventMalformed("id, type or data: malformed")
    if kind not in _PAID or session.get("mode") != "payment":
        return Ignored(event_id, kind)
    if session.get("payment_status") != "paid":
        return Ignored(event_id, f"{kind}.unpaid")  # a payment that takes days: another event follows
    metadata = session.get("metadata") or {}
    order = metadata.get("order_id") if isinstance(metadata, dict) else None
    if order is None:
        return Ignored(event_id, f"{kind}.foreign")  # a payment of something else by the same account
    order_id = parse_uuid(order) if isinstance(order, str) else None
    if order_id is None:
        raise EventMalformed("metadata.order_id: not a UUID")
    intent, amount, currency = _id(session.get("payment_intent")), session.get("amount_total"), session.get("currency")
    if intent is None:
        raise EventMalformed("payment_intent: missing or malformed")
    if type(amount) is not int or amount < 1:
        raise EventMalformed("amount_total: not a positive integer")
    if not isinstance(currency, str) or len(currency) != 3 or not (currency.isascii() and currency.isalpha()):
        raise EventMalformed("currency: missing or malformed")
    try:
        amount_minor = from_stripe(amount, currency.upper())
    except AmountUnfit as error:
        raise EventMalformed(f"amount_total: {error}") from error
    return Captured(intent, order_id, amount_minor, currency.upper(), reference=intent)


def _session_end(checkout: Checkout, *, now_s: float) -> tuple[int, str]:
    """When the session closes, in seconds since 1970, and the part of the hold that its idempotency key names.

    A session is open for half an hour at least. So one made in the last half hour of a hold stays open longer than the
    hold, and a payment in that time comes late and goes back. One made before closes with the hold. Either time follows
    from the order alone, because Stripe refuses an idempotency key with other parameters.
    """
    hold_end_s = checkout.expires_at_ms // 1000
    if hold_end_s - now_s < SESSION_S_MIN + MARGIN_S:
        return hold_end_s + SESSION_S_MIN + MARGIN_S, "end"
    reserved_s = (checkout.order_id.int >> 80) // 1000  # the time in a UUIDv7
    return min(hold_end_s, reserved_s + SESSION_S_MAX - MARGIN_S), "hold"


def _is_signed(header: str, body: bytes, secret: str) -> bool:
    try:
        return bool(stripe.WebhookSignature.verify_header(body, header, secret))
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        return False


def _id(value: Any) -> str | None:
    """A value that can be an event id and a reference; None for any other."""
    fits = isinstance(value, str) and 1 <= len(value) <= min(EVENT_ID_LENGTH_MAX, REFERENCE_LENGTH_MAX)
    return str(value) if fits and value.isascii() and value.isprintable() else None


def _accepted(refund: stripe.Refund) -> str:
    if refund.status in _GONE:
        reason = getattr(refund, "failure_reason", None) or "no reason"
        raise ProviderRefused(f"refund {refund.id} is {refund.status}: {reason}")
    return str(refund.id)


def _entry(thing: Any, amount: int, entry_id: str, reference: str, *, is_refund: bool) -> ProviderEntry:
    currency = str(thing.currency).upper()
    return ProviderEntry(
        id=entry_id,
        is_refund=is_refund,
        order_id=parse_uuid(_metadata(thing).get("order_id", "")),
        amount_minor=from_stripe(amount, currency),
        currency=currency,
        at=datetime.fromtimestamp(thing.created, UTC),
        reference=reference,
    )


def _metadata(thing: Any) -> dict[str, str]:
    metadata = thing.metadata
    return {} if metadata is None else {str(name): str(value) for name, value in metadata.to_dict().items()}


@contextmanager
def _errors() -> Iterator[None]:
    """The library's errors as the port's. No text of a refused key: Stripe quotes a part of it."""
    try:
        yield
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        raise ProviderAway("Stripe refuses our key: check FLASHSALE_PAYMENT_API_KEY") from error
    except (stripe.InvalidRequestError, stripe.CardError, stripe.IdempotencyError) as error:
        if error.code in _LATER:
            raise ProviderAway(f"Stripe: {error.code}") from error
        raise ProviderRefused(f"Stripe: {_words(error)}") from error
    except stripe.StripeError as error:
        status = "no answer" if error.http_status is None else f"status {error.http_status}"
        raise ProviderAway(f"Stripe: {status}, {type(error).__name__}") from error
    except (aiohttp.ClientError, OSError, TimeoutError, AmountUnfit) as error:
        raise ProviderAway(f"Stripe: {type(error).__name__}") from error


def _words(error: stripe.StripeError) -> str:
    text = error.user_message or "no explanation"
    return "".join(character for character in text if character.isprintable())[:_WORDS_LENGTH_MAX]
