"""Checks events against their declared formats, more strictly than readers do: no member is undeclared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from domain.events import EventMalformed, event_headers, read_event
from domain.schemas import FAMILIES


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without room for undeclared members, where it declares some."""
    if "properties" in schema:
        schema["additionalProperties"] = False
        for member in schema["properties"].values():
            _strict(member)
    if "items" in schema:
        _strict(schema["items"])
    return schema


_VALIDATORS = {
    name: jsonschema_rs.validator_for(_strict(copy.deepcopy(family.document)), validate_formats=True)
    for name, family in FAMILIES.items()
}


def check_record(topic: str, headers: Mapping[str, str], value: bytes) -> None:
    """Raises AssertionError unless the record is an event of this topic in its declared format."""
    event = read_event(headers, value)
    family = FAMILIES.get(event.family)
    assert family is not None, f"{event.type} is not declared in domain.schemas"
    assert event.type in family.types, f"{event.type} is not declared in domain.schemas"
    assert (event.schema, topic) == (family.version, family.topic), event
    problems = [str(error) for error in _VALIDATORS[family.name].iter_errors(dict(event.data))]
    assert problems == [], (event, problems)


def check_document(destination: str, document: dict[str, Any], value: bytes) -> None:
    """As `check_record`, for an event of an outbox row. `value` is the JSON of its data."""
    try:
        headers = event_headers(document)
    except EventMalformed as error:
        raise AssertionError(f"{document}: {error}") from error
    family = FAMILIES[document["type"].partition(".")[0]]
    assert family.topic.startswith(destination.removeprefix("events.") + "."), (destination, document)
    check_record(family.topic, headers, value)
