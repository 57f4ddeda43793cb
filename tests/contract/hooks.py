"""Rules for input that JSON Schema cannot express; loaded by schemathesis, not by pytest."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any

import schemathesis

_KNOWN_SKU = os.environ.get("KNOWN_SKU", "")
_POINT = re.compile(r"[A-Za-z0-9_-]{87}")
# The generator of P-256 (SEC 2, section 2.4.2), uncompressed.
_KNOWN_POINT = "BGsX0fLhLEJH-Lzm5WOkQPJ3A32BLeszoPShOUXYmMKWT-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU"
_SKU = re.compile(r"[A-Za-z0-9._-]{1,64}")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:  # noqa: ARG001 - schemathesis passes it
    """Write integers in digits only (84.0 is an integer in JSON Schema), and use an existing SKU for the first item."""
    body = _digits(body)
    first = (
        body["items"][0] if isinstance(body, dict) and isinstance(body.get("items"), list) and body["items"] else body
    )
    # Replace valid SKUs only: invalid input must stay invalid.
    if _KNOWN_SKU and isinstance(first, dict) and isinstance(first.get("sku"), str) and _SKU.fullmatch(first["sku"]):
        first["sku"] = _KNOWN_SKU
    return body


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001
    """Use a point of the curve as a browser's key: most texts of its form are none."""
    keys = case.body.get("keys") if isinstance(case.body, dict) else None
    if isinstance(keys, dict) and isinstance(keys.get("p256dh"), str) and _POINT.fullmatch(keys["p256dh"]):
        keys["p256dh"] = _KNOWN_POINT


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:  # noqa: ARG001
    """Skip names of marks and blanks only: they are invalid, but patterns cannot express Unicode categories."""
    name = case.body.get("name") if isinstance(case.body, dict) else None
    return not isinstance(name, str) or any(unicodedata.category(character)[0] in "LNPS" for character in name)


def _digits(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _digits(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_digits(member) for member in value]
    return value
