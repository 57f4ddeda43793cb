"""Events as CloudEvents 1.0, with a stable id and a version, so that consumers can drop those that they know.

Performs no I/O. In the outbox an event is one JSON document. On the event log it is a record in the binary mode of the
Kafka protocol binding (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md):

    document {"id", "type", "schema", "key", "subject", "version", "time_ms", "data", "headers"}

    key      key                             of the user, product or sale: records of one key stay in order
    headers  ce_specversion  1.0             ce_time        time_ms as RFC 3339
             ce_id           id              ce_subject     subject: the aggregate's id
             ce_type         type            ce_version     version of the aggregate, an extension attribute
             ce_source       urn:flashsale:order            ce_dataschema  urn:flashsale:schema:order:1
             content-type    application/json               and the transport headers, such as traceparent
    value    data as JSON

`schema` is the version of the format of `data`. It is raised when a member changes its meaning, not when a member is
added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from typing import Any, Final, Never
from uuid import UUID

from domain.orders import OrderEntry

ORDER_SCHEMA: Final = 1
PAYMENT_SCHEMA: Final = 1
HEADERS_MEMBER: Final = "headers"  # of a document in an outbox row: the transport headers of its record

TYPE_HEADER: Final = "ce_type"
SOURCE_PREFIX: Final = "urn:flashsale:"
DATASCHEMA_PREFIX: Final = "urn:flashsale:schema:"
_CONTENT_TYPE: Final = "application/json"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class EventMalformed(ValueError):
    """Not an event: a document that cannot become a record, or a record that is not a CloudEvent of ours."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event as read from the log.

    `type` is such as `order.paid`. `schema` is the version of the format of `data`, `version` the aggregate's, 0 if it
    is not known. `id` is unique within `source`, and stays the same when the event is delivered again.
    """

    id: str
    type: str
    source: str
    subject: str
    schema: int
    version: int
    time_ms: int
    data: Mapping[str, Any]

    @property
    def family(self) -> str:
        """The first word of the type, which names the schema: `order` of `order.paid`."""
        return family_of(self.type)


def family_of(type_: str) -> str:
    """`order` of `order.paid`."""
    return type_.partition(".")[0]


def event_type(headers: Mapping[str, str]) -> str:
    """The type of a record's event; empty if it has none. Reads one header, so that a consumer can skip cheaply."""
    return headers.get(TYPE_HEADER, "")


def read_event(headers: Mapping[str, str], value: bytes) -> Event:
    """The event of a record. Raises EventMalformed."""
    if headers.get("ce_specversion") != "1.0":
        raise EventMalformed("ce_specversion is not 1.0")
    try:
        id_, type_, source = headers["ce_id"], headers[TYPE_HEADER], headers["ce_source"]
        schema = _schema(headers["ce_dataschema"], family_of(type_))
        version, time_ms = _number(headers["ce_version"]), _ms(headers["ce_time"])
        data = _DECODER.decode(value.decode())
        id_.encode()
        if b"\\u" in value:  # half of a surrogate pair, which no consumer can write as UTF-8
            json.dumps(data, ensure_ascii=False).encode()
    except KeyError as error:
        raise EventMalformed(f"no header {error}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        raise EventMalformed(str(error)) from error
    if not id_ or not type_ or not source:
        raise EventMalformed("an attribute is empty")
    if not isinstance(data, dict):
        raise EventMalformed("the value is not a JSON object")
    return Event(id_, type_, source, headers.get("ce_subject", ""), schema, version, time_ms, data)


def event_headers(document: Mapping[str, Any]) -> dict[str, str]:
    """The record's headers for a document of an outbox row; its value is the JSON of `data`. Raises EventMalformed.

    Documents of earlier releases have no `subject`, and those of payments no `version`: the key and 0 stand for them.
    """
    try:
        id_, type_, schema, key = document["id"], document["type"], document["schema"], document["key"]
        version, time_ms = document.get("version", 0), document["time_ms"]
        if not isinstance(document["data"], dict):
            raise EventMalformed("data is not an object")
    except KeyError as error:
        raise EventMalformed(f"no member {error}") from error
    subject = document.get("subject", key)
    if not (_is_text(id_) and _is_text(type_) and _is_text(key) and _is_text(subject)):
        raise EventMalformed("id, type, key or subject is not a text")
    if not (_is_count(schema) and _is_count(version) and _is_count(time_ms)):
        raise EventMalformed("schema, version or time_ms is not a number")
    source, dataschema = _names(type_, schema)
    second, millisecond = divmod(time_ms, 1000)
    return {
        "ce_specversion": "1.0",
        "ce_id": id_,
        "ce_source": source,
        TYPE_HEADER: type_,
        "ce_time": f"{_second(second)}.{millisecond:03}Z",
        "ce_subject": subject,
        "ce_dataschema": dataschema,
        "ce_version": str(version),
        "content-type": _CONTENT_TYPE,
    }


def order_event_id(order_id: UUID, version: int) -> str:
    """The id of the event of an order at one version."""
    return f"{order_id}:{version}"


def order_event(entry: OrderEntry, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`order.<status>`: the whole order at one version. `time_ms` is the time of the version (Redis time).

    With `headers`, the event has the member `headers` as well.
    """
    order_id, user_id = str(entry.order_id), str(entry.user_id)
    event: dict[str, Any] = {
        "id": order_event_id(entry.order_id, entry.version),  # stable over redelivery
        "type": f"order.{entry.status.label}",
        "schema": ORDER_SCHEMA,
        "key": user_id,
        "subject": order_id,
        "version": entry.version,
        "time_ms": entry.changed_at_ms,
        "data": {
            "order_id": order_id,
            "user_id": user_id,
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


def _schema(urn: str, family: str) -> int:
    """1 of `urn:flashsale:schema:order:1`."""
    name, _, number = urn.rpartition(":")
    if name != DATASCHEMA_PREFIX + family:
        raise ValueError(f"ce_dataschema {urn!r} is not one of ours")
    return _number(number)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise ValueError(f"{text[:40]!r} is not a number")
    return int(text)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


@lru_cache(64)
def _names(type_: str, schema: int) -> tuple[str, str]:
    """Source and data schema: a type has few of them, and every event names them."""
    family = family_of(type_)
    return SOURCE_PREFIX + family, f"{DATASCHEMA_PREFIX}{family}:{schema}"


@lru_cache(64)
def _second(second: int) -> str:
    """RFC 3339 in UTC without a zone: the events of a batch are of the same few seconds. Raises EventMalformed."""
    try:
        return (_EPOCH + timedelta(seconds=second)).replace(tzinfo=None).isoformat()
    except OverflowError as error:
        raise EventMalformed("time_ms is beyond the year 9999") from error


def _ms(text: str) -> int:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text[:40]!r} has no time zone")
    return (at.astimezone(UTC) - _EPOCH) // _MILLISECOND


def _refuse(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_float)
