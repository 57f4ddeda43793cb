"""How the adapters write failures into messages, and the failures that they accept. Performs no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from runtime.queue.port import Failure, FailureKind

# PostgreSQL has to store them in dead letters: an `integer`, and a time before the year 10000.
COUNT_MAX = (1 << 31) - 1
TIME_MS_MAX = 253_402_300_799_999


def encode_history(history: Sequence[Failure]) -> bytes:
    """JSON: [[at_ms, kind, reason], ...]."""
    return orjson.dumps([[failure.at_ms, failure.kind.value, failure.reason] for failure in history])


def decode_history(raw: bytes | str) -> tuple[Failure, ...]:
    """Raises ValueError, TypeError."""
    return tuple(
        Failure(within(at_ms, 0, TIME_MS_MAX), FailureKind(text(kind)), text(reason))
        for at_ms, kind, reason in orjson.loads(raw)
    )


def encode_failures(failures: Mapping[FailureKind, int]) -> bytes:
    """JSON: {kind: count}."""
    return orjson.dumps({kind.value: count for kind, count in failures.items()})


def decode_failures(raw: bytes | str) -> dict[FailureKind, int]:
    """Raises ValueError, AttributeError."""
    return {FailureKind(kind): within(count, 0, COUNT_MAX) for kind, count in orjson.loads(raw).items()}


def decode_headers(raw: bytes | str) -> dict[str, str]:
    """Raises ValueError, AttributeError."""
    return {name: text(value) for name, value in orjson.loads(raw).items()}


def within(value: Any, least: int, most: int) -> int:
    """The value; ValueError unless it is an integer in this range, both ends included."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"not an integer from {least} to {most}")
    return value


def text(value: Any) -> str:
    """The value; ValueError unless it is a text."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
