"""Documents of outbox rows as records of the event log, and back."""

from __future__ import annotations

from typing import Any

import orjson

from domain.events import HEADERS_MEMBER, event_headers, family_of, read_event
from domain.topology import TOPIC_ORDERS, TOPIC_PAYMENTS
from runtime.event_log import LogRecord, NewRecord


def record_of(document: dict[str, Any], **changed_headers: str | None) -> NewRecord:
    """The record that the dispatcher makes; `changed_headers` replace headers, None removes one."""
    headers = {**document.get(HEADERS_MEMBER, {}), **event_headers(document), **changed_headers}
    kept = {name: value for name, value in headers.items() if value is not None}
    return NewRecord(document["key"], orjson.dumps(document["data"]), kept)


def topic_of(document: dict[str, Any]) -> str:
    """The topic of an order's or a payment's event."""
    return TOPIC_PAYMENTS if family_of(document["type"]) == "payment" else TOPIC_ORDERS


def document_of(record: LogRecord) -> dict[str, Any]:
    """Inverse of `record_of`, without transport headers."""
    event = read_event(record.headers, record.value)
    return {
        "id": event.id, "type": event.type, "schema": event.schema, "key": record.key, "subject": event.subject,
        "version": event.version, "time_ms": event.time_ms, "data": event.data,
    }  # fmt: skip
