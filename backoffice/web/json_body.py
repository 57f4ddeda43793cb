"""The bounds of a JSON body, and members that appear twice: checked before any model reads it.

A body of 1 MiB may have 100,000 members. A model reports each unknown one, which takes seconds of the event loop. Of
two members with one name, readers may take either, so a body with such a pair has no meaning.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from backoffice.web.messages import Refused
from domain.problems import Problem

VALUES_MAX: Final = 4000  # of all objects and arrays; a product with 64 attributes of 50 texts each has about 3,300


def check_json(body: bytes, *, values_max: int = VALUES_MAX) -> None:
    """Refused(`malformed_request`) unless the body is JSON (RFC 8259, UTF-8) within the bound, without duplicates."""
    members = 0

    def count(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal members
        members += len(pairs)
        if members > values_max:  # ends the parse
            raise _too_many(values_max)
        found = dict(pairs)
        if len(found) != len(pairs):
            raise _refused("has two members with the same name in one object")
        return found

    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=count, parse_constant=_no_constant)
    except RecursionError as error:
        raise _refused("is nested too deep") from error
    except ValueError as error:
        raise _refused("is not valid JSON") from error
    if _has_more_values(document, values_max):
        raise _too_many(values_max)


def _has_more_values(document: Any, most: int) -> bool:
    """Whether all arrays and objects together have more than `most` values. Looks at no more than that."""
    values, waiting = 0, [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            values += len(value)
            if values > most:
                return True
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


def _too_many(values_max: int) -> Refused:
    return _refused(f"has more than {values_max} values")


def _refused(reason: str) -> Refused:
    return Refused(Problem.MALFORMED_REQUEST, f"The body {reason}")
