"""The port of payment providers. An adapter is one file beside this one; `open_provider` chooses it by name.

An adapter keeps no state of its own and retries nothing: its callers repeat, with the same ids. All amounts are in
minor units of the currency as `domain.currencies` has them; an adapter converts where its provider counts otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID


class ProviderAway(Exception):
    """The provider does not answer, or answered that it cannot at present (5xx, 429). The same call may work later."""


class ProviderRefused(Exception):
    """The provider refuses this call for good. Carries the provider's words, without any secret."""


class SignatureInvalid(Exception):
    """An event is not signed by a secret that we have, or its signature is stale."""


class EventMalformed(ValueError):
    """A signed event with a content that the provider does not document. The message names the member."""


@dataclass(frozen=True, slots=True)
class CheckoutLine:
    """A line of an order for the provider's page."""

    sku: str
    quantity: int
    unit_price_minor: int


@dataclass(frozen=True, slots=True)
class Checkout:
    """What a buyer pays for. The provider's idempotency key follows from the order id."""

    order_id: UUID
    lines: Sequence[CheckoutLine]
    amount_minor: int
    currency: str
    expires_at_ms: int  # end of the hold; a payment after it goes back
    return_url: str  # the buyer's browser comes back here, paid or not


@dataclass(frozen=True, slots=True)
class Captured:
    """Money was captured for an order.

    `event_id` is the provider's id of the event, the same at each delivery. `reference` is the provider's own name of
    the payment, by which it refunds; empty when it needs none.
    """

    event_id: str
    order_id: UUID
    amount_minor: int
    currency: str
    reference: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """An event without an effect here, such as a failed payment: the buyer may pay again. `kind` is its type."""

    event_id: str
    kind: str


Event = Captured | Ignored


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A refund of a payment or of a part of it. `refund_id` is the idempotency key: a repeated call refunds once."""

    refund_id: UUID
    order_id: UUID
    event_id: str
    reference: str
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A line of the provider's own ledger: a captured payment, or a refund with our refund id."""

    id: str  # event id of a payment, refund id of a refund (as text; empty if the provider does not tell one)
    is_refund: bool
    order_id: UUID | None  # None: money that the provider does not connect with an order of ours
    amount_minor: int
    currency: str
    at: datetime
    reference: str = ""


class PaymentProvider(Protocol):
    """A provider. Every method but `event` raises ProviderAway or ProviderRefused."""

    @property
    def name(self) -> str:
        """As in FLASHSALE_PAYMENT_PROVIDER."""
        ...

    async def checkout(self, checkout: Checkout) -> str:
        """Address of the provider's page on which the buyer pays.

        Repeated for an order: the same page, or a new one.
        """
        ...

    def event(self, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Event:
        """Read a webhook's request; names of `headers` are in lower case. Performs no I/O.

        Raises SignatureInvalid before it looks at the content, then EventMalformed.
        """
        ...

    async def refund(self, refund: RefundRequest) -> str:
        """Give money back, once per `refund_id`. Returns the provider's own id of the refund."""
        ...

    def entries(self, since: datetime) -> AsyncIterator[ProviderEntry]:
        """The provider's ledger from `since` on, oldest or newest first."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
