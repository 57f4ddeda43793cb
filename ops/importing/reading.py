"""Reads products from CSV and JSON lines, one line at a time: files of any size in bounded memory. Sends nothing.

Checks the syntax of the file only; the backoffice decides whether a product is valid.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TextIO

LINE_CHARACTERS_MAX = 512 * 1024
FIELD_CHARACTERS_MAX = 128 * 1024
_PLAIN = ("sku", "name", "description", "currency")
_COLUMNS = (*_PLAIN, "price_minor", "active", "attributes")
_ATTRIBUTE = "attributes."
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Format(StrEnum):
    """Format of a file."""

    CSV = "csv"
    JSONL = "jsonl"

    @classmethod
    def of(cls, file_name: str) -> Format | None:
        """The format by the file's extension; None for an unknown extension."""
        extension = file_name.lower().rpartition(".")[2]
        return {"csv": cls.CSV, "tsv": cls.CSV, "jsonl": cls.JSONL, "ndjson": cls.JSONL}.get(extension)


class Unreadable(Exception):
    """The rest of the file cannot be read; the message names the line and the reason."""


class _Wrong(Exception):
    """A line is not a product; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Line:
    """A product, or the error of its line.

    `number` counts the file's lines from 1; for a quoted text over several lines it is the last one.
    """

    number: int
    item: dict[str, Any] | None = None
    error: str = ""


def read(file: TextIO, form: Format) -> Iterator[Line]:
    """Yield the file's products in order, without blank lines. Raises Unreadable; lines yielded before remain valid."""
    counted = _Counted(file)
    return _csv(counted) if form is Format.CSV else _json_lines(counted)


class _Counted:
    """Iterates over lines of bounded length and counts them."""

    def __init__(self, file: TextIO) -> None:
        self.number = 0
        self._file = file

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self._file.readline(LINE_CHARACTERS_MAX + 1)
            except UnicodeDecodeError as error:
                # The decoder reads ahead, so the line number is approximate.
                raise Unreadable(
                    f"line {max(1, self.number)} or a few lines later: not UTF-8 ({error.reason}); save the file as UTF-8"
                ) from error
            if not line:
                return
            self.number += 1
            if len(line) > LINE_CHARACTERS_MAX:
                self.fail(f"longer than {LINE_CHARACTERS_MAX} characters")
            yield line

    def fail(self, reason: str) -> NoReturn:
        """Raise Unreadable for the current line."""
        raise Unreadable(f"line {max(1, self.number)}: {reason}")


def _json_lines(lines: _Counted) -> Iterator[Line]:
    for line in lines:
        if not line.strip():
            continue
        try:
            item = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            if lines.number == 1 and line.lstrip().startswith("["):
                lines.fail("this is one JSON document; write JSON lines, with one object on each line")
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield Line(lines.number, error=f"not JSON: {reason}")
            continue
        if isinstance(item, dict):
            yield Line(lines.number, item)
        else:
            yield Line(lines.number, error="not a JSON object")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _csv(lines: _Counted) -> Iterator[Line]:
    source = iter(lines)
    header_line = next(source, None)
    if header_line is None:
        raise Unreadable("the file is empty; its first line names the columns")
    delimiter = max(",;\t", key=header_line.count)
    (header,) = list(csv.reader([header_line], delimiter=delimiter)) or [[]]
    columns = [column.strip() for column in header]
    _check_header(columns, lines)
    before = csv.field_size_limit(FIELD_CHARACTERS_MAX)
    try:
        for cells in csv.reader(source, delimiter=delimiter, strict=True):
            if not any(cell.strip() for cell in cells):
                continue
            try:
                yield Line(lines.number, _row(columns, cells))
            except _Wrong as wrong:
                yield Line(lines.number, error=str(wrong))
    except csv.Error as error:
        # The start of the next row is unknown now: continuing could import wrong data.
        lines.fail(f"not CSV: {error}")
    finally:
        csv.field_size_limit(before)


def _check_header(columns: list[str], lines: _Counted) -> None:
    unknown = [c for c in columns if c not in _COLUMNS and not (c.startswith(_ATTRIBUTE) and len(c) > len(_ATTRIBUTE))]
    if unknown:
        known = ", ".join((*_COLUMNS, _ATTRIBUTE + "NAME"))
        shown = ", ".join(repr(column[:40]) for column in unknown[:5])
        lines.fail(f"unknown column {shown}; use {known}")
    if "sku" not in columns:
        lines.fail("there is no column 'sku'; add it")
    if len(set(columns)) < len(columns):
        lines.fail("duplicate column; remove one of them")


def _row(columns: list[str], cells: list[str]) -> dict[str, Any]:
    """A product. An empty cell is no value: a new product gets the default, an existing product keeps its value."""
    if len(cells) != len(columns):
        raise _Wrong(f"has {len(cells)} cells, the header {len(columns)}")
    item: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        if not cell.strip():
            continue
        if column in _PLAIN:
            item[column] = cell
        elif column == "price_minor":
            if not _WHOLE.fullmatch(cell.strip()):
                raise _Wrong(
                    f"price_minor {cell[:40]!r} is not a whole number; prices are in minor units, 19.99 is 1999"
                )
            item[column] = int(cell)
        elif column == "active":
            if cell.strip().lower() not in _TRUTH:
                raise _Wrong(f"active {cell[:40]!r} is neither true nor false")
            item[column] = _TRUTH[cell.strip().lower()]
        elif column == "attributes":
            item["attributes"] = _attributes(cell)
        else:
            attributes[column.removeprefix(_ATTRIBUTE)] = cell
    if attributes:
        item["attributes"] = {**item.get("attributes", {}), **attributes}
    return item


def _attributes(cell: str) -> dict[str, Any]:
    try:
        attributes = json.loads(cell, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"attributes are not JSON: {error}") from error
    if not isinstance(attributes, dict):
        raise _Wrong("attributes are not a JSON object")
    return attributes
