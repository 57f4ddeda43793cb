"""Reads the documents of the shop's calls strictly. Performs no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from devstack.payment_simulator.books import Checkout, Entry
from domain.ids import parse_uuid
from domain.orders import LINES_MAX, QUANTITY_MAX, SKU_LENGTH_MAX
from domain.payments import EVENT_ID_LENGTH_MAX

AMOUNT_MAX: Final = 2**53
TIME_MS_MAX: Final = 2**48
URL_LENGTH_MAX: Final = 2048


class Malformed(ValueError):
    """A member of a document is missing or malformed; named in the message."""


def read_checkout(document: Mapping[str, Any], *, token: str) -> Checkout:
    """The checkout that a document asks for, with a new page."""
    lines = document.get("lines")
    if not isinstance(lines, list) or not 1 <= len(lines) <= LINES_MAX:
        raise Malformed("lines: missing or malformed")
    return Checkout(
        token=token,
        order_id=_uuid(document, "order_id"),
        amount_minor=_integer(document, "amount_minor", 1, AMOUNT_MAX),
        currency=_currency(document),
        expires_at_ms=_integer(document, "expires_at_ms", 0, TIME_MS_MAX),
        return_url=_url(document, "return_url"),
        lines=[_line(line) for line in lines],
    )


def read_refund(document: Mapping[str, Any], *, at_ms: int) -> Entry:
    """The refund that a document asks for."""
    return Entry(
        id=_uuid(document, "refund_id"),
        kind="refund",
        event_id=_text(document, "event_id", EVENT_ID_LENGTH_MAX),
        order_id=_uuid(document, "order_id"),
        amount_minor=_integer(document, "amount_minor", 1, AMOUNT_MAX),
        currency=_currency(document),
        at_ms=at_ms,
    )


def _line(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise Malformed("lines: not objects")
    return {
        "sku": _text(document, "sku", SKU_LENGTH_MAX),
        "quantity": _integer(document, "quantity", 1, QUANTITY_MAX),
        "unit_price_minor": _integer(document, "unit_price_minor", 0, AMOUNT_MAX),
    }


def _text(document: Mapping[str, Any], name: str, length_max: int) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= length_max or not value.isprintable():
        raise Malformed(f"{name}: missing or malformed")
    return value


def _integer(document: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = document.get(name)
    if type(value) is not int or not least <= value <= most:
        raise Malformed(f"{name}: not an integer from {least} to {most}")
    return value


def _uuid(document: Mapping[str, Any], name: str) -> str:
    value = parse_uuid(_text(document, name, 36))
    if value is None:
        raise Malformed(f"{name}: not a UUID")
    return str(value)


def _currency(document: Mapping[str, Any]) -> str:
    value = _text(document, "currency", 3)
    if len(value) != 3 or not (value.isascii() and value.isalpha() and value.isupper()):
        raise Malformed("currency: not three capital letters")
    return value


def _url(document: Mapping[str, Any], name: str) -> str:
    """An address for a link and for a policy: http or https, nothing that could end a header."""
    value = _text(document, name, URL_LENGTH_MAX)
    try:
        parts = urlsplit(value)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except ValueError:
        sound = False
    if not sound or not value.isascii() or any(character in value for character in " ;,'\"<>\\"):
        raise Malformed(f"{name}: not an address")
    return value
