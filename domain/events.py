"""Events: what is told to the event log, with a stable id and a version, so that consumers can drop what they know.

Performs no I/O. `schema` is raised when a member changes meaning; adding a member does not raise it.
"""

from __future__ import annotations

from typing import Any

from domain.orders import OrderEntry

ORDER_SCHEMA = 1


def order_event(entry: OrderEntry) -> dict[str, Any]:
    """`order.<status>`: the whole order at one version. `time_ms` is when the version came to be (Redis time)."""
    order_id = str(entry.order_id)
    return {
        "id": f"{order_id}:{entry.version}",  # stable over redelivery
        "type": f"order.{entry.status.label}",
        "schema": ORDER_SCHEMA,
        "key": order_id,
        "version": entry.version,
        "time_ms": entry.changed_at_ms,
        "data": {
            "order_id": order_id,
            "user_id": str(entry.user_id),
            "sale_id": str(entry.sale_id),
            "status": entry.status.label,
            "total_minor": entry.total_minor,
            "currency": entry.currency,
            "items": [
                {"sku": line.sku, "quantity": line.quantity, "unit_price_minor": line.unit_price_minor}
                for line in entry.lines
            ],
            "reserved_at_ms": entry.reserved_at_ms,
            "expires_at_ms": entry.expires_at_ms,
        },
    }
