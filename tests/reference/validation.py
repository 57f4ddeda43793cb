"""Order bodies and Idempotency-Keys in plain Python on the standard `json`: the oracle of `hotpath.validation`."""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH_MAX = 16
ERRORS_MAX = 32
SKU = re.compile(r"[A-Za-z0-9._-]{1,64}\Z", re.ASCII)
QUANTITY = re.compile(r"[1-9][0-9]?\Z|100\Z", re.ASCII)

SKU_FAULT = "must be 1 to 64 characters of A-Z a-z 0-9 . _ -"
QUANTITY_FAULT = "must be a whole number from 1 to 100, digits only"


class NotJson(Exception):
    """The text is not strict JSON."""


class Number(str):
    """A number as text."""


class Members(list[tuple[str, Any]]):
    """An object with all members, repeated ones included."""


def parse_order(body: bytes) -> tuple[str, Any]:
    """('order', lines), ('malformed', None) or ('invalid', [(pointer, detail)])."""
    try:
        document = parse_json(body)
    except NotJson:
        return "malformed", None
    errors: list[tuple[str, str]] = []
    if not isinstance(document, Members):
        return "invalid", [("", "must be an object")]
    items = members(document, "", ("items",), errors).get("items")
    lines: list[tuple[Any, int]] = []
    if any(name == "items" for name, _ in document):
        if type(items) is list and 1 <= len(items) <= 8:
            for place, item in enumerate(items):
                check_line(item, f"/items/{place}", lines, errors)
        else:
            errors.append(("/items", "must be an array of 1 to 8 lines"))
    return ("invalid", errors[:ERRORS_MAX]) if errors else ("order", lines)


def parse_json(body: bytes) -> Any:
    """Parse any JSON text. NotJson for other texts, also for those that only `json` accepts."""

    def refuse(word: str) -> Any:
        raise ValueError(word)  # NaN, Infinity

    try:
        document = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=Members,
            parse_int=Number,
            parse_float=Number,
            parse_constant=refuse,
        )
        no_lone_surrogates(document)
    except (ValueError, RecursionError) as error:
        raise NotJson from error
    if depth(document) > DEPTH_MAX:
        raise NotJson
    return document


def no_lone_surrogates(value: Any) -> None:
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, Members):
        for name, member in value:
            name.encode("utf-8")
            no_lone_surrogates(member)
    elif isinstance(value, list):
        for member in value:
            no_lone_surrogates(member)


def depth(value: Any) -> int:
    if isinstance(value, Members):
        return 1 + max((depth(member) for _, member in value), default=0)
    if isinstance(value, list):
        return 1 + max((depth(member) for member in value), default=0)
    return 0


def members(found: Members, pointer: str, wanted: tuple[str, ...], errors: list[tuple[str, str]]) -> dict[str, Any]:
    by_name: dict[str, Any] = {}
    for name, value in found:
        if name not in wanted:
            errors.append((f"{pointer}/{name[:64].replace('~', '~0').replace('/', '~1')}", "is unknown; remove it"))
        elif name in by_name:
            errors.append((f"{pointer}/{name}", "must not appear twice"))
        else:
            by_name[name] = value
    errors += [(f"{pointer}/{name}", "is required") for name in wanted if name not in by_name]
    return by_name


def check_line(item: Any, pointer: str, lines: list[tuple[Any, int]], errors: list[tuple[str, str]]) -> None:
    if not isinstance(item, Members):
        errors.append((pointer, "must be an object"))
        return
    found = members(item, pointer, ("sku", "quantity"), errors)
    sku = found.get("sku")
    if "sku" in found:
        if type(sku) is not str or not SKU.match(sku):
            errors.append((f"{pointer}/sku", SKU_FAULT))
        elif any(sku == other for other, _ in lines):
            errors.append((f"{pointer}/sku", "must not appear in two lines"))
    quantity = found.get("quantity")
    fits = isinstance(quantity, Number) and QUANTITY.match(quantity) is not None
    if "quantity" in found and not fits:
        errors.append((f"{pointer}/quantity", QUANTITY_FAULT))
    lines.append((sku if type(sku) is str else None, int(quantity) if fits else 0))  # a Number is a str, but no SKU


def parse_key(header: str | None) -> tuple[str, str | None]:
    """('key', key), ('none', None) or ('malformed', None)."""
    if not header:
        return "none", None
    key = header
    if header.startswith('"'):
        quoted = re.fullmatch(r'"((?:[^"\\]|\\["\\])*)"', header)
        if quoted is None:
            return "malformed", None
        key = re.sub(r"\\(.)", r"\1", quoted.group(1))
        if not key:
            return "none", None
    return ("key", key) if re.fullmatch(r"[\x21-\x7e]{1,64}", key) else ("malformed", None)
