"""What JSON Schema cannot say about our input; loaded by schemathesis, not by pytest."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any

import schemathesis

_KNOWN_SKU = os.environ.get("KNOWN_SKU", "")
_SKU = re.compile(r"[A-Za-z0-9._-]{1,64}")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:  # noqa: ARG001 - schemathesis passes it
    """To JSON Schema 84.0 is an integer; to us a quantity is written in digits only. The first SKU is one that there is."""
    body = _digits(body)
    first = (
        body["items"][0] if isinstance(body, dict) and isinstance(body.get("items"), list) and body["items"] else body
    )
    # Only in the place of one that might be: what is wrong stays wrong.
    if _KNOWN_SKU and isinstance(first, dict) and isinstance(first.get("sku"), str) and _SKU.fullmatch(first["sku"]):
        first["sku"] = _KNOWN_SKU
    return body


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:  # noqa: ARG001
    """A name needs something to see, not only marks and blanks; patterns do not know Unicode's categories."""
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
