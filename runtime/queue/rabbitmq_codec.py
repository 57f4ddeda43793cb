"""A message of the port as one of AMQP, and back. Performs no I/O.

The body is the body. Headers of the AMQP message: `m` message id, `h` headers as JSON, `a` attempt, `f` first seen,
`k` failures, `r` history. The AMQP message id stays free: the client finds returned messages by it, and needs it to be
unique among those in flight, which the port's is not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from runtime.queue.encoding import (
    COUNT_MAX,
    TIME_MS_MAX,
    decode_failures,
    decode_headers,
    decode_history,
    encode_failures,
    encode_history,
    text,
    within,
)
from runtime.queue.port import Delivery, Failure, Settlement

PERSISTENT = 2
UNREADABLE_HEADER = "unreadable"  # the bytes, in hex, of properties that the client cannot decode
_SIZE_END = 12  # class, weight and body size of a content header (AMQP 0-9-1, 4.2.6.1); the properties follow


def properties_of(
    *, message_id: str, headers: Mapping[str, str], first_seen_ms: int | None, history: tuple[Failure, ...]
) -> Basic.Properties:
    """Of a message that is published for the first time."""
    return _properties(
        {
            "m": message_id,
            "h": orjson.dumps(dict(headers)).decode(),
            "a": 1,
            "f": first_seen_ms or time.time_ns() // 1_000_000,
            "k": "{}",
            "r": encode_history(history).decode(),
        }
    )


def properties_of_retry(delivery: Delivery, failure: Failure) -> Basic.Properties:
    """Of the next attempt after a failure."""
    return _properties(
        {
            "m": delivery.message_id,
            "h": orjson.dumps(dict(delivery.headers)).decode(),
            "a": delivery.attempt + 1,
            "f": delivery.first_seen_ms,
            "k": encode_failures(delivery.failures_with(failure)).decode(),
            "r": encode_history(delivery.history_with(failure)).decode(),
        }
    )


def _properties(headers: dict[str, Any]) -> Basic.Properties:
    return Basic.Properties(delivery_mode=PERSISTENT, headers=headers)


def delivery_of(message: DeliveredMessage, *, queue: str, tag: str, settlement: Settlement) -> Delivery:
    """A message as it is handed to a consumer's caller; one that is not ours has a `problem`."""
    headers: Any = message.header.properties.headers or {}
    try:
        return Delivery(
            queue=queue,
            message_id=text(headers["m"]),
            body=bytes(message.body),
            headers=decode_headers(text(headers["h"])),
            attempt=within(headers["a"], 1, COUNT_MAX),
            first_seen_ms=within(headers["f"], 0, TIME_MS_MAX),
            failures=decode_failures(text(headers["k"])),
            history=decode_history(text(headers["r"])),
            tag=tag,
            settlement=settlement,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        shown = {str(name): repr(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
        return Delivery(
            queue=queue,
            message_id=f"message {tag}",
            body=orjson.dumps({"body": bytes(message.body).hex(), "headers": shown}),
            headers={},
            attempt=1,
            first_seen_ms=time.time_ns() // 1_000_000,
            failures={},
            history=(),
            tag=tag,
            settlement=settlement,
            problem=f"undecodable message of the queue: {type(error).__name__}: {error}",
        )


_unmarshal = ContentHeader.unmarshal


def _unmarshal_any(header: ContentHeader, data: bytes) -> None:
    """Read a message's size and properties; properties that cannot be decoded become the one header UNREADABLE_HEADER.

    The client itself ends the connection at such a message, for example with a header's name that is not UTF-8. The
    broker delivers it again at once, so that no consumer of the process would get another message.
    """
    try:
        _unmarshal(header, data)
    except (ValueError, OverflowError, OSError, RecursionError):
        header.properties = Basic.Properties(headers={UNREADABLE_HEADER: data[_SIZE_END:].hex()})


ContentHeader.unmarshal = _unmarshal_any  # type: ignore[assignment,method-assign]
