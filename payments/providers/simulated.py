"""Adapter of the simulated provider, `devstack.payment_simulator`: for the embedded stack, tests and demonstrations.

    POST /v1/checkouts   {"order_id", "lines", "amount_minor", "currency", "expires_at_ms", "return_url"} -> {"url"}
    POST /v1/refunds     {"refund_id", "order_id", "event_id", "amount_minor", "currency"} -> {"id"}
    GET  /v1/ledger      ?since_ms=&after=&limit= -> {"entries": [...], "next": ...}
    webhooks             {"event_id", "type", "order_id", "amount_minor", "currency"}, signed as `signatures` describes

Repeated calls: a checkout by its order id, a refund by its refund id.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import aiohttp
import orjson

from domain import ids
from domain.payments import EVENT_ID_LENGTH_MAX
from payments.providers import signatures
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
)

NAME: Final = "simulated"
CONNECTIONS_MAX: Final = 32
CONNECT_S_MAX: Final = 2.0
CALL_S_MAX: Final = 10.0  # callers bound it further
ANSWER_BYTES_MAX: Final = 1_048_576
LEDGER_PAGE_MAX: Final = 1000  # entries
AMOUNT_MAX: Final = 2**53  # every JSON parser reads integers up to here exactly
KIND_LENGTH_MAX: Final = 100
URL_LENGTH_MAX: Final = 2048
_SUCCEEDED: Final = "payment.succeeded"
_EVENT_ID: Final = re.compile(rf"[\x21-\x7e]{{1,{EVENT_ID_LENGTH_MAX}}}")
_KIND: Final = re.compile(rf"[\x21-\x7e]{{1,{KIND_LENGTH_MAX}}}")
_ID: Final = re.compile(r"[0-9a-fA-F-]{36}")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_REFUSAL_LENGTH_MAX: Final = 200
_KEY_REFUSED: Final = (401, 403)  # a mistake in our settings, not the end of a refund
_BUSY: Final = (408, 425, 429)


class SimulatedProvider:
    """The simulated provider."""

    name = NAME

    def __init__(self, *, url: str, api_key: str, webhook_secrets: Sequence[str]) -> None:
        """`url` is the provider's address."""
        self._webhook_secrets = [secret.encode() for secret in webhook_secrets]
        self._url = url.rstrip("/")
        self._authorization = f"Bearer {api_key}"
        self._opened: aiohttp.ClientSession | None = None

    async def checkout(self, checkout: Checkout) -> str:
        """Address of the page on which the buyer pays; the same page for a repeated call."""
        document = {
            "order_id": str(checkout.order_id),
            "lines": [
                {"sku": line.sku, "quantity": line.quantity, "unit_price_minor": line.unit_price_minor}
                for line in checkout.lines
            ],
            "amount_minor": checkout.amount_minor,
            "currency": checkout.currency,
            "expires_at_ms": checkout.expires_at_ms,
            "return_url": checkout.return_url,
        }
        answer = await self._call("POST", "/v1/checkouts", document=document, key=str(checkout.order_id))
        url = answer.get("url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")) or len(url) > URL_LENGTH_MAX:
            raise ProviderAway("the answer has no address of a page")
        return url

    def event(self, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Event:
        """Read a webhook's request."""
        signatures.verify(headers.get(signatures.HEADER), body, self._webhook_secrets, now_s=now_s)
        return parse_event(body)

    async def refund(self, refund: RefundRequest) -> str:
        """Give money back, once per refund id."""
        document = {
            "refund_id": str(refund.refund_id),
            "order_id": str(refund.order_id),
            "event_id": refund.event_id,
            "amount_minor": refund.amount_minor,
            "currency": refund.currency,
        }
        answer = await self._call("POST", "/v1/refunds", document=document, key=str(refund.refund_id))
        provider_id = answer.get("id")
        if not isinstance(provider_id, str) or not _EVENT_ID.fullmatch(provider_id):
            raise ProviderAway("the answer has no id of the refund")
        return provider_id

    async def entries(self, since: datetime) -> AsyncIterator[ProviderEntry]:
        """The provider's ledger, oldest first."""
        query = {"since_ms": str(int(since.timestamp() * 1000)), "limit": str(LEDGER_PAGE_MAX)}
        while True:
            page = await self._call("GET", "/v1/ledger", query=query)
            try:
                entries, after = [_entry(entry) for entry in page["entries"]], page["next"]
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise ProviderAway("the answer is not a page of a ledger") from error
            for entry in entries:
                yield entry
            if after is None:
                return
            if not entries or str(after) == query.get("after"):
                raise ProviderAway("the ledger's pages do not end")
            query["after"] = str(after)

    async def close(self) -> None:
        """Close connections."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        """Opened by the first call: a session belongs to an event loop."""
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
                timeout=aiohttp.ClientTimeout(total=CALL_S_MAX, connect=CONNECT_S_MAX),
                headers={"Authorization": self._authorization},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._opened

    async def _call(
        self,
        method: str,
        path: str,
        *,
        document: Mapping[str, Any] | None = None,
        key: str | None = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        content = None
        if document is not None:
            content = orjson.dumps(document)
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method, self._url + path, data=content, headers=headers, params=query, allow_redirects=False
            ) as response:
                body = await _read(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ProviderAway(type(error).__name__) from error
        status = response.status
        if status in _KEY_REFUSED:
            raise ProviderAway(f"the provider refuses our key (status {status}): check FLASHSALE_PAYMENT_API_KEY")
        if 400 <= status < 500 and status not in _BUSY:
            raise ProviderRefused(f"status {status}: {_words(body)}")
        if not 200 <= status < 300:
            raise ProviderAway(f"status {status}")
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise ProviderAway("the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise ProviderAway("the answer is not an object")
        return answer


def parse_event(body: bytes) -> Event:
    """The content of a signed event. Members that are not documented are ignored. Raises EventMalformed."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EventMalformed("not JSON") from error
    if not isinstance(document, dict):
        raise EventMalformed("not an object")
    event_id = _text(document, "event_id", _EVENT_ID)
    kind = _text(document, "type", _KIND)
    if kind != _SUCCEEDED:
        return Ignored(event_id, kind)
    order_id = ids.parse_uuid(_text(document, "order_id", _ID))
    if order_id is None:
        raise EventMalformed("order_id: not a UUID")
    amount_minor = document.get("amount_minor")
    if type(amount_minor) is not int or not 1 <= amount_minor <= AMOUNT_MAX:
        raise EventMalformed(f"amount_minor: not an integer from 1 to {AMOUNT_MAX}")
    return Captured(event_id, order_id, amount_minor, _text(document, "currency", _CURRENCY), reference="")


def _text(document: Mapping[str, Any], name: str, pattern: re.Pattern[str]) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise EventMalformed(f"{name}: missing or malformed")
    return value


def _entry(document: Mapping[str, Any]) -> ProviderEntry:
    amount_minor, currency = document["amount_minor"], document["currency"]
    if type(amount_minor) is not int or not isinstance(currency, str) or not isinstance(document["id"], str):
        raise TypeError("entry of the ledger")
    return ProviderEntry(
        id=document["id"],
        is_refund={"payment": False, "refund": True}[document["kind"]],
        order_id=None if document["order_id"] is None else UUID(document["order_id"]),
        amount_minor=amount_minor,
        currency=currency,
        at=datetime.fromtimestamp(document["at_ms"] / 1000, UTC),
    )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > ANSWER_BYTES_MAX:
            raise ProviderAway(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _words(body: bytes) -> str:
    """The provider's explanation, short and in one line."""
    try:
        document = orjson.loads(body)
        text = document["error"] if isinstance(document["error"], str) else "no explanation"
    except (orjson.JSONDecodeError, KeyError, TypeError):
        text = "no explanation"
    return "".join(character for character in text if character.isprintable())[:_REFUSAL_LENGTH_MAX]
