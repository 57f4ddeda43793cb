"""Events for the event log, with a stable id and a version, so that consumers can drop those that they know.

Performs no I/O. `schema` is the version of the format. It is raised when a member changes its meaning, not when a
member is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.orders import OrderEntry

ORDER_SCHEMA = 1
HEADERS_MEMBER = "headers"  # of an event in an outbox row; the dispatcher moves it into the headers of the record


def order_event(entry: OrderEntry, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`order.<status>`: the whole order at one version. `time_ms` is the time of the version (Redis time).

    With `headers`, the event has the member `headers` as well.
    """
    order_id = str(entry.order_id)
    event: dict[str, Any] = {
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
    if headers:
        event[HEADERS_MEMBER] = dict(headers)
    return event
