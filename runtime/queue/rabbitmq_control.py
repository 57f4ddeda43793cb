"""What consumers and callers of a barrier say to each other. Performs no I/O. See `rabbitmq_barrier` for the protocol.

Through the control exchange of the queue, to all:

    joined                a consumer is about to subscribe
    ask    barrier id     a consumer answers: how often it has moved messages so far
    settle barrier id     a consumer answers when what it took before is settled, or when the wait is over

Through the work queue, by way of a delay queue: a marker, with the barrier's id, its number, the number of all markers.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

import orjson
from pamqp.commands import Basic

MARKER_HEADER = "flashsale-marker"


class Kind(StrEnum):
    """Kinds of control messages."""

    JOINED = "joined"
    ASK = "ask"
    SETTLE = "settle"
    ANSWER = "answer"
    ARRIVED = "arrived"


@dataclass(frozen=True, slots=True)
class Control:
    """A control message. `sender` is the consumer's id, or the queue that waits for answers.

    `moved` counts the messages that the consumer retried or gave back, each at its begin and at its end.
    """

    kind: Kind
    sender: str
    barrier: str = ""
    number: int = 0  # of a marker, and how many there are
    markers: int = 0
    moved: int = 0
    held: int = 0
    settled: bool = False
    wait_ms: int = 0

    def encode(self) -> bytes:
        """As JSON."""
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, raw: bytes) -> Self | None:
        """None for a message that is not one of ours."""
        try:
            fields: dict[str, Any] = orjson.loads(raw)
            return cls(**{**fields, "kind": Kind(fields["kind"])})
        except (ValueError, TypeError, KeyError):
            return None


def new_id() -> str:
    """Of a consumer's subscription, or of a barrier: never used twice."""
    return secrets.token_hex(8)


def marker_properties(*, expires_at_once: bool) -> Basic.Properties:
    """Of a marker. In a delay queue it expires as soon as it is at the head, behind what waits there."""
    return Basic.Properties(delivery_mode=2, headers={MARKER_HEADER: 1}, expiration="0" if expires_at_once else None)


def is_marker(headers: Any) -> bool:
    """Whether a message of the work queue is a marker."""
    return isinstance(headers, dict) and MARKER_HEADER in headers
