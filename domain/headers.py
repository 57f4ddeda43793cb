"""Transport headers of entries, messages and events, such as a trace's. Performs no I/O.

A message is complete without its headers, and malformed headers are dropped. Encoded headers are a JSON object of
texts in UTF-8, or no bytes at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HEADERS_LENGTH_MAX = 4_096  # bytes, encoded


class MalformedHeaders(ValueError):
    """The bytes are no encoded headers, or more than HEADERS_LENGTH_MAX."""


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The encoded headers, empty for none; MalformedHeaders when they are too long or hold NUL or a lone surrogate."""
    if not headers:
        return b""
    encoded = json.dumps(check_headers(dict(headers)), ensure_ascii=False, separators=(",", ":")).encode()
    if len(encoded) > HEADERS_LENGTH_MAX:
        raise MalformedHeaders(f"{len(encoded)} bytes")
    return encoded


def decode_headers(encoded: bytes) -> dict[str, str]:
    """Inverse of `encode_headers`; MalformedHeaders for anything else."""
    if not encoded:
        return {}
    if len(encoded) > HEADERS_LENGTH_MAX:
        raise MalformedHeaders(f"{len(encoded)} bytes")
    try:
        return check_headers(json.loads(encoded))
    except (ValueError, RecursionError) as error:
        raise MalformedHeaders(str(error)) from error


def check_headers(value: Any) -> dict[str, str]:
    """Headers from a JSON value; MalformedHeaders unless it is an object of texts that PostgreSQL can store."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in (*value, *value.values())):
        raise MalformedHeaders("not an object of texts")
    joined = "".join((*value, *value.values()))
    if "\0" in joined or (not joined.isascii() and any("\ud800" <= character <= "\udfff" for character in joined)):
        raise MalformedHeaders("NUL or a lone surrogate")
    return value
