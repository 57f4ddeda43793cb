"""Documents for buyers: orders, sales, times. Performs no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from domain.orders import OrderEntry, OrderStatus
from domain.payments import NO_PAYMENT, PaymentState
from domain.sales import SaleDefinition, SaleState, Stock
from payments.ledger import Shown

LOW_PERCENT = 10  # an item below this share of its allotted units is `low`
LOW_UNITS = 3  # so is an item with this many units or fewer, once some are gone


def timestamp(unix_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-01-01T00:00:00.123Z`."""
    seconds, ms = divmod(unix_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"


def order_document(entry: OrderEntry, *, now_ms: int, shown: Shown | None = None) -> dict[str, Any]:
    """An order for its buyer. A hold past its time reads as expired.

    `shown` are its payments, if it has any. The members with amounts that go back, or went back, are there only with
    such an amount.
    """
    status = entry.status_at(now_ms)
    payment = NO_PAYMENT if shown is None else shown.payment
    if payment == NO_PAYMENT and status is OrderStatus.PAID:
        payment = PaymentState.CAPTURED.value  # Redis has decided, and the row follows in a moment
    document = {
        "order_id": str(entry.order_id),
        "sale_id": str(entry.sale_id),
        "status": status.label,
        "items": [
            {"sku": line.sku, "quantity": line.quantity, "unit_price_minor": line.unit_price_minor}
            for line in entry.lines
        ],
        "total_minor": entry.total_minor,
        "currency": entry.currency,
        "reserved_at": timestamp(entry.reserved_at_ms),
        "expires_at": timestamp(entry.expires_at_ms),
        "payment": payment,
    }
    if shown is not None and shown.due_minor:
        document["refund_due_minor"] = shown.due_minor
    if shown is not None and shown.refunded_minor:
        document["refunded_minor"] = shown.refunded_minor
    return document


def availability(stocks: Sequence[Stock]) -> str:
    """`available`, `low` or `sold_out` for one SKU, from its counters in every lane of the sale.

    Units in transit between lanes can be bought in a moment: they count as available.
    """
    available = sum(stock.unsold for stock in stocks)  # with the units in transit
    allotted = sum(stock.allotted for stock in stocks)
    if available <= 0:
        return "sold_out"
    if available * 100 < allotted * LOW_PERCENT or available <= min(LOW_UNITS, allotted - 1):
        return "low"
    return "available"


def sale_document(definition: SaleDefinition, *, state: SaleState, availabilities: Sequence[str]) -> dict[str, Any]:
    """A sale for buyers, without the server's time; `availabilities` in the order of the SKU index."""
    return {
        "id": str(definition.sale_id),
        "name": definition.name,
        "state": state.value,
        "starts_at": timestamp(definition.starts_at_ms),
        "ends_at": timestamp(definition.ends_at_ms),
        "items": [
            {
                "sku": item.sku,
                "unit_price_minor": item.unit_price_minor,
                "currency": definition.currency,
                "per_user_limit": item.per_user_limit,
                "availability": availability,
            }
            for item, availability in zip(definition.items, availabilities, strict=True)
        ],
    }
