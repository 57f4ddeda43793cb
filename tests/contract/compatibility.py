"""Compares two versions of a schema of events: the differences that a reader of one cannot read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Schema = Mapping[str, Any]
_PROSE: Final = frozenset({"description", "title", "$schema", "$id", "x-topic", "x-key", "x-types"})
_KNOWN: Final = frozenset({"required", "properties", "items"})


def breaks(released: Schema, current: Schema) -> list[str]:
    """The changes from a released schema after which a reader of one version cannot read the events of the other."""
    problems = [
        f"type {name} is gone" for name in released.get("x-types", {}) if name not in current.get("x-types", {})
    ]
    for name in ("x-topic", "x-key"):
        if released.get(name) != current.get(name):
            problems.append(f"{name} changed")
    return problems + _breaks(released, current, "data")


def _breaks(released: Schema, current: Schema, place: str) -> list[str]:
    problems = [
        f"{place}: {name} changed from {released.get(name)!r} to {current.get(name)!r}"
        for name in sorted({*released, *current} - _PROSE - _KNOWN)
        if released.get(name) != current.get(name)
    ]
    was, now = released.get("properties", {}), current.get("properties", {})
    problems += [f"{place}.{name} is gone" for name in was if name not in now]
    required_before, required = set(released.get("required", ())), set(current.get("required", ()))
    problems += [f"{place}.{name} is not required any more" for name in sorted(required_before - required)]
    problems += [f"{place}.{name} is required now" for name in sorted(required - required_before)]
    for name in was:
        if name in now:
            problems += _breaks(was[name], now[name], f"{place}.{name}")
    if ("items" in released) != ("items" in current):
        problems.append(f"{place}: items changed")
    elif "items" in released:
        problems += _breaks(released["items"], current["items"], f"{place}[]")
    return problems
